"""A probe of somebody's Reservation API: which rules of its contract does it keep?

`contract` says what a contract is: checks, one per sentence that can be tried from outside. Those of
`cartgrpc.reservation.v1` are in `decisions` and `endurance`, those of the `basic` one in `basic`. A session makes the
calls and releases everything, `probe` runs the checks, and `report` prints the result.
"""
