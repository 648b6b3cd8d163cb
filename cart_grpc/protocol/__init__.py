"""The reservation protocol: values and pure functions. It imports the standard library and `names` only.

The rules of carts are in `carts`, SQL is in `store`, and calls to the Reservation API are in `reservation_api`.
"""
