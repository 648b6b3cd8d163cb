"""The gRPC servers, one for each port: their limits, how they start and stop.

Under overload, calls wait in the client, because a connection carries few of them (see OPTIONS). What does not help:

- Stream limits that follow the load, or GOAWAY for one connection: Python has no access to them. gRPC has a limit for
  all connections together, but only in C++.
- A queue of our own that answers the newest calls first, or ends the oldest: gRPC hands calls over in order and one at
  a time, which takes several turns of the event loop. So under load nearly all of them wait inside gRPC.
- Limits of that queue inside gRPC. `grpc.server_max_unrequested_time_in_server` = 1 s ended 46 of 110 calls with a bare
  CANCELLED after a stall, all within 5 ms of their arrival. `grpc.server.max_pending_requests` = 200 did the
  same to 97 of 1,606 calls of 256 callers. So with many full connections (64), nearly every call with a deadline of two
  seconds still fails at ten times the capacity.
- A cheaper rejection: see `admission`. Fewer methods with a queue of their own would save 2 us a call.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from cart_grpc.addresses import cannot_listen
from cart_grpc.rpc.access import Access
from cart_grpc.rpc.deadlines import Deadlines
from cart_grpc.rpc.door import Door
from cart_grpc.rpc.endpoint import NOT_OBSERVED, Guards, Observers
from cart_grpc.rpc.fields import MAX_WAIT_SECONDS
from cart_grpc.rpc.health import SERVICE as HEALTH
from cart_grpc.rpc.health import Health
from cart_grpc.rpc.methods import HEALTH_AND_REFLECTION, METHODS, Method
from cart_grpc.rpc.permissions import PERMISSIONS
from cart_grpc.rpc.pipeline import Pipeline
from cart_grpc.rpc.reflection import V1, add_reflection
from cart_grpc.rpc.services import Service, open_streams

# gRPC silently ignores an option name that it does not know, so tests/attacks proves each of these. Figures are from
# grpcio 1.85, where a connection costs 15 KiB, a call that is not accepted yet 14 KiB, and an open call 25 KiB.
OPTIONS = (
    # The share of one connection. Further calls wait in the client, which costs us nothing; rejecting one costs 0.8 of
    # an empty call, and its place is taken by the next. Eight connections that are full keep 800 calls here. With 400
    # for each, three of four admitted calls missed their deadline of two seconds at ten times the capacity. Goodput was
    # 0.2 to 0.4 of the capacity; now it is 0.6 to 1, on a machine that other programs kept busy.
    ("grpc.max_concurrent_streams", 100),
    # A call counts until its memory is free. Without that, 100,000 resets a second queue up inside gRPC: memory grows
    # from 33 to 580 MiB in three seconds, and no other caller is served.
    ("grpc.http.overload_protection", 1),
    # But a client opens its next call as soon as it has the answer. Without room for the calls that are over and not
    # free yet, a connection that stays full gets UNAVAILABLE for each call that comes too early: several times as
    # many as answers.
    ("grpc.http2.max_deallocating_streams", 300),
    # The incomplete messages of one connection: by default they take 3 GiB in four seconds. The length of a message is
    # limited, too (see Server). With bdp_probe, windows grow with the bandwidth, and a client could fill one for each
    # stream in spite of that limit.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 16 * 1024),
    # Equal: gRPC rejects metadata whose size is between the two at random.
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # All connections together. Above the first number gRPC answers CANCELLED at random, above the second always.
    # Admission rejects calls with a proper status instead, so both numbers are beyond any burst that we accept.
    ("grpc.server.max_pending_requests", 12_000),
    ("grpc.server.max_pending_requests_hard_limit", 16_000),
    # How long a peer may take for the HTTP/2 handshake, to acknowledge our settings, and to answer a ping.
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.http2.settings_timeout", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    # Not grpc.keepalive_timeout_ms, which has no effect of its own.
    ("grpc.http2.ping_timeout_ms", 20_000),
    # Clients may ping every 10 seconds, with and without calls. The default disconnects those that ping more often
    # than every 5 minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Load is balanced by connection, not by call: connections end from time to time so that clients spread out again.
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 1_800_000),
)
# Of one port.
MAX_CONNECTIONS: Final = 4_000
# A client with health checks has one watch for each of its connections, so a watch for each connection that we accept.
MAX_HEALTH_WATCHES: Final = 4_000
# New calls are held back until none has arrived for so long. It must exceed a round trip and the pause of a busy caller
# between two calls, and is shorter if the grace is.
QUIET_SECONDS: Final = 0.1
# A call that we end needs a moment to send its status before gRPC cancels it.
LAST_WORDS_SECONDS: Final = 1.0


class Server:
    """One port: a service, and beside it health and reflection. It refuses calls until `open`.

    Health: `""` is liveness; the names of the service are readiness, as `set_ready` says. With `access`, the service's
    methods need an identity and a permission. `observers` observe its calls. `beside` has the methods of health
    and reflection that are offered. With `shares_port`, other workers listen on the same port, and each gets its share
    of the connections. At most `max_connections` are open, unless MAX_CONNECTIONS is less. `call_timeout` is in
    seconds.
    """

    def __init__(
        self,
        service: Service,
        call_timeout: float,
        *,
        access: Access | None = None,
        observers: Observers = NOT_OBSERVED,
        beside: Mapping[str, Sequence[Method]] = HEALTH_AND_REFLECTION,
        shares_port: bool = False,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.port = 0
        self._service = service
        self._has_stopped = False
        options = (
            *OPTIONS,
            ("grpc.max_allowed_incoming_connections", min(max_connections, MAX_CONNECTIONS)),
            ("grpc.max_receive_message_length", service.max_request_bytes),
            # A connection that reaches its age may finish the calls that it has; a call that never ends is cut off.
            ("grpc.max_connection_age_grace_ms", int((call_timeout + MAX_WAIT_SECONDS) * 1000)),
            # On by default: a second server on the same port would take half of the connections without an error.
            ("grpc.so_reuseport", int(shares_port)),
        )
        self._server = grpc.aio.server(options=options)
        self._health = Health("", *service.names)
        self._deadlines = Deadlines(call_timeout)
        self._door = Door()
        self._streams, self._watches = service.streams, open_streams(MAX_HEALTH_WATCHES)
        guards = Guards(
            self._deadlines,
            service.receiver,
            self._streams,
            door=self._door,
            access=access,
            observers=observers,
        )
        # Without the door: until the end a check must be answered, and a watch must see NOT_SERVING.
        of_health = Guards(self._deadlines, service.receiver, self._watches, observers=_of_probes(observers))
        methods, rules = {**METHODS, **service.methods}, {**PERMISSIONS, **service.permissions}
        service.add(Pipeline(self._server, methods, rules, replace(guards, admission=service.admission)))
        permissions = _rules_of(beside)
        if V1 in beside:
            add_reflection(Pipeline(self._server, beside, permissions, guards), (*service.names, HEALTH))
        health: Any = Pipeline(self._server, beside, permissions, of_health)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, health)

    async def start(self, address: str, credentials: grpc.ServerCredentials | None = None) -> None:
        """Listen on HOST:PORT and set `port`; with TLS if there are `credentials`. Port 0 means any free port.

        Raises OSError.
        """
        try:
            if credentials:
                self.port = self._server.add_secure_port(address, credentials)
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise OSError(cannot_listen(address)) from None
        self._health.set_all(serving=True)
        await self.set_ready(ready=False)
        await self._server.start()

    async def open(self) -> None:
        """Take calls from now on, and report SERVING: the store is open."""
        self._door.open()
        await self.set_ready(ready=True)

    async def set_ready(self, *, ready: bool) -> None:
        """Report through health whether callers should send calls here."""
        for name in self._service.names:
            self._health.set(name, serving=ready)

    def sample(self) -> None:
        """Set the gauges of the calls."""
        if self._service.admission:
            self._service.admission.sample()

    def announce_stop(self) -> None:
        """Report NOT_SERVING from now on, so that callers go elsewhere. Calls are served as before."""
        self._health.stop()

    async def stop(self, grace: float) -> int:
        """Refuse new calls, end the streams, answer the calls in max_wait, and send GOAWAY.

        Other calls have `grace` seconds to finish. Then they end with ShuttingDown. gRPC cancels the calls and streams
        whose caller does not take that. Returns how many calls did not finish in time.
        """
        if self._has_stopped:
            return 0
        unfinished: set[asyncio.Task[Any]] = set()
        self._has_stopped = True
        self.announce_stop()
        self._door.begin_drain()
        if self._service.notifier:
            self._service.notifier.close()
        self._streams.drain()
        self._health.close()
        await self._door.quiet(min(QUIET_SECONDS, grace / 50))
        stopping = asyncio.create_task(self._server.stop(grace + LAST_WORDS_SECONDS), name="stop-grpc")
        # The task sends GOAWAY before it waits for the first time. A refusal that overtook it would bring new calls.
        await asyncio.sleep(0)
        self._door.release()
        self._watches.drain()
        if running := self._deadlines.running():
            _, unfinished = await asyncio.wait(running, timeout=grace)
            self._deadlines.end_all()
        # A peer that does not read its stream would use the whole grace: gRPC accepts no status during a write.
        if not (await asyncio.wait((stopping,), timeout=LAST_WORDS_SECONDS))[0]:
            await self._server.stop(None)
        await stopping
        return len(unfinished)


def _of_probes(observers: Observers) -> Observers:
    """Return the observers of health checks: a probe comes every few seconds, so those that pass get no line."""
    call_log = observers.call_log
    return replace(observers, call_log=call_log and replace(call_log, all_calls=False))


def _rules_of(table: Mapping[str, Sequence[Method]]) -> Mapping[str, Mapping[str, str]]:
    """Return the permissions of the methods in `table` only, as far as they have one."""
    return {
        service: {row.name: rules[row.name] for row in rows if row.name in rules}
        for service, rows in table.items()
        if (rules := PERMISSIONS.get(service))
    }
