"""Runs that are wrong in one known way each."""
