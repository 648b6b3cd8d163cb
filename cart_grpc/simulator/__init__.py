"""A Reservation API of our own, for trying and testing: it keeps the rules of `cartgrpc.reservation.v1`, slowly and badly.

`rules` decides, `stock` remembers, `journal` survives a crash, `faults` says what goes wrong, `simulator` makes it go
wrong, and two front doors offer it over gRPC and HTTP. `server` starts all of it.
"""
