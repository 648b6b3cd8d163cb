"""How metrics and traces leave the process: the port for Prometheus, and OTLP. What is measured is in the other rooms.

`cart_grpc.metrics` has the instruments, `cart_grpc.otel` says whether OpenTelemetry is configured.
"""
