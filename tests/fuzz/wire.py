"""Random requests to a real server: every method of every service that it offers, and methods that it lacks."""

import asyncio
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import grpc
import psutil
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.fuzz.requests import METHODS, change_bytes, draw_request, draw_text, encode, encoded_right
from tests.fuzz.targets import QUERIES, draw_page, texts_in
from tests.processes.harness import LISTENS, Program, Programs
from tests.processes.test_workers import OPERATORS
from tests.rpc.refusal import to_refusal
from tests.rpc.right import ADMIN, descriptor_of, path_of, request_of

Kind = Callable[[grpc.aio.Channel, str], Any]
# A call that takes longer hangs.
HANGS_AFTER: Final = 30.0
AT_ONCE: Final = 16
# Longer requests may be refused by gRPC itself, without details.
LONG: Final = 60_000
# A caller's fault, or the state of the carts; nothing that says that the server failed.
ALLOWED: Final = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "ABORTED", "RESOURCE_EXHAUSTED"}
)
USERS: Final = tuple(f"users/fuzzed-{number}" for number in range(8))
SERVICES: Final = ("", "cartgrpc.v1.CartService", "cartgrpc.v1.CartAdminService", "grpc.health.v1.Health")
SYMBOLS: Final = (*SERVICES, "cartgrpc.v1.Cart", "cartgrpc.v1.CartService.AddItem", "google.protobuf.Any", ".", "x.y")
FILES: Final = ("cartgrpc/v1/cart.proto", "google/protobuf/any.proto", "../../etc/passwd", "", "/")
# Any, because the stubs of these modules have descriptors of another type.
HEALTH: Final[Any] = health_pb2.HealthCheckRequest.DESCRIPTOR
REFLECTION: Final[Any] = reflection_pb2.ServerReflectionRequest.DESCRIPTOR
MISSING: Final = ("/cartgrpc.v1.CartService/Missing", "/x.Y/Z", "/grpc.health.v1.Health/X", "/", "/a", "//", "/../..")


class Sender:
    """Sends requests, drawn from `rng`, to the ports of callers and operators, and checks how each call ends."""

    def __init__(self, callers: grpc.aio.Channel, operators: grpc.aio.Channel, rng: random.Random) -> None:
        self._channels = (callers, operators)
        self._rng = rng
        self._seen: defaultdict[str, deque[str]] = defaultdict(partial(deque, maxlen=100))
        self.ended: Counter[str] = Counter()

    async def send(self, count: int) -> None:
        """Make `count` calls, some at a time. Raises AssertionError for the first that ends as none may."""
        left = iter(range(count))

        async def work() -> None:
            for _ in left:
                await self._call(*self._draw())

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())

    def _draw(self) -> tuple[grpc.aio.Channel, Kind, str, list[bytes]]:
        """The next call: its channel, its kind, its path, and its messages."""
        rng = self._rng
        channel = rng.choice(self._channels)
        match rng.randrange(24):
            case 0:
                name = rng.choice(("Check", "Watch", "List"))
                request = health_pb2.HealthCheckRequest(service=rng.choice(SERVICES)).SerializeToString()
                sent = rng.choice((request, request + encode(rng, HEALTH)))
                return channel, _first if name == "Watch" else _unary, f"/grpc.health.v1.Health/{name}", [sent]
            case 1:
                path = f"/grpc.reflection.{rng.choice(('v1', 'v1alpha'))}.ServerReflection/ServerReflectionInfo"
                return channel, _exchange, path, [_draw_reflection(rng) for _ in range(rng.choice((1, 1, 2, 0)))]
            case 2:
                return channel, rng.choice((_unary, _first)), rng.choice(MISSING), [rng.randbytes(4)]
            case 3:
                method = rng.choice(tuple(QUERIES))
                return (
                    self._channels[method.startswith(ADMIN)],
                    _unary,
                    path_of(method),
                    [draw_page(rng, method).SerializeToString()],
                )
        method = rng.choice(METHODS)
        sent = _in_a_hurry(method, draw_request(rng, method, rng.choice(USERS), self._seen))
        channel = self._channels[method.startswith(ADMIN)]
        return channel, _first if method == "WatchCart" else _unary, path_of(method), [sent]

    async def _call(self, channel: grpc.aio.Channel, kind: Kind, path: str, sent: list[bytes]) -> None:
        story = f"{path} {[each.hex() if len(each) < 5000 else len(each) for each in sent]}"
        try:
            async with asyncio.timeout(HANGS_AFTER + 5):
                replies = await kind(channel, path)(sent, _draw_metadata(self._rng))
        except TimeoutError:
            raise AssertionError(f"{story} hangs") from None
        except grpc.aio.AioRpcError as error:
            self._check(error, path, sent, story)
            return
        self.ended["OK"] += 1
        for reply in replies:
            self._read(path, reply)

    def _check(self, error: grpc.aio.AioRpcError, path: str, sent: list[bytes], story: str) -> None:
        code = error.code().name
        self.ended[code] += 1
        if path in MISSING:
            assert code == "UNIMPLEMENTED", f"{story}: {error!r}"
            return
        assert code in ALLOWED, f"{story}: {error!r}"
        if code == "RESOURCE_EXHAUSTED" and max(map(len, sent)) > LONG:
            return
        refusal = to_refusal(error)
        assert refusal.code == code, story
        assert refusal.info.reason, story
        assert refusal.message, story

    def _read(self, path: str, reply: bytes) -> None:
        """Remember the texts of a reply, to use them in requests."""
        method = path.rpartition("/")[2]
        for name in (method, f"{ADMIN}/{method}"):
            if name in METHODS and path_of(name) == path:
                kind: Descriptor = descriptor_of(name).output_type
                for field, text in texts_in(GetMessageClass(kind).FromString(reply)):
                    self._seen[field].append(text)


def _unary(channel: grpc.aio.Channel, path: str) -> Any:
    async def call(sent: list[bytes], metadata: Any) -> list[bytes]:
        unary: Any = channel.unary_unary(path)
        return [await unary(sent[0], timeout=HANGS_AFTER, metadata=metadata)]

    return call


def _first(channel: grpc.aio.Channel, path: str) -> Any:
    """A stream of which only the first message is read."""

    async def call(sent: list[bytes], metadata: Any) -> list[bytes]:
        begin: Any = channel.unary_stream(path)
        stream = begin(sent[0], timeout=HANGS_AFTER, metadata=metadata)
        first = await stream.read()
        stream.cancel()
        return [] if first is grpc.aio.EOF else [first]

    return call


def _exchange(channel: grpc.aio.Channel, path: str) -> Any:
    async def call(sent: list[bytes], metadata: Any) -> list[bytes]:
        stream: Any = channel.stream_stream(path)(timeout=HANGS_AFTER, metadata=metadata)
        replies = []
        # One at a time: if the server ends the call during a write, gRPC's client hides its status.
        for message in sent:
            await stream.write(message)
            replies.append(await stream.read())
        await stream.done_writing()
        replies.append(await stream.read())
        return [reply for reply in replies if reply is not grpc.aio.EOF]

    return call


def _draw_reflection(rng: random.Random) -> bytes:
    kind = reflection_pb2.ServerReflectionRequest
    extension = reflection_pb2.ExtensionRequest(
        containing_type=rng.choice(SYMBOLS), extension_number=rng.choice((0, -1, 1, 2**31 - 1))
    )
    symbol = draw_text(rng, "symbol", {"symbol": SYMBOLS}).decode(errors="ignore")
    request = rng.choice(
        (
            kind(list_services="*"),
            kind(file_by_filename=rng.choice((*FILES, symbol))),
            kind(file_containing_symbol=rng.choice((*SYMBOLS, symbol))),
            kind(file_containing_extension=extension),
            kind(all_extension_numbers_of_type=rng.choice((*SYMBOLS, symbol))),
            kind(host=symbol),
        )
    )
    sent: bytes = request.SerializeToString()
    return rng.choice((sent, sent, sent + encode(rng, REFLECTION), change_bytes(rng, sent)))


def _draw_metadata(rng: random.Random) -> list[tuple[str, str | bytes]]:
    values = ("", "x", "Bearer ", "Bearer a.b.c", "Bearer " + "A" * 3000, "users/alice", "1e9", "-1", "~" * 200)
    keys = ("authorization", "x-forwarded-for", "x-forwarded-user", "x-request-id", "grpc-foo", "content-language")
    drawn: list[tuple[str, str | bytes]] = [
        (rng.choice(keys), rng.choice(values)) for _ in range(rng.choice((0, 0, 2)))
    ]
    if rng.randrange(8) == 7:
        drawn.append(("trace-bin", rng.randbytes(rng.choice((0, 1, 100)))))
    return drawn


def _in_a_hurry(method: str, sent: bytes) -> bytes:
    """The request with a max_wait below a second, if it had a longer one that is valid."""
    request = request_of(method)
    field: FieldDescriptor | None = request.DESCRIPTOR.fields_by_name.get("max_wait")
    try:
        request.ParseFromString(sent)
    except DecodeError:
        return sent
    if field is None or not request.HasField("max_wait") or not 0 < request.max_wait.seconds <= 60:
        return sent
    request.max_wait.Clear()
    message: Message = request
    return message.SerializeToString()


class Memory:
    """The resident memory of a program, in bytes, since its last `mark`."""

    def __init__(self, program: Program) -> None:
        self._process = psutil.Process(program.pid)
        self._before = 0

    def mark(self) -> None:
        self._before = self._process.memory_info().rss

    @property
    def growth(self) -> int:
        resident: int = self._process.memory_info().rss
        return resident - self._before


class Siege:
    """A server with a simulated Reservation API, and requests to it, in the folder of `programs`."""

    def __init__(self, programs: Programs, database_url: str) -> None:
        self._programs = programs
        self._database_url = database_url
        self.ended: Counter[str] = Counter()
        self.growth = 0

    async def run(self, warm_up: int, count: int, seed: int) -> None:
        """Send `warm_up` and then `count` requests. Raises AssertionError for the first call that ends as none may.

        `ended` counts how the calls ended. `growth` is the growth of the server's memory after the warm-up.
        """
        migrated = self._programs.start("migrate", database_url=self._database_url)
        assert await migrated.ended(60) == 0
        simulated = await self._programs.simulate("--latency", "0")
        program = self._programs.start(
            "serve",
            listen="127.0.0.1:0",
            admin_listen="127.0.0.1:0",
            database_url=self._database_url,
            reservation_url=simulated.url,
        )
        addresses = (await program.says(LISTENS))[1], (await program.says(OPERATORS))[1]
        async with AsyncExitStack() as stack:
            callers, operators = [
                await stack.enter_async_context(grpc.aio.insecure_channel(each)) for each in addresses
            ]
            sender = Sender(callers, operators, random.Random(seed))
            await sender.send(warm_up)
            memory = Memory(program)
            memory.mark()
            await sender.send(count)
            self.ended, self.growth = sender.ended, memory.growth
            # It still answers.
            await _unary(callers, path_of("AddItem"))([encoded_right("AddItem", "users/last")], [])
        faults = [line for line in self._programs.complaints() if "ALARM" not in line]
        assert not faults, faults[:20]
