"""The program `cart-grpc`, which is also `python -m cart_grpc`."""

import os
import signal
import sys
from typing import NoReturn

# As a shell reports a program that SIGINT ended.
INTERRUPTED = 130


def main() -> int:
    """Run the command line. Returns its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # At any moment, the imports included. A program that stops in an orderly way replaces this handler.
        signal.signal(signal.SIGINT, _end_silently)
    # gRPC would write lines of its own to standard error, also for each handshake that a stranger fails.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from cart_grpc.cli import program as cli  # noqa: PLC0415 - takes half a second

    return cli.main()


def _end_silently(*_: object) -> NoReturn:
    """End the process at once: an exception would pass through code that logs it. All output is written already."""
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
