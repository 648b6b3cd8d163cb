"""The loops: the reconciler with its breaker and backoff, and the sweeper."""
