"""Connections to the primary: TLS, and the choice among the hosts of a URL.

asyncpg can choose among hosts, too. But it has one time-out for all of them, so a first host that does not answer would
hide the others; and it takes `default_transaction_read_only` for the mark of a standby.
"""

import asyncio
import random
import socket
import ssl
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from cart_grpc.store.database_parameters import DatabaseUrlError, refusal
from cart_grpc.store.database_url import ConnectArguments, Tls
from cart_grpc.tls.reloaded_files import FileError, NamedFile

# TCP probes an idle connection after 10 s, three times; data that stays unacknowledged for 30 s breaks it.
# The names are those of the socket options, as in libpq.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
_WITHOUT_CERTIFICATES: Final = ("disable", "allow", "prefer")


class NoPrimary(ConnectionError):
    """No host is the primary. The text says in one line why, for each host."""


class _Connection(asyncpg.Connection):
    """Its prepared statements have names that no other session has.

    If a pooler puts another session in the place of ours, our statements are missing there, so none runs with settings
    that are not ours. Under the driver's own names, another statement of the same name might run.
    """

    def _get_unique_id(self, prefix: str) -> str:
        return f"{prefix}_{uuid.uuid4().hex}"


class Connector:
    """Opens connections to the primary. `password` is a file that is read for each of them.

    `statement_cache_size` is how many prepared statements a connection keeps.

    Raises DatabaseUrlError if a file of `arguments` cannot be used, or if they contain a password, too. Raises
    FileError if `password` cannot be read.
    """

    def __init__(
        self, arguments: ConnectArguments, password: NamedFile | None = None, statement_cache_size: int = 100
    ) -> None:
        self._arguments = arguments
        self._statement_cache_size = statement_cache_size
        self._password = password
        self._last = 0
        if password and arguments.password:
            raise DatabaseUrlError(f"it has a password, or PGPASSWORD is set; {password.name} needs neither")
        self._read_files()

    async def connect(self) -> asyncpg.Connection:
        """Return a connection to the primary. Tries the host of the last connection first.

        Like libpq, it goes on to the next host if one does not answer, does not accept connections now or is a
        standby, but not if one refuses the user. Raises OSError (also for TLS and time-outs) and what asyncpg raises.
        """
        reasons: list[str] = []
        failure: Exception | None = None
        for index in self._order():
            host, port = self._arguments.hosts[index]
            try:
                connection = await self._connect(host, port)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError) as error:
                failure = error
                reasons.append(f"{_show(host, port)}: {_explain(error)}")
                continue
            self._last = index
            return connection
        if len(reasons) == 1 and failure:
            raise failure
        raise NoPrimary("; ".join(reasons)) from failure

    def try_another_host(self) -> None:
        """Let the next connection try the host of the last one last: it accepts no writes any more."""
        self._last = (self._last + 1) % len(self._arguments.hosts)

    def _order(self) -> Iterable[int]:
        count = len(self._arguments.hosts)
        if self._arguments.shuffles:
            return random.sample(range(count), count)
        return [(self._last + offset) % count for offset in range(count)]

    async def _connect(self, host: str | None, port: int | None) -> asyncpg.Connection:
        arguments = self._arguments
        async with asyncio.timeout(arguments.timeout):
            try:
                # For each connection, because certificates and passwords are renewed; in a thread, because files may be
                # slow.
                context, password = await asyncio.to_thread(self._read_files)
            except (DatabaseUrlError, FileError) as error:
                raise ConnectionError(str(error)) from error
            connection: asyncpg.Connection = await asyncpg.connect(
                host=host,
                port=port,
                user=arguments.user,
                password=password,
                passfile=arguments.passfile,
                database=arguments.database,
                ssl=context,
                direct_tls=arguments.tls.direct,
                statement_cache_size=self._statement_cache_size,
                # asyncpg keeps no statement of more than 15 KiB by default, and ours come close. To parse and plan
                # such a one takes longer than to run it.
                max_cacheable_statement_size=0,
                # No other settings: poolers refuse start-up parameters that they do not know.
                connection_class=_Connection,
                server_settings={"application_name": arguments.settings.get("application_name", "cart-grpc")},
                # PGTARGETSESSIONATTRS could say otherwise.
                target_session_attrs=SessionAttribute.any,
            )
            try:
                _set_socket_options(connection, {**_KEEPALIVE, **arguments.socket_options})
                await _check_primary(connection)
            except BaseException:
                connection.terminate()
                raise
            return connection

    def _read_files(self) -> tuple[Any, str | None]:
        """Return asyncpg's arguments `ssl` and `password`."""
        arguments = self._arguments
        return to_ssl(arguments.tls), self._password.read_text() if self._password else arguments.password


def to_ssl(tls: Tls) -> ssl.SSLContext | str:
    """Return asyncpg's argument `ssl`. Raises DatabaseUrlError if a file cannot be used."""
    if tls.mode in _WITHOUT_CERTIFICATES:
        return tls.mode
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = tls.mode == "verify-full"
    context.minimum_version = _VERSIONS[tls.min_version]
    if tls.max_version:
        context.maximum_version = _VERSIONS[tls.max_version]
    context.set_alpn_protocols(["postgresql"])
    if tls.rootcert == "system":
        context.load_default_certs()
    elif tls.rootcert:
        _load_authorities(context, "sslrootcert", tls.rootcert)
    else:
        context.verify_mode = ssl.CERT_NONE
    if tls.crl:
        _load_authorities(context, "sslcrl", tls.crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if tls.cert:
        _load_certificate(context, tls, tls.cert)
    return context


_VERSIONS: Final = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


def _load_authorities(context: ssl.SSLContext, name: str, file: str) -> None:
    _check_readable(name, file)
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError:
        raise refusal(name, f"must name a PEM file; {file} is none") from None


def _load_certificate(context: ssl.SSLContext, tls: Tls, file: str) -> None:
    _check_readable("sslcert", file)
    if tls.key:
        _check_readable("sslkey", tls.key)
    try:
        # Without a function, OpenSSL would ask on the terminal.
        context.load_cert_chain(file, tls.key, password=lambda: tls.password or "")
    except ssl.SSLError:
        why = "must name a PEM file with a certificate that fits sslkey; an encrypted key needs the right sslpassword"
        raise refusal("sslcert", why) from None


def _check_readable(name: str, file: str) -> None:
    try:
        Path(file).open("rb").close()
    except OSError as error:
        raise refusal(name, f"names {file}, which cannot be read: {error.strerror}") from None


async def _check_primary(connection: asyncpg.Connection) -> None:
    if getattr(connection.get_settings(), "in_hot_standby", "on") == "off":
        return
    # A pooler may repeat an old report of the server, so ask. `execute` sends no prepared statement, which a pooler may
    # not know, and returns only the number of rows.
    if await connection.execute("SELECT WHERE pg_catalog.pg_is_in_recovery()") == "SELECT 1":
        raise NoPrimary("it is a standby")


def _set_socket_options(connection: Any, options: Mapping[str, int]) -> None:
    """Make the kernel break a connection whose packets vanish: asyncpg would wait for an answer for ever."""
    sock = connection._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no public way
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        # Not every operating system has all of them.
        if value and (option := getattr(socket, name, None)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _show(host: str | None, port: int | None) -> str:
    return f"{host or 'the default host'}{f':{port}' if port else ''}"


def _explain(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
