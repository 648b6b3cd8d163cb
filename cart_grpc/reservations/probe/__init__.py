"""A probe of somebody's Reservation API: which rules of `reservation.v1` does it keep?

`decisions` and `endurance` hold one check per sentence of the contract that can be tried from outside, `session` does
the asking and gives everything back, `probe` runs them, and `report` says what came of it and what it would cost.
"""
