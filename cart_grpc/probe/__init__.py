"""The probe checks which rules of its contract a partner's Reservation API keeps. The server's rooms do not import it.

A contract is a list of checks (`contract`): `reservation_v1` lists the modules that check `cartgrpc.reservation.v1`,
and `basic` checks the `basic` contract. A session sends the messages of one check and then releases everything. `probe`
runs the checks, and `report` prints the results and the consequences of each broken rule.
"""
