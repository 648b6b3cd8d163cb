"""Whether OpenTelemetry is configured, by its standard variables OTEL_*, and what metrics and traces share of it.

A signal is exported if OTEL_EXPORTER_OTLP_ENDPOINT or its own variant of that variable is set, or if its exporter is,
such as OTEL_TRACES_EXPORTER; unless OTEL_SDK_DISABLED or the exporter `none` forbids it. The SDK reads all other
variables itself.
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
_EXPORTERS: Final[Mapping[Signal, tuple[str, ...]]] = {
    "metrics": ("otlp", "none"),
    "traces": ("otlp", "console", "none"),
}


class OtelError(Exception):
    """OpenTelemetry is configured and cannot be used. The text is one line that names the variable at fault."""


def is_exported(signal: Signal, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether `signal` is to be exported. Raises as `find_exporter` does."""
    return find_exporter(signal, environment) != "none"


def find_exporter(signal: Signal, environment: Mapping[str, str] = os.environ) -> str:
    """Return the exporter of `signal`: `otlp`, `none`, or `console`, which only traces have.

    Raises OtelError for another one, or if the extra `otel` is not installed.
    """
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    asking = (variable, f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    asks = next((name for name in asking if environment.get(name, "").strip()), None)
    if asks is None or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "none"
    exporter = environment.get(variable, "").strip().lower() or "otlp"
    if exporter not in _EXPORTERS[signal]:
        raise OtelError(f"{variable}: must be {' or '.join(_EXPORTERS[signal])}")
    if exporter != "none" and (find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None):
        raise OtelError(f"{asks}: OpenTelemetry is not installed; run `pip install 'cart-grpc[otel]'`")
    return exporter


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
