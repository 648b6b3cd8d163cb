"""Corruptions of a run: each breaks one invariant in a known way."""
