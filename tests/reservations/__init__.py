"""The Reservation API: its clients and its simulator."""
