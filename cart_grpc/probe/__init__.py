"""A probe of somebody's Reservation API: which rules of its contract does it keep?

`contract` says what a contract is: checks, one per sentence that can be tried from outside. Those of
`cartgrpc.reservation.v1` are in `decisions` and `endurance`, those of the `basic` one in `basic`. A session does the asking and gives everything
back, `probe` runs them, and `report` says what came of it and what it would cost.
"""
