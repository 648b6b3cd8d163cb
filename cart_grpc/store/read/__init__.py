"""Reading: carts as JSON, grouped reads, lists, the operator's reads, and the one way to watch a cart.

Each read is one statement, so it sees one moment. Nothing here writes.
"""
