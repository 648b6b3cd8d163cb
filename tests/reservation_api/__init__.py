"""The client side of the Reservation API: every transport, for both contracts."""
