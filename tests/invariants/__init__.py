"""Invariants of histories, from generated runs or from real processes that are killed."""
