"""The product with some of its work left out. `python -m benchmarks.part_server STAGE serve` is `cart-grpc serve`.

Each stage does all that the stage before does, and one part more. The difference of their CPU is what the part costs.
"""

import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import uuid_utils

from cart_grpc import __main__ as program
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.record import Recorded, RecordOutcome
from cart_grpc.commands.unit_of_work import UnitOfWork
from cart_grpc.protocol.reservation import Decision, Intent, Observed
from cart_grpc.reservation_api import api, grpc_api
from cart_grpc.rpc.cart_service import CartService
from cart_grpc.store.store import Store

# As long as the reply of an AddItem.
REPLY = b"\x0a\xbe\x02" + b"\x0a\xbb\x02" + b"0" * 315


def answer_at_once() -> None:
    """Answer every AddItem with the same bytes: only gRPC and the pipeline are left."""

    async def add_item(*_: Any) -> bytes:
        return REPLY

    CartService.AddItem = add_item  # type: ignore[assignment, method-assign]


def read_request() -> None:
    """Read and check the request, and answer with the same bytes."""

    async def mutate(*_: Any) -> bytes:
        return REPLY

    Store.mutate = mutate  # type: ignore[assignment, method-assign]


def decide() -> None:
    """Decide each AddItem on an empty database in memory, and encode its reply."""

    async def mutate(_: Store, mutation: Mutation) -> bytes:
        reply: bytes = mutation.run(UnitOfWork(), time.time_ns() // 1000, lambda: str(uuid_utils.uuid7()))
        return reply

    Store.mutate = mutate  # type: ignore[assignment, method-assign]


def reserve_in_place() -> None:
    """Let the reconciler answer its calls itself."""

    async def apply(_: Any, intent: Intent, **__: Any) -> Decision:
        return _hold(intent)

    async def apply_batch(_: Any, intents: Sequence[Intent], **__: Any) -> AsyncIterator[Any]:
        yield [api.Applied(position, _hold(intent)) for position, intent in enumerate(intents)]

    grpc_api.GrpcReservationApi.apply = apply  # type: ignore[assignment, method-assign]
    # Not in the first state that is measured.
    if hasattr(grpc_api.GrpcReservationApi, "apply_batch"):
        grpc_api.GrpcReservationApi.apply_batch = apply_batch  # type: ignore[assignment, method-assign]


def claim_only() -> None:
    """Claim each reservation and record nothing."""
    reserve_in_place()

    async def record(_: Store, record: RecordOutcome) -> Recorded:
        return Recorded(record.claimed, None)

    async def record_all(_: Store, records: Sequence[RecordOutcome]) -> Sequence[Recorded | Exception]:
        return [Recorded(record.claimed, None) for record in records]

    Store.record = record  # type: ignore[assignment, method-assign]
    Store.record_all = record_all  # type: ignore[assignment, method-assign]


def _hold(intent: Intent) -> Decision:
    expire_time = time.time_ns() // 1000 + intent.ttl_us
    return Decision(intent.reservation_id, intent.revision, Observed.HELD, intent.quantity, expire_time, "")


STAGES: dict[str, Callable[[], None]] = {
    "pipeline": answer_at_once,
    "request": read_request,
    "decide": decide,
    "claim": claim_only,
    "record": reserve_in_place,
}

if __name__ == "__main__":
    STAGES[sys.argv.pop(1)]()
    sys.exit(program.main())
