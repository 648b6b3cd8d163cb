# Made by `make sync-client` from the file of the same name in _async. Do not edit.
"""Tests of one of the two clients. `make sync-client` makes `_sync` from `_async`."""
