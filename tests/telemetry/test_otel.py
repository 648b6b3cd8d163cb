"""The standard variables of OpenTelemetry: which of them switch a signal on, and what is wrong with others."""

import pytest

from cart_grpc import otel
from cart_grpc.otel import OtelError, find_exporter

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("variables", "exporter"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4317"}, ""),
        ({"OTEL_SERVICE_NAME": "shop"}, ""),
        (ENDPOINT, "otlp_proto_grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, "otlp_proto_grpc"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp_proto_grpc"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, ""),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "otlp_proto_http"),
        (
            {
                **ENDPOINT,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            },
            "otlp_proto_grpc",
        ),
    ],
)
def test_a_variable_switches_traces_on(variables: dict[str, str], exporter: str) -> None:
    assert find_exporter("traces", variables) == exporter


@pytest.mark.parametrize(
    "variables", [{"OTEL_TRACES_EXPORTER": "jaeger"}, {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}]
)
def test_another_value_is_refused_by_the_name_of_its_variable(variables: dict[str, str]) -> None:
    with pytest.raises(OtelError, match=f"^{list(variables)[-1]}: must be"):
        find_exporter("traces", variables)


def test_missing_packages_are_refused_by_the_name_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "find_spec", lambda _: None)
    with pytest.raises(OtelError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT: OpenTelemetry is not installed; run"):
        find_exporter("traces", ENDPOINT)
    assert find_exporter("traces", {}) == ""
