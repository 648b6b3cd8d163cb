"""The client side of the Reservation API: one interface, over gRPC or HTTP, for both contracts.

Nothing here knows the store or decides when to call.
"""
