"""The background loops: the reconciler, which drives the Reservation API, and the sweeper, which expires and purges.

They use the store and the client side of the Reservation API. No SQL and no gRPC server. No caller waits for these
loops.
"""
