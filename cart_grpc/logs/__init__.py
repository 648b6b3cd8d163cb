"""The log: the events, how code writes a line, the limits of repeated lines, and the two formats.

What belongs here: everything about lines in general. What does not: which line is written when.
"""
