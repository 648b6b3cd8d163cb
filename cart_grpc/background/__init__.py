"""The loops that work behind the calls: the reconciler and the sweeper.

They use the store and the Reservation API's client; no call of a caller waits for them.
"""
