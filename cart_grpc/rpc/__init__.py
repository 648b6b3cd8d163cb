"""gRPC in: what callers say becomes values and rules, what was decided becomes messages."""
