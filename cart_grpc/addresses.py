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
