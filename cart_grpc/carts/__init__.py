"""Carts: the values that make one, the calls that change it, and the pure rule of each call.

Standard library only: no SQL, no protobuf and no network belong here.
"""
