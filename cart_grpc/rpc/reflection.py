"""Server reflection in both versions, `grpc.reflection.v1` and `v1alpha`: their messages are the same on the wire.

grpcio-reflection has only v1alpha, but some clients ask only for v1 or try it first.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

V1ALPHA: Final = "grpc.reflection.v1alpha.ServerReflection"
V1: Final = "grpc.reflection.v1.ServerReflection"


def add_reflection(pipeline: Any, services: Iterable[str]) -> None:
    """Add both versions to a pipeline. They list `services` and themselves."""
    _define_v1()
    servicer = reflection.aio.ReflectionServicer((*services, V1, V1ALPHA))
    add: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add(servicer, _BothVersions(pipeline))


class _BothVersions:
    """Adds the handlers of v1alpha to a pipeline under both names."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Do nothing, as the pipeline does."""

    def add_registered_method_handlers(self, _: str, handlers: Mapping[str, Any]) -> None:
        for service in (V1, V1ALPHA):
            self._pipeline.add_registered_method_handlers(service, handlers)


def _define_v1() -> None:
    """Define v1 in the descriptor pool, so that it can describe itself: v1alpha under its other name."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(V1)
    except KeyError:
        alpha = FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
        pool.Add(text_format.Parse(text, FileDescriptorProto()))
