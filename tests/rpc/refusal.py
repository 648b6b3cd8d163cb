"""A refused call as the caller's program sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

from tests.service.conftest import Replica

M = TypeVar("M", bound=Message)
# Every gRPC client accepts this much metadata by default; with more, some calls end with RESOURCE_EXHAUSTED instead.
MAX_METADATA = 8192


@dataclass(frozen=True)
class Refusal:
    """The status of a refused call, with its details by type."""

    code: str
    message: str
    info: error_details_pb2.ErrorInfo
    details: Mapping[str, Message]

    @property
    def violations(self) -> dict[str, str]:
        """BadRequest: the reason for each invalid field."""
        bad = self.details.get("google.rpc.BadRequest")
        return (
            {}
            if not isinstance(bad, error_details_pb2.BadRequest)
            else {v.field: v.reason for v in bad.field_violations}
        )

    def detail(self, kind: type[M]) -> M:
        """The detail of type `kind`."""
        found = self.details.get(kind.DESCRIPTOR.full_name)
        assert isinstance(found, kind), f"no {kind.DESCRIPTOR.name} in {self}"
        return found


def to_refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Decode the status; fail if it has no details or exceeds the metadata that a caller accepts."""
    rich = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert rich is not None, f"{error.code()} without details: {error.details()}"
    size = sum(len(key) + len(value) + 32 for key, value in error.trailing_metadata() or ())
    assert size < MAX_METADATA, f"{size} bytes of metadata"
    details: dict[str, Message] = {}
    info = error_details_pb2.ErrorInfo()
    for packed in rich.details:
        kind = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])
        detail = kind()
        assert packed.Unpack(detail)
        if kind is error_details_pb2.ErrorInfo:
            info = detail
        else:
            details[packed.TypeName()] = detail
    assert info.domain == "cartgrpc.v1"
    return Refusal(code_pb2.Code.Name(code_pb2.Code.ValueType(rich.code)), rich.message, info, details)


async def call(replica: Replica, method: str, request: Any) -> Any:
    """Call a method by its name. Of a stream, return the first message."""
    answer = getattr(replica.stub, method)(request, timeout=20)
    if not isinstance(answer, grpc.aio.UnaryStreamCall):
        return await answer
    first = await answer.read()
    answer.cancel()
    return first


async def refuse(replica: Replica, method: str, request: Any) -> Refusal:
    """Call a method that must refuse the request."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(replica, method, request)
    return to_refusal(caught.value)
