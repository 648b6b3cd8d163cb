"""Whether OpenTelemetry is configured, by its standard variables OTEL_*, and what metrics and traces share of it.

A signal is exported if OTEL_EXPORTER_OTLP_ENDPOINT or its own variant of that variable is set, unless
OTEL_SDK_DISABLED or its exporter (`none`) forbids it. The SDK reads all other variables itself.
"""

import functools
import os
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

Signal = Literal["metrics", "traces"]
Protocol = Literal["grpc", "http/protobuf"]
SERVICE_NAME: Final = "cart-grpc"


class OtelError(Exception):
    """OpenTelemetry is configured and cannot be used. The text is one line that names the variable at fault."""


def is_exported(signal: Signal, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether `signal` is to be exported by OTLP. Raises OtelError if the extra `otel` is not installed."""
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
    endpoint = next((name for name in (own, "OTEL_EXPORTER_OTLP_ENDPOINT") if environment.get(name)), None)
    if endpoint is None or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    exporter = environment.get(variable, "").strip().lower() or "otlp"
    if exporter not in ("otlp", "none"):
        raise OtelError(f"{variable}: must be otlp or none")
    if exporter == "none":
        return False
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise OtelError(f"{endpoint}: OpenTelemetry is not installed; run `pip install 'cart-grpc[otel]'`")
    return True


def find_protocol(signal: Signal, environment: Mapping[str, str] = os.environ) -> Protocol:
    """Return the transport of `signal`, by default OTLP's own default: protobuf over HTTP. Raises OtelError."""
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        match environment.get(variable, "").strip().lower():
            case "":
                continue
            case "grpc":
                return "grpc"
            case "http/protobuf":
                return "http/protobuf"
            case _:
                raise OtelError(f"{variable}: must be grpc or http/protobuf")
    return "http/protobuf"


@functools.cache
def resource() -> "Resource":
    """Return the attributes of this process. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override them."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415 - an extra, and slow to import

    ours = {
        "service.name": SERVICE_NAME,
        "service.version": version("cart-grpc"),
        "service.instance.id": str(uuid.uuid4()),
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())
