"""The services of the compose file without a container engine: the same commands, settings, files and health checks.

Each service gets a loopback address of its own, so every port is the one that the file names. The name of a service
becomes its address, and a secret's path that of a temporary file.
"""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deployment.compose import FOLDER, is_ours, services
from tests.deployment.test_image import read_dockerfile
from tests.postgres import PostgresServer
from tests.processes.harness import Program, Programs

# Shorter than in the file, so that the test takes a third of the time. Their relation stays the same.
FASTER = {"CART_LAME_DUCK": "2s"}
FASTER_CHECKS = ("inter 1s", "inter 200ms"), ("timeout check 2s", "timeout check 1s")


LISTENS = re.compile(r"listens on \S+")


class Composed:
    """The services, and how to start each of them. `password` is the content of the secret."""

    def __init__(self, programs: Programs, postgres: PostgresServer, password: Path) -> None:
        self.services = services()
        self._programs = programs
        self._postgres = postgres
        self._password = password
        block = 1 + os.getpid() % 250
        self.addresses = {name: f"127.{block}.17.{number}" for number, name in enumerate(self.services, 1)}
        self.running: dict[str, Program] = {}

    def here(self, name: str, text: str) -> str:
        """Replace what means something else outside the container of the service `name`."""
        text = re.sub(r"\b(0\.0\.0\.0|127\.0\.0\.1)\b", self.addresses[name], text)
        text = text.replace("/run/secrets/database-password", str(self._password))
        text = text.replace("postgresql:5432", f"127.0.0.1:{self._postgres.port}")
        for other, address in self.addresses.items():
            text = re.sub(rf"(?<![\w.-]){other}:(?=\d)", f"{address}:", text)
        return text

    def environment(self, name: str) -> dict[str, str]:
        """Return the variables of one of our services: those of the image, then those of the file."""
        _, stage = read_dockerfile()
        image = dict(re.findall(r"(CART_\w+)=(\S+)", stage.only("ENV")))
        given: dict[str, str] = self.services[name].get("environment", {})
        return {variable: self.here(name, value) for variable, value in {**image, **given, **FASTER}.items()}

    def start(self, name: str) -> Program:
        """Start one of our services with the command of the file, or else of the image."""
        service = self.services[name]
        assert is_ours(service)
        program, *arguments = service.get("command") or ["cart-grpc", "serve"]
        assert program == "cart-grpc"
        arguments = [self.here(name, argument) for argument in arguments]
        arguments = [one.replace("/var/lib/cart-grpc", str(self._programs.folder)) for one in arguments]
        settings = {key.removeprefix("CART_").lower(): value for key, value in self.environment(name).items()}
        self.running[name] = self._programs.start(*arguments, **settings)
        return self.running[name]

    async def until_healthy(self, name: str) -> None:
        """Run the health check of the file, or else of the image, until it succeeds."""
        service = self.services[name]
        _, *command = service["healthcheck"]["test"] if "healthcheck" in service else ("CMD", "cart-grpc", "health")
        if name == "postgresql":
            command = [*command, f"--port={self._postgres.port}"]
        else:
            command = [self.here(name, argument) for argument in command]
        places = {"cart-grpc": [sys.executable, "-m", "cart_grpc"], "python": [sys.executable]}
        command = [*places.get(command[0], command[:1]), *command[1:]]
        if name in self.running:
            # A check takes a second of CPU, so none runs in vain.
            await self.running[name].says(LISTENS)
        deadline = time.monotonic() + 30
        while not await self._succeeds(command, name):
            assert time.monotonic() < deadline, f"{name} is not healthy"

    async def _succeeds(self, command: list[str], name: str) -> bool:
        environment = {**os.environ, **self.environment(name)} if is_ours(self.services[name]) else None
        null = asyncio.subprocess.DEVNULL
        check = await asyncio.create_subprocess_exec(*command, env=environment, stdout=null, stderr=null)
        return await check.wait() == 0

    async def stop(self, name: str) -> int:
        """Stop a service as an engine does: by SIGTERM, and within its `stop_grace_period`."""
        self.running[name].send(signal.SIGTERM)
        return await self.running[name].ended(float(self.services[name]["stop_grace_period"].removesuffix("s")))

    @contextmanager
    def proxy(self) -> Iterator[str]:
        """Run the proxy with its own configuration, and yield its address."""
        text = self.here("proxy", (FOLDER / "haproxy.cfg").read_text())
        address = f"{self.addresses['proxy']}:50051"
        for old, new in (*FASTER_CHECKS, ("bind :50051", f"bind {address}")):
            assert old in text
            text = text.replace(old, new)
        file = self._programs.folder / "haproxy.cfg"
        file.write_text(text)
        program = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        assert program, "HAProxy is not installed: make debian installs it"
        with (
            file.with_suffix(".log").open("wb") as log,
            subprocess.Popen([program, "-db", "-f", file], stdout=log, stderr=log) as process,
        ):
            try:
                yield address
            finally:
                process.kill()
