"""Tests of one of the two clients. `make sync-client` makes `_sync` from `_async`."""
