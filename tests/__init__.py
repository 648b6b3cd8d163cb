"""Environment variables that the tests and the programs they start need."""

import os

# The tests start programs while gRPC has threads in this process. gRPC's fork handlers could crash a child before its
# exec. gRPC reads this variable when it is imported, so it is set before any other import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
# The tests start the command a hundred times. Without cached bytecode, each start compiles every import again and takes
# three times as long.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
