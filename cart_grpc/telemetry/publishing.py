"""Publishes the metrics of a registry: on the port for Prometheus and by OTLP, as far as configured."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prometheus_client import REGISTRY, CollectorRegistry

from cart_grpc.addresses import cannot_listen
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.otel import OtelError, is_exported
from cart_grpc.settings import Settings
from cart_grpc.startup import StartupError
from cart_grpc.telemetry.exposition import exposed

log = Log(__name__)


def measures(settings: Settings) -> bool:
    """Return whether anybody reads the metrics of this process. Raises StartupError."""
    try:
        return bool(settings.metrics_listen) or is_exported("metrics")
    except OtelError as error:
        if settings.compat:
            return False
        raise StartupError(str(error)) from None


def tolerate(settings: Settings, error: Exception) -> None:
    """Log that OpenTelemetry is not used, because of `error`, if the environment is a demo's. Else raises StartupError.

    A demo sets OTEL_* for containers with other SDKs.
    """
    if not settings.compat:
        raise StartupError(str(error)) from error.__cause__
    log(events.SETTING_IGNORED, "OTEL_* is ignored: %s", error)


@contextmanager
def publishing(settings: Settings, registry: CollectorRegistry = REGISTRY) -> Iterator[int]:
    """Publish the metrics of `registry` until the block ends. Yields the port for Prometheus, 0 if there is none.

    Raises StartupError.
    """
    with ExitStack() as stack:
        port = 0
        if settings.metrics_listen:
            try:
                port = stack.enter_context(exposed(settings.metrics_listen, registry))
            except OSError:
                raise StartupError(f"CART_METRICS_LISTEN: {cannot_listen(settings.metrics_listen)}") from None
        try:
            if is_exported("metrics"):
                # Imported here because it is an extra, and slow to import.
                from cart_grpc.telemetry.otlp_metrics import exporting  # noqa: PLC0415

                stack.enter_context(exporting(registry))
        except (OtelError, StartupError) as error:
            tolerate(settings, error)
        yield port
