"""Random calls to a real server, and how each of them may end."""

import asyncio
import random
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import grpc
import psutil
from google.protobuf.message_factory import GetMessageClass

from tests.fuzz.calls import HANGS_AFTER, MISSING, USERS, Drawn, Metadata, draw_call, draw_metadata, unary
from tests.fuzz.requests import encoded_right
from tests.fuzz.targets import texts_in
from tests.processes.harness import LISTENS, Program, Programs
from tests.processes.test_workers import OPERATORS
from tests.rpc.refusal import to_refusal
from tests.rpc.right import descriptor_of, path_of

AT_ONCE: Final = 16
PARTS: Final = 4
# Longer requests may be refused by gRPC itself, without details.
LONG: Final = 60_000
# A caller's fault, or the state of the carts; nothing that says that the server failed.
ALLOWED: Final = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "ABORTED", "RESOURCE_EXHAUSTED"}
)
# Nothing but the last call is about this user.
LAST: Final = "users/last"
UNIDENTIFIED: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})


@dataclass(frozen=True)
class Door:
    """A port of callers. With `tokens`, by the name of the user, its callers need one."""

    channel: grpc.aio.Channel
    tokens: Mapping[str, str] = field(default_factory=dict)
    needs_identity: bool = False


class Sender:
    """Sends calls, drawn from `rng`, to the ports of callers and operators, and checks how each of them ends."""

    def __init__(self, doors: Sequence[Door], operators: Door, rng: random.Random) -> None:
        self._doors = doors
        self._operators = operators
        self._rng = rng
        self._seen: defaultdict[str, deque[str]] = defaultdict(partial(deque, maxlen=100))
        self.ended: Counter[str] = Counter()

    async def send(self, count: int) -> None:
        """Make `count` calls, some at a time. Raises AssertionError for the first that ends as none may."""
        left = iter(range(count))

        async def work() -> None:
            for _ in left:
                await self._call()

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())

    async def _call(self) -> None:
        rng = self._rng
        user = rng.choice(USERS)
        drawn = draw_call(rng, user, self._seen)
        door = self._operators if drawn.is_for_operators else rng.choice(self._doors)
        metadata, owner = self._identify(door, user)
        try:
            async with asyncio.timeout(HANGS_AFTER + 5):
                replies = await drawn.kind(door.channel, drawn.path)(drawn.messages, metadata)
        except TimeoutError:
            raise AssertionError(f"{drawn} hangs") from None
        except grpc.aio.AioRpcError as error:
            self._check(error, drawn, door)
            return
        self.ended["OK"] += 1
        if drawn.method:
            for reply in replies:
                self._read(drawn, reply, owner)

    def _identify(self, door: Door, user: str) -> tuple[Metadata, str]:
        """Return metadata for a call about `user`, and whose token is in it."""
        rng, drawn = self._rng, draw_metadata(self._rng)
        if not door.tokens or rng.randrange(8) == 7:
            return drawn, ""
        owner = rng.choice((user, user, user, rng.choice(USERS)))
        drawn = [(key, value) for key, value in drawn if key != "authorization"]
        return [*drawn, ("authorization", f"Bearer {door.tokens[owner]}")], owner

    def _check(self, error: grpc.aio.AioRpcError, drawn: Drawn, door: Door) -> None:
        code = error.code().name
        self.ended[code] += 1
        if drawn.path in MISSING or ("reflection" in drawn.path and door.needs_identity):
            assert code == "UNIMPLEMENTED", f"{drawn}: {error!r}"
            return
        assert code in ALLOWED or (door.needs_identity and code in UNIDENTIFIED), f"{drawn}: {error!r}"
        if code == "RESOURCE_EXHAUSTED" and max(map(len, drawn.messages)) > LONG:
            return
        refusal = to_refusal(error)
        assert refusal.code == code, drawn
        assert refusal.info.reason, drawn
        assert refusal.message, drawn

    def _read(self, drawn: Drawn, reply: bytes, owner: str) -> None:
        """Remember the texts of a reply, to use them in requests. A user with a token sees only their own resources."""
        kind = GetMessageClass(descriptor_of(drawn.method).output_type)
        for name, text in texts_in(kind.FromString(reply)):
            # Not merged_into: a service may merge the cart of one user into that of another.
            if owner and name in ("name", "cart", "checkout"):
                assert text.startswith(f"{owner}/") or not text, f"{drawn}: {text}"
            self._seen[name].append(text)


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
    """A server with a simulated Reservation API, and calls to it, in the folder of `programs`."""

    def __init__(self, programs: Programs, database_url: str) -> None:
        self._programs = programs
        self._database_url = database_url
        self.ended: Counter[str] = Counter()
        self.growth: list[int] = []

    async def run(self, warm_up: int, count: int, seed: int) -> None:
        """Make `warm_up` and then `count` calls. Raises AssertionError for the first that ends as none may.

        `ended` counts how the calls ended. `growth` is that of the server's memory since the warm-up, in bytes, after
        each quarter of the calls.
        """
        migrated = self._programs.start("migrate", database_url=self._database_url)
        assert await migrated.ended(60) == 0
        simulated = await self._programs.simulate("--latency", "0")
        settings = {"database_url": self._database_url, "reservation_url": simulated.url, **self.settings()}
        program = self._programs.start("serve", listen="127.0.0.1:0", admin_listen="127.0.0.1:0", **settings)
        async with AsyncExitStack() as stack:
            doors = await self.open_doors(stack, program)
            operators = await open_plainly(stack, (await program.says(OPERATORS))[1])
            sender = Sender(doors, operators, random.Random(seed))
            await sender.send(warm_up)
            memory = Memory(program)
            memory.mark()
            for _ in range(PARTS):
                await sender.send(count // PARTS)
                self.growth.append(memory.growth)
            self.ended = sender.ended
            # It still answers.
            token = doors[0].tokens.get(LAST, "")
            identity = [("authorization", f"Bearer {token}")] if token else []
            await unary(doors[0].channel, path_of("AddItem"))([encoded_right("AddItem", LAST)], identity)
        faults = [line for line in self._programs.complaints() if "ALARM" not in line]
        assert not faults, faults[:20]

    def settings(self) -> dict[str, str]:
        """Further settings of the server."""
        return {}

    async def open_doors(self, stack: AsyncExitStack, program: Program) -> Sequence[Door]:
        """Connect to the ports of callers."""
        return [await open_plainly(stack, (await program.says(LISTENS))[1])]


async def open_plainly(stack: AsyncExitStack, address: str) -> Door:
    """Connect to a port without TLS."""
    return Door(await stack.enter_async_context(grpc.aio.insecure_channel(address)))
