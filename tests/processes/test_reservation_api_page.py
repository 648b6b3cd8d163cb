"""Runs the commands of docs/reservation-api.md as written, each block in a terminal of its own."""

import asyncio
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.pem import PemFolder, issue, new_authority
from tests.postgres import fast_folder
from tests.processes.harness import Program, Programs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reservation-api.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIMULATES = re.compile(r"^the simulator listens on grpcs?://\S+:(\d+) and https?://\S+:(\d+)$", re.MULTILINE)
LISTENS = re.compile(r"^listening on http://127\.0\.0\.1:(\d+)$")
PASSED = re.compile(r"^\S+: PASSED: no tested rule is broken$", re.MULTILINE)


class Partner:
    """Somebody who types the commands. `ports` are those that the servers got instead of their usual ones."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self.ports: dict[str, str] = {}
        self.probed: list[str] = []

    async def type(self, command: str, settings: dict[str, str]) -> None:
        """Run one command. A server goes on in the background."""
        name, *arguments = shlex.split(command)
        if name == "export":
            settings |= {
                key.lower().removeprefix("cart_"): value for key, _, value in (e.partition("=") for e in arguments)
            }
        elif arguments[0] == "simulate":
            listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
            said = await self._programs.start(*arguments, *listen, **settings).says(SIMULATES)
            self.ports |= {"50061": said[1], "50062": said[2]}
        else:
            assert (name, arguments[0]) == ("cart-grpc", "probe")
            url, usual = arguments[1], re.search(r":(\d+)", arguments[1])
            assert usual
            arguments[1] = url.replace(usual[1], self.ports[usual[1]])
            await self._probe(self._programs.start(*arguments, **settings))
            self.probed.append(url)

    async def _probe(self, program: Program) -> None:
        status = await program.ended(60)
        assert status == 0, program.output + program.errors
        assert PASSED.search(program.output), program.output


@asynccontextmanager
async def example(command: str) -> AsyncIterator[str]:
    """Run the example as `command` says; yields its port. It syncs each decision, so its file is in memory."""
    name, *arguments = shlex.split(command)
    assert name == "python"
    folder = tempfile.mkdtemp(dir=fast_folder())
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, "--listen", "127.0.0.1:0", "--database", f"{folder}/stock.db",
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout
        said = LISTENS.match((await process.stdout.readline()).decode())
        assert said
        yield said[1]
    finally:
        process.kill()
        await process.wait()
        shutil.rmtree(folder)


async def test_the_commands_of_the_page_start_the_servers_and_every_probe_passes(programs: Programs) -> None:
    programs.preloaded = True
    authority, files = new_authority(), PemFolder(programs.folder)
    files.write_authorities("ca.pem", authority)
    files.write_identity("api", issue(authority))
    files.write_identity("cart", issue(authority, "cart.example"))
    for name in ("token", "api-tokens"):
        files.write(name, "secret\n")
    partner = Partner(programs)
    blocks = [[line.removeprefix("$ ") for line in block.splitlines()] for block in BLOCK.findall(PAGE)]
    [[starts], *rest] = blocks
    async with example(starts) as port:
        partner.ports["8080"] = port
        for block in rest:
            settings: dict[str, str] = {}
            for command in block:
                await partner.type(command, settings)
    schemes = [url.partition("://")[0] for url in partner.probed]
    assert schemes == ["http", "grpc", "http", "grpcs", "basic+http"]
