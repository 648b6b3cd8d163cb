"""The asynchronous client. `make sync-client` makes the synchronous one, `_sync`, from it."""
