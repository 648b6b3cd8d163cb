"""Addresses of the form HOST:PORT: which of them lead to this machine only."""

import ipaddress


def host_of(address: str) -> str:
    """Return the host in HOST:PORT, without the brackets of an IPv6 address."""
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address, or the name `localhost`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def cannot_listen(address: str) -> str:
    """Return the reason why no server can listen on the address."""
    return f"cannot listen on {address}: it is taken, or not an address of this machine"


def to_dial(address: str) -> str:
    """Return the address at which this machine reaches a server that listens on `address`, with a name for TLS."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in ("0.0.0.0", "[::]") else address  # noqa: S104 - compared, not bound
