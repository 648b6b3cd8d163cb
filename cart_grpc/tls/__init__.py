"""Certificates, keys and authorities from files that may change while the process runs.

No sockets and no gRPC servers: whoever connects or listens gets credentials from here.
"""
