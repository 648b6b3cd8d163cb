"""Hostile clients, and the limits that contain them."""
