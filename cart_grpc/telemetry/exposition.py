"""The port for Prometheus: GET /metrics, plaintext, in threads of its own.

prometheus_client's own server has no time-out, so a client that sends nothing keeps a thread for ever. It prints a
traceback for a client that leaves early, and asks the DNS for its own name before it listens.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import TCPServer
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

_TIMEOUT_SECONDS: Final = 10.0
_MAX_REQUESTS: Final = 16
_STOP_SECONDS: Final = 0.05


@contextmanager
def exposed(address: str, registry: CollectorRegistry) -> Iterator[int]:
    """Serve the metrics of `registry` on HOST:PORT until the block ends. Yields the port. Raises OSError."""
    host, _, number = address.rpartition(":")
    family, _, _, _, where = socket.getaddrinfo(host.strip("[]"), int(number), type=socket.SOCK_STREAM)[0]
    server_class = type("_FamilyServer", (_Server,), {"address_family": family})
    with server_class(where[:2], _RequestHandler) as server:
        server.set_app(make_wsgi_app(registry))
        thread = threading.Thread(target=server.serve_forever, args=(_STOP_SECONDS,), name="metrics", daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class _RequestHandler(WSGIRequestHandler):
    timeout = _TIMEOUT_SECONDS

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class _Server(ThreadingWSGIServer):
    # Some versions of Python set it. A second process could then take half of the scrapes.
    allow_reuse_port = False
    request_queue_size = _MAX_REQUESTS

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(_MAX_REQUESTS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; close the connection if too many are open."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, *_: Any) -> None:
        """Print nothing: a client has left before it had its answer."""
