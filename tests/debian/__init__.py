"""Tests against programs that Debian packages: PgBouncer, HAProxy, libfaketime. `make debian` runs them."""
