"""As `wire`, with identities: TLS, tokens of several users, and a service with a certificate."""

import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from tests.access.guarded import Files
from tests.authentication.issuer import AUDIENCE, ISSUER, make_token
from tests.fuzz.calls import USERS
from tests.fuzz.wire import LAST, Door, Siege
from tests.processes.harness import LISTENS, Program, Programs

SERVICES: Final = re.compile(r"^cart-grpc listens for services on \S+:(\d+)$", re.MULTILINE)


class GuardedSiege(Siege):
    """A server whose callers need a token or a certificate. The files are in `folder`."""

    def __init__(self, programs: Programs, database_url: str, folder: Path) -> None:
        super().__init__(programs, database_url)
        self._files = Files(folder)

    def settings(self) -> dict[str, str]:
        folder = self._files.folder
        return {
            "service_listen": "127.0.0.1:0",
            "health_listen": "127.0.0.1:0",
            "tls_cert_file": f"{folder}/server.pem",
            "tls_key_file": f"{folder}/server.key",
            "client_ca_file": f"{folder}/callers.pem",
            "services": '{"web.example": ["carts.read", "carts.write", "carts.act-as"]}',
            "token_keys": f"{folder}/keys.json",
            "token_issuer": ISSUER,
            "token_audience": AUDIENCE,
        }

    async def open_doors(self, stack: AsyncExitStack, program: Program) -> Sequence[Door]:
        port = int((await program.says(LISTENS))[1].rpartition(":")[2])
        service_port = int((await program.says(SERVICES))[1])
        tokens = {user: make_token(user.partition("/")[2], expires_in=86_400) for user in (*USERS, LAST)}
        users = await stack.enter_async_context(self._files.open(port))
        web = await stack.enter_async_context(self._files.open(service_port, self._files.web()))
        return [Door(users, tokens, needs_identity=True), Door(web, needs_identity=True)]
