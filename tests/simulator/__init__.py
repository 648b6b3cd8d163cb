"""The simulator: the Reservation API that we offer to partners and use in tests."""
