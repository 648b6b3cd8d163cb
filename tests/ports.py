"""Ports for servers that cannot ask for any: their port is named before they start, or they come back at it."""

import random
import socket
from contextlib import closing
from typing import Final

# The system gives the ports above to sockets that ask for any: on Linux from 32768 on, elsewhere from 49152 on. A port
# from there that is free now may belong to another test by the time a server wants it.
_CHOICE: Final = range(20_000, 32_000)
# A test may seed the common numbers, which would make all workers choose the same ports.
_numbers: Final = random.SystemRandom()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on. No other caller gets it while this process lives."""
    while True:
        port = _numbers.choice(_CHOICE)
        # The UDP port of the same number is the mark that the port is taken, for all processes of the tests.
        mark = socket.socket(type=socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", port))
            with closing(socket.create_server(("127.0.0.1", port))):
                pass
        except OSError:
            mark.close()
            continue
        # It stays open until the process ends.
        mark.detach()
        return port
