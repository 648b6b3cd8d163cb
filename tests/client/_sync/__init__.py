# Made by `make sync-client` from the file of the same name in _async. Do not edit.
"""Tests of the asynchronous client. `make sync-client` makes those of the synchronous one, `_sync`, from them."""
