"""How metrics and traces leave the process: the port for Prometheus, and OTLP. The other rooms measure.

`cart_grpc.metrics` has the instruments, `cart_grpc.otel` says whether OpenTelemetry is configured.
"""
