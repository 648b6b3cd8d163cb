"""Tests of the asynchronous client. `make sync-client` makes those of the synchronous one, `_sync`, from them."""
