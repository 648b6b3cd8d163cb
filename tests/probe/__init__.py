"""The probe: it finds out which rules of its contract a Reservation API keeps."""
