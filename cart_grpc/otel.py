"""Whether OpenTelemetry is configured: by its standard variables OTEL_*, one signal at a time.

A signal is exported if OTEL_EXPORTER_OTLP_ENDPOINT or its own variant of that variable is set, unless
OTEL_SDK_DISABLED or its exporter (`none`) forbids it. The SDK reads all other variables itself.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final, Literal

Signal = Literal["metrics", "traces"]
_EXPORTERS: Final = ("otlp", "none")


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
    if exporter not in _EXPORTERS:
        raise OtelError(f"{variable}: must be otlp or none")
    if exporter == "none":
        return False
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise OtelError(f"{endpoint}: OpenTelemetry is not installed; run `pip install 'cart-grpc[otel]'`")
    return True
