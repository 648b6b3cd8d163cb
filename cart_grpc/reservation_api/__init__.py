"""The client side of the Reservation API: one interface over gRPC, HTTP and the `basic` contract.

It knows neither the store nor when to call: one call of ours is one call to the API, with no retry inside.
"""
