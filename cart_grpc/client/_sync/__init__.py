# Made by `make sync-client` from the file of the same name in _async. Do not edit.
"""The asynchronous client. `make sync-client` makes the synchronous one, `_sync`, from it."""
