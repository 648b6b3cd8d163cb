"""Programs are started while gRPC is busy in this process: its fork handlers could crash a child before its exec."""

import os

# Read when grpc is imported, so before anything else.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
