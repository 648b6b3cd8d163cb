"""A terminal in which somebody types the commands of the documents as they are written."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.ports import free_port

# The ports in the documents. The tests use others, because several runs share the machine.
_PORTS = ("50051", "50052", "50053", "50061")
_ADDRESS = re.compile(rf"\b(127\.0\.0\.1|localhost):({'|'.join(_PORTS)})\b")
# Reads commands that end with a NUL, so that no command reads the next one as its input.
_SHELL = r"""
shopt -s expand_aliases
exec 3<&0 </dev/null 2>&1
while IFS= read -r -d '' command <&3; do
  eval "$command"
  printf '\nexit status %s\n\0' "$?"
done
"""
_SERVES = re.compile(r"^cart-grpc listens on \S+$", re.MULTILINE)
_SECONDS = 60.0


class Job(NamedTuple):
    """A command in the background, and the file with its output."""

    pid: int
    file: Path

    @property
    def output(self) -> str:
        return self.file.read_text(errors="replace")


class Terminal:
    """A shell in `folder`, where `.venv` is the environment of the tests. It uses ports of its own."""

    def __init__(self, shell: asyncio.subprocess.Process, folder: Path, ports: dict[str, str]) -> None:
        self._shell = shell
        self._folder = folder
        self._ports = ports
        self._count = 0

    async def type(self, command: str, status: int = 0) -> str:
        """Run a command, which must end with this exit status, and return all that it printed."""
        output, ended_with = await self._run(command)
        assert ended_with == status, f"{command}\nended with {ended_with}: {output}"
        return output

    async def start(self, command: str, says: re.Pattern[str] = _SERVES) -> Job:
        """Run a command, or the last one of a script, in the background. Returns when its output matches `says`."""
        self._count += 1
        file = self._folder / f"{self._count}.out"
        # The Reservation API of `dev` takes three seconds a call.
        options = "--simulator-listen 127.0.0.1:50061 --http-listen 127.0.0.1:0 --latency 200ms"
        command = re.sub(r"cart-grpc dev$", f"cart-grpc dev {options}", command)
        printed = await self.type(f"{command} >{file} 2>&1 &\necho $!")
        job = Job(int(printed.split()[-1]), file)
        async with asyncio.timeout(_SECONDS):
            while not (file.exists() and says.search(job.output)):
                await self.type(f"kill -0 {job.pid} || cat {file}")
                await asyncio.sleep(0.05)
        return job

    async def end(self, job: Job, by: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to a command in the background, and wait for its end."""
        await self.type(f"kill -{by.value} {job.pid}; wait {job.pid}; true")

    async def _run(self, command: str) -> tuple[str, int]:
        assert self._shell.stdin
        assert self._shell.stdout
        command = _ADDRESS.sub(lambda match: f"{match[1]}:{self._ports[match[2]]}", command)
        self._shell.stdin.write(command.encode() + b"\0")
        async with asyncio.timeout(_SECONDS):
            answer = (await self._shell.stdout.readuntil(b"\0")).decode()
        output, _, ended_with = answer.rstrip("\0\n").rpartition("\nexit status ")
        return output, int(ended_with)


@asynccontextmanager
async def opened_terminal(folder: Path) -> AsyncIterator[Terminal]:
    """Yield a terminal. At the end of the block, all that it started ends."""
    (folder / ".venv").symlink_to(sys.prefix)
    ports = {port: str(free_port()) for port in _PORTS}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CART", "OTEL_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # Enough for the widest table.
        "COLUMNS": "300",
        "CARTGRPC_ADDRESS": f"127.0.0.1:{ports['50051']}",
        "CART_LISTEN": f"127.0.0.1:{ports['50051']}",
        "CART_ADMIN_LISTEN": f"127.0.0.1:{ports['50052']}",
        "CART_LAME_DUCK": "0",
        "CART_HOUSEKEEPING_INTERVAL": "1",
        # After an outage that lasted, on a busy machine, the next attempt would come too late for a `--wait`.
        "CART_RESERVATION_BACKOFF_MAX": "1",
    }
    pipe = asyncio.subprocess.PIPE
    shell = await asyncio.create_subprocess_exec(
        *("bash", "--norc", "-c", _SHELL), stdin=pipe, stdout=pipe, cwd=folder, env=environment, start_new_session=True
    )
    try:
        yield Terminal(shell, folder, ports)
    finally:
        # The group of the session that began with the shell: its own processes only.
        os.killpg(shell.pid, signal.SIGKILL)
        await shell.wait()
