"""The store, as the rest of the house sees it."""

from typing import TypeVar

from cart_grpc.carts.calls import NewId
from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.commands.command import Command
from cart_grpc.commands.direct import Claim, ExtendLeases, Pause, Ping, Purge, Resume, ReturnClaims
from cart_grpc.commands.expire import Expire
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.record import OpenAttempt, Recorded, RecordOutcome
from cart_grpc.names import CartKey
from cart_grpc.protocol.reservation import Reservation
from cart_grpc.store.change_notifier import ChangeNotifier
from cart_grpc.store.engine import Engine
from cart_grpc.store.failures import CommitFailed, translate_failures
from cart_grpc.store.read.cart_watches import CartWatches
from cart_grpc.store.read.operator_reads import OperatorReads
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.write_queue import WriteQueue

R = TypeVar("R")


class Store:
    """Carts and reservations in one database: grouped writes, reads beside them, and hints of changes."""

    def __init__(self, engine: Engine, new_id: NewId, *, queue_size: int) -> None:
        self._engine = engine
        self.notifier = ChangeNotifier()
        self.reads = Reads(engine, queue_size)
        self.operator_reads = OperatorReads(engine)
        self.watches = CartWatches(self.reads, self.notifier, polls=engine.is_shared)
        self._write_queue = WriteQueue(engine, self.notifier, new_id, queue_size)

    async def start(self) -> None:
        """Open the database for writing. Raises what the database raises."""
        await self._write_queue.start()

    async def close(self) -> None:
        """Refuse new writes and make those that wait durable. The engine stays its owner's to close."""
        await self.reads.close()
        await self._write_queue.close()

    async def mutate(self, mutation: Mutation) -> bytes:
        """The reply's bytes, once the change is durable. Raises CallRefused.

        A caller who is cancelled leaves a commit that is under way untouched.
        """
        reply: bytes = await self._write_queue.submit(mutation)
        return reply

    async def claim(self, claim: Claim) -> list[Reservation]:
        """The reservations that are now ours, their claim durable."""
        claimed: list[Reservation] = await self._write_queue.submit_background(claim)
        return claimed

    async def open_attempt(self, attempt: OpenAttempt) -> int | None:
        """Until when the attempt that is now open, durably, can take effect; None where none may be made."""
        until: int | None = await self._write_queue.submit_background(attempt)
        return until

    async def record(self, record: RecordOutcome) -> Recorded:
        """Record how a call ended."""
        recorded: Recorded = await self._write_queue.submit_background(record)
        return recorded

    async def expire(self, cart: CartKey) -> bool:
        """End the cart if it was left alone for longer than its ttl. Returns whether it was."""
        expired: bool = await self._write_queue.submit_background(Expire(cart))
        return expired

    async def purge(self, purge: Purge) -> int:
        """Delete what nobody needs any more. Returns how many rows went."""
        deleted: int = await self._write_queue.submit_background(purge)
        return deleted

    async def intervene(self, command: Command[R]) -> R:
        """What an operator has decided; it does not queue behind the callers. Raises CallRefused."""
        answer: R = await self._write_queue.submit_background(command)
        return answer

    async def pause(self, command: Pause | Resume) -> None:
        """Stop claims, by whatever process, or let them go on."""
        await self._write_queue.submit_background(command)

    async def update_leases(self, command: ExtendLeases | ReturnClaims) -> None:
        """ExtendLeases claims or hand them back."""
        await self._write_queue.submit_background(command)

    async def ping(self) -> None:
        """Raises DatabaseUnavailable where the database does not answer the writer, or takes no writes."""
        try:
            with translate_failures():
                writable = await self._engine.transact(self._engine.dialect.is_writable)
        except CommitFailed as failure:
            # There was nothing to commit, but the connection has broken.
            raise DatabaseUnavailable from failure
        if not writable:
            raise DatabaseUnavailable
        if self._write_queue.failed:
            # A full disk is only noticed by writing to it.
            await self._write_queue.submit_background(Ping())
