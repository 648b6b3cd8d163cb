"""Certificates, keys and authorities from files that may change while the process runs.

No sockets and no gRPC servers: clients and servers get their credentials from here.
"""
