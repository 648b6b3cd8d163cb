"""The standard variables of OpenTelemetry: which of them switch a signal on, and the errors of the others."""

import pytest

from cart_grpc import otel
from cart_grpc.otel import OtelError, find_exporter, find_protocol, is_exported

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("variables", "exporter"),
    [
        ({}, "none"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4317"}, "none"),
        ({"OTEL_SERVICE_NAME": "shop"}, "none"),
        (ENDPOINT, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, "none"),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, "none"),
    ],
)
def test_a_variable_switches_traces_on(variables: dict[str, str], exporter: str) -> None:
    assert find_exporter("traces", variables) == exporter
    assert is_exported("traces", variables) is (exporter != "none")


@pytest.mark.parametrize("signal", ["metrics", "traces"])
def test_another_exporter_is_refused_by_the_name_of_its_variable(signal: otel.Signal) -> None:
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    with pytest.raises(OtelError, match=f"^{variable}: must be otlp or "):
        find_exporter(signal, {variable: "jaeger"})


def test_another_protocol_is_refused_by_the_name_of_its_variable() -> None:
    variables = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}
    assert find_protocol("metrics", variables) == "grpc"
    with pytest.raises(OtelError, match=r"^OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: must be grpc or http/protobuf$"):
        find_protocol("traces", variables)


def test_missing_packages_are_refused_by_the_name_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "find_spec", lambda _: None)
    with pytest.raises(OtelError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT: OpenTelemetry is not installed; run"):
        find_exporter("traces", ENDPOINT)
    assert find_exporter("traces", {}) == "none"
