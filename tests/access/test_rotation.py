"""Certificates and authorities are replaced while a server runs under load: no call fails."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
import trustme

from tests.access.guarded import WEB, Files, add, alices_token, running
from tests.pem import PemFolder, issue, new_authority

Write = Callable[[Files, trustme.LeafCert], None]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await holds():
            await asyncio.sleep(0.02)


async def shown(port: int) -> str:
    """The certificate that a port shows in a new handshake, as PEM."""
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))


def write_one_after_the_other(files: Files, certificate: trustme.LeafCert) -> None:
    files.write_identity("server", certificate)


def swap_a_link(files: Files, certificate: trustme.LeafCert) -> None:
    """Replace the link to the folder of both files, as Kubernetes does."""
    version = files.folder / f"version-{len(list(files.folder.iterdir()))}"
    version.mkdir()
    PemFolder(version).write_identity("server", certificate)
    link = files.folder / "new-link"
    link.symlink_to(version)
    link.replace(files.folder / "data")
    for name in ("server.pem", "server.key"):
        if not (files.folder / name).is_symlink():
            (files.folder / name).unlink()
            (files.folder / name).symlink_to(Path("data") / name)


async def call_until(stopped: asyncio.Event, files: Files, port: int, *, reconnect: bool) -> int:
    """Call without a pause, each time on a new connection or always on the same one. Return the number of calls."""
    count, token = 0, alices_token()
    while not stopped.is_set():
        async with files.open(port) as channel:
            count += await add(channel, token) > 0
            while not reconnect and not stopped.is_set():
                count += await add(channel, token) > 0
    return count


@pytest.mark.parametrize("write", [write_one_after_the_other, swap_a_link])
async def test_a_certificate_is_replaced_under_load_and_no_call_fails(write: Write, tmp_path: Path) -> None:
    files, stopped = Files(tmp_path), asyncio.Event()
    write(files, issue(files.authority))
    async with running(files) as server:
        port = server.ports.port
        callers = [call_until(stopped, files, port, reconnect=reconnect) for reconnect in (True, True, False)]
        load = asyncio.gather(*callers)
        renewed = issue(files.authority)
        assert await shown(port) != renewed.cert_chain_pems[0].bytes().decode()
        write(files, renewed)

        async def is_shown() -> bool:
            assert not load.done(), "a call failed"
            return await shown(port) == renewed.cert_chain_pems[0].bytes().decode()

        await until(is_shown)
        stopped.set()
        assert min(await load) > 0


async def test_the_key_of_another_certificate_is_logged_once_and_the_old_pair_stays_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Files(tmp_path)
    caplog.set_level(logging.INFO)

    def lines(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    async with running(files) as server:
        port = server.ports.port
        before = await shown(port)
        renewed, stranger = issue(files.authority), issue(files.authority)
        files.write("server.key", stranger.private_key_pem.bytes())

        async def is_logged() -> bool:
            assert await shown(port) == before
            return lines("CART_TLS_KEY_FILE: it is not the key of the first certificate in CART_TLS_CERT_FILE") == 1

        await until(is_logged)
        async with files.open(port) as channel:
            assert await add(channel, alices_token()) == 1
        files.write_identity("server", renewed)

        async def is_shown() -> bool:
            return await shown(port) == renewed.cert_chain_pems[0].bytes().decode()

        await until(is_shown)
    assert lines("it is not the key") == 1
    assert lines("the certificate is of") == 2
    assert lines("a changed file is in use now") == 1


async def test_an_authority_of_services_is_replaced(tmp_path: Path) -> None:
    files = Files(tmp_path)
    newer = new_authority()
    async with running(files) as server:

        async def connects(caller: trustme.LeafCert) -> bool:
            async with files.open(server.ports.service_port, caller) as channel:
                try:
                    return await add(channel) > 0
                except grpc.aio.AioRpcError:
                    return False

        assert await connects(files.web())
        assert not await connects(issue(newer, WEB))
        files.write_authorities("callers.pem", newer)

        async def is_trusted() -> bool:
            return await connects(issue(newer, WEB))

        await until(is_trusted)
        assert not await connects(files.web())
