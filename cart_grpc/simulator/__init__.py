"""The simulator: a slow and faulty Reservation API for tests and demos. The server's rooms do not import it.

It keeps the rules of `cartgrpc.reservation.v1`. `rules` decides, `stock` remembers, `journal` keeps the memory on disk,
`faults` draws what goes wrong, `simulator` makes it go wrong, and the endpoints serve it over gRPC and HTTP.
"""
