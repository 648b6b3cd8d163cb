"""Clients that mean harm, and what the server's limits make of them."""
