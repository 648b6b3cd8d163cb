# Made by `make sync-client` from the file of the same name in _async. Do not edit.
"""One of the two clients. `make sync-client` makes `_sync`, whose calls block, from `_async`."""
