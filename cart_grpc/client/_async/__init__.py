"""One of the two clients. `make sync-client` makes `_sync`, whose calls block, from `_async`."""
