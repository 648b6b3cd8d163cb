"""The log: its lines, its limits, and that no caller can break a line."""
