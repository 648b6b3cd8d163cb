"""Whether OpenTelemetry is configured: by its standard variables OTEL_*, one signal at a time.

A signal is exported if OTEL_EXPORTER_OTLP_ENDPOINT or its own variant of that variable is set, or if its exporter is,
such as OTEL_TRACES_EXPORTER; unless OTEL_SDK_DISABLED or the exporter `none` forbids it. The SDK reads all other
variables itself.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final, Literal

Signal = Literal["metrics", "traces"]
_EXPORTERS: Final = ("otlp", "console", "none")
_PROTOCOLS: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


class OtelError(Exception):
    """OpenTelemetry is configured and cannot be used. The text is one line that names the variable at fault."""


def is_exported(signal: Signal, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether `signal` is to be exported. Raises OtelError if the extra `otel` is not installed."""
    return find_exporter(signal, environment) != ""


def find_exporter(signal: Signal, environment: Mapping[str, str] = os.environ) -> str:
    """Return the entry point of the signal's exporter, "" if it is not to be exported.

    Raises OtelError if a variable has another value than these, or if the extra `otel` is not installed.
    """
    own, all_signals = f"OTEL_EXPORTER_OTLP_{signal.upper()}", "OTEL_EXPORTER_OTLP"
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    asking = (variable, f"{own}_ENDPOINT", f"{all_signals}_ENDPOINT")
    asks = next((name for name in asking if environment.get(name, "").strip()), None)
    if asks is None or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    exporter = environment.get(variable, "").strip().lower() or "otlp"
    if exporter not in _EXPORTERS:
        raise OtelError(f"{variable}: must be otlp, console or none")
    if exporter == "none":
        return ""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise OtelError(f"{asks}: OpenTelemetry is not installed; run `pip install 'cart-grpc[otel]'`")
    if exporter == "console":
        return exporter
    name = next((each for each in (f"{own}_PROTOCOL", f"{all_signals}_PROTOCOL") if environment.get(each)), "")
    protocol = environment[name].strip().lower() if name else "grpc"
    if protocol not in _PROTOCOLS:
        raise OtelError(f"{name}: must be grpc or http/protobuf")
    return _PROTOCOLS[protocol]
