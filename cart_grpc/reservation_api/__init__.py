"""The client side of the Reservation API: one interface over gRPC, HTTP and the `basic` contract.

It does not know the store, and does not decide when to call. It never retries.
"""
