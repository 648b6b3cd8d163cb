"""PostgreSQL's URLs: each of libpq's parameters works or is refused by name, and no error contains a secret."""

import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_grpc.store.database_connection import to_ssl
from cart_grpc.store.database_parameters import KNOWN, DatabaseUrlError
from cart_grpc.store.database_url import ConnectArguments, Tls, parse

BASE = "postgresql://cart:hunter2@db:5433/shop"


def read(url: str, **environ: str) -> ConnectArguments:
    return parse(url, environ)


def try_to_read(url: str) -> ConnectArguments | str:
    """Return the arguments, or the error's text."""
    try:
        return parse(url, {})
    except DatabaseUrlError as error:
        return str(error)


def refusal(url: str, **environ: str) -> str:
    with pytest.raises(DatabaseUrlError) as caught:
        parse(url, environ)
    text = str(caught.value)
    assert text.isprintable()
    return text


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg", "PostgreSQL"])
def test_the_usual_schemes_are_accepted(scheme: str) -> None:
    seen = read(f"{scheme}://cart:hunter2@db:5433/shop")
    assert (seen.user, seen.password, seen.hosts, seen.database) == ("cart", "hunter2", (("db", 5433),), "shop")
    assert seen.name == seen.shown == "postgresql://cart:***@db:5433/shop"


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql:///d", [(None, None)]),
        ("postgresql://", [(None, None)]),
        ("postgresql://db", [("db", None)]),
        ("postgresql://db:1", [("db", 1)]),
        ("postgresql://[::1]/d", [("::1", None)]),
        ("postgresql://[fe80::1%25eth0]:1/d", [("fe80::1%25eth0", 1)]),
        ("postgresql://a:1,b:2,c/d", [("a", 1), ("b", 2), ("c", None)]),
        ("postgresql:///d?host=a,b&port=1,2", [("a", 1), ("b", 2)]),
        ("postgresql:///d?host=a,b&port=1", [("a", 1), ("b", 1)]),
        ("postgresql:///d?host=/var/run", [("/var/run", None)]),
        ("postgresql:///d?host=%2Fvar%2Frun&port=5433", [("/var/run", 5433)]),
        ("postgresql://%2Fvar%2Frun/d", [("/var/run", None)]),
        ("postgresql://other/d?host=db", [("db", None)]),
    ],
)
def test_hosts_and_ports_are_in_the_authority_or_in_the_query(url: str, hosts: list[tuple[str, int]]) -> None:
    assert list(read(url).hosts) == hosts


@pytest.mark.parametrize(
    "query",
    [
        "sslmode=disable", "sslmode=allow", "sslmode=prefer", "sslmode=require", "ssl=true", "ssl=require",
        "sslmode=verify-full&sslrootcert=system", "sslmode=verify-ca&sslrootcert=ca.pem",
        "sslmode=verify-full&sslrootcert=ca.pem&sslcert=c.pem&sslkey=k.pem&sslpassword=x&sslcrl=r.pem",
        "sslmode=require&sslnegotiation=direct&ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=tlsv1.3",
        "channel_binding=prefer", "channel_binding=disable", "gssencmode=disable", "gssencmode=prefer",
        "connect_timeout=10", "application_name=shop", "fallback_application_name=shop", "client_encoding=UTF8",
        "target_session_attrs=any", "target_session_attrs=primary", "target_session_attrs=read-write",
        "load_balance_hosts=disable", "load_balance_hosts=random", "replication=false",
        "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3&tcp_user_timeout=0",
        "options=-c%20geqo%3Doff", "options=-c geqo=off", "passfile=/etc/pgpass", "sslsni=1", "sslcompression=0",
        "user=u&password=p&dbname=d&host=h&port=1",
    ],
)  # fmt: skip
def test_parameters_that_work(query: str) -> None:
    assert read(f"{BASE}?{query}").name


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("channel_binding=require", "channel_binding"),
        ("gssencmode=require", "gssencmode"),
        ("target_session_attrs=standby", "target_session_attrs"),
        ("target_session_attrs=prefer-standby", "target_session_attrs"),
        ("target_session_attrs=read-only", "target_session_attrs"),
        ("target_session_attrs=nonsense", "target_session_attrs"),
        ("client_encoding=LATIN1", "client_encoding"),
        ("replication=database", "replication"),
        ("keepalives=0", "keepalives"),
        ("keepalives_idle=-1", "keepalives_idle"),
        ("connect_timeout=0", "connect_timeout"),
        ("connect_timeout=soon", "connect_timeout"),
        ("load_balance_hosts=always", "load_balance_hosts"),
        ("sslmode=nonsense", "sslmode"),
        ("ssl=yes", "sslmode"),
        # These promise more than they keep.
        ("sslmode=verify-full", "sslmode"),
        ("sslmode=verify-ca", "sslmode"),
        ("sslmode=verify-ca&sslrootcert=system", "sslrootcert"),
        ("sslrootcert=ca.pem", "sslrootcert"),
        ("sslmode=prefer&sslcert=c.pem", "sslcert"),
        ("sslmode=require&sslkey=k.pem", "sslkey"),
        ("sslmode=require&sslcrl=r.pem", "sslcrl"),
        ("sslnegotiation=direct", "sslnegotiation"),
        ("ssl_min_protocol_version=TLSv1", "ssl_min_protocol_version"),
        ("host=a,b,c&port=1,2", "port"),
        ("host=a,,c&port=1", "host"),
        ("port=70000", "port"),
        ("options=endpoint%3Dquiet-lake", "options"),
        ("options=-e", "options"),
        ("options=-c", "options"),
        ("hostaddr=10.0.0.1", "hostaddr"),
        ("service=shop", "service"),
        ("krbsrvname=postgres", "krbsrvname"),
        ("require_auth=scram-sha-256", "require_auth"),
        ("requirepeer=postgres", "requirepeer"),
        ("sslmod=require", "sslmod"),
        ("pgbouncer=true", "pgbouncer"),
        ("prepareThreshold=0", "prepareThreshold"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name_without_the_value(query: str, name: str) -> None:
    text = refusal(f"{BASE}?{query}")
    assert text.startswith(f"the parameter {name} ")
    assert "hunter2" not in text


def test_an_unknown_parameter_is_refused_with_the_nearest_one() -> None:
    assert refusal(f"{BASE}?sslmod=require") == "the parameter sslmod is unknown; did you mean sslmode?"


@pytest.mark.parametrize("name", KNOWN)
def test_no_known_parameter_is_called_unknown(name: str) -> None:
    assert "unknown" not in str(try_to_read(f"{BASE}?{name}=1"))


def test_parameters_become_arguments() -> None:
    query = (
        "sslmode=verify-full&sslrootcert=%2Fca.pem&sslcert=c&sslkey=k&sslpassword=s&ssl_min_protocol_version=tlsv1.3"
        "&connect_timeout=7&tcp_user_timeout=5000&keepalives_idle=60&application_name=shop&load_balance_hosts=random"
        "&options=-c%20geqo%3Doff%20--cpu-tuple-cost=0.1%20-csearch_path%3Dshop%5C%20two"
    )
    seen = read(f"{BASE}?{query}")
    assert seen.tls == Tls("verify-full", "/ca.pem", "c", "k", "s", min_version="TLSv1.3")
    assert seen.timeout == 7
    assert seen.socket_options == {"TCP_USER_TIMEOUT": 5000, "TCP_KEEPIDLE": 60}
    assert seen.shuffles
    assert seen.settings == {
        "application_name": "shop", "geqo": "off", "cpu_tuple_cost": "0.1", "search_path": "shop two",
    }  # fmt: skip


def test_the_fallback_names_the_application_only_if_nothing_else_does() -> None:
    assert read(f"{BASE}?fallback_application_name=b").settings == {"application_name": "b"}
    assert read(f"{BASE}?fallback_application_name=b&application_name=a").settings == {"application_name": "a"}


def test_libpqs_variables_fill_in_what_the_url_does_not_say() -> None:
    environ = {"PGHOST": "elsewhere", "PGUSER": "bob", "PGPASSWORD": "hunter2", "PGSSLMODE": "require", "PGPORT": ""}
    seen = read("postgresql:///shop", **environ)
    assert (seen.hosts, seen.user, seen.password, seen.tls.mode) == (
        (("elsewhere", None),),
        "bob",
        "hunter2",
        "require",
    )
    seen = read(f"{BASE}?sslmode=disable", **environ)
    assert (seen.hosts, seen.user, seen.tls.mode) == ((("db", 5433),), "cart", "disable")
    assert refusal(BASE, PGCHANNELBINDING="require").startswith("the parameter channel_binding must be")


@pytest.mark.parametrize(
    "password", ["p%40ss", "p#ss", "p?ss", "p%2Fss", "p&ss", "p=ss", "p%25ss", "p ss", "p:ss", "p+ss"]
)
def test_a_password_is_read_as_libpq_reads_it(password: str) -> None:
    expected = password.replace("%40", "@").replace("%2F", "/").replace("%25", "%")
    assert read(f"postgresql://cart:{password}@db/shop").password == expected


AMBIGUOUS = [
    "postgresql://u:hunter2@hunter3@db/shop",
    "postgresql://u:hunter2@hunter3/@db/shop",
    "postgresql://u:hunter2/hunter3@db/shop",
    "postgresql://u:2/hunter3@db/shop",
    "postgresql://u:hunter2@hunter3?hunter4=5@db/shop",
    "postgresql://u:hunter2@hunter3#hunter4@db/shop",
    "postgresql://u:hunter2%@db/shop",
    "postgresql://u:hunter2%zz@db/shop",
    "postgresql://u:hunter2%00@db/shop",
    "postgresql://u:hunter2%ff@db/shop",
    "postgresql://u:hunter2",
    "postgresql://u:hunter2/shop",
    "postgresql://u:hunter2%40db/shop",
    "postgresql://[hunter2/shop",
    "postgresql://hunter2?x@db/shop",
    "postgresql://u:hunter2\n@db/shop",
    "postgresql://db/shop?password=hunter2&hunter3",
    "postgresql://db/shop?password=hunter2&hunter3=4",
    "postgresql://db/shop?sslpassword=hunter2&hunter3=4",
    "postgresql://db/shop?hunter2",
    "postgresql://db/shop?hunter2@=x",
    "postgresql://db/shop?password=hunter2%",
    "postgresql:/u:hunter2@db/shop",
    "postgresql:u:hunter2@db/shop",
    "u:hunter2@db/shop",
    "u:hunter2@db",
    "://u:hunter2@db/shop",
    "host=db user=u password=hunter2",
    "postgresql+psycopg://u:hunter2@db/shop",
]


@pytest.mark.parametrize("url", AMBIGUOUS)
def test_an_ambiguous_url_is_refused_and_nothing_of_it_is_printed(url: str) -> None:
    text = refusal(url)
    assert "hunter" not in text
    assert "postgresql://USER:PASSWORD@HOST:PORT/DATABASE" in text or "NAME=VALUE" in text


FIXED_TEXTS = {refusal("postgresql://u:p@@db"), refusal("u:p@db"), refusal("postgresql://db?x")}


@given(
    password=st.text(min_size=4, max_size=12),
    user=st.sampled_from(["cart", ""]),
    rest=st.sampled_from(["db", "db:1/d", "/d", "db/d?sslmode=require"]),
)
def test_no_password_is_ever_printed(password: str, user: str, rest: str) -> None:
    """Whatever the password is, raw in the URL: it is read, or the error is fixed text."""
    seen = try_to_read(f"postgresql://{user}:s{password}t@{rest}")
    if isinstance(seen, str):
        assert seen in FIXED_TEXTS
        return
    assert seen.password is not None
    for text in (repr(seen), str(seen), seen.name, seen.shown):
        assert seen.password not in text


def test_secrets_are_in_no_repr_and_not_in_the_shown_url() -> None:
    seen = read(f"{BASE}?sslmode=require&sslcert=c&sslpassword=hunter3&options=-c%20my.key%3Dhunter4")
    for text in (repr(seen), str(seen), repr(seen.tls), seen.name, seen.shown):
        assert "hunter" not in text
    assert seen.shown == f"{seen.name}?sslmode=require&sslcert=c&sslpassword=***&options=***"


def test_a_user_name_that_may_be_a_password_is_not_shown() -> None:
    assert read("postgresql://cart%3Ahunter2@db/shop").name == "postgresql://***@db/shop"


@pytest.mark.parametrize("url", [BASE, "postgresql:///d?host=/tmp&port=1", "postgresql://[::1]:5,b/d?sslmode=require"])
def test_a_shown_url_can_be_read_again(url: str) -> None:
    seen = read(url)
    again = read(seen.shown)
    assert (again.hosts, again.database, again.user, again.tls) == (seen.hosts, seen.database, seen.user, seen.tls)
    assert again.shown == seen.shown


@pytest.mark.parametrize(
    ("name", "tls"),
    [
        ("sslrootcert", Tls("verify-full", "FILE")),
        ("sslcert", Tls("require", cert="FILE")),
        ("sslkey", Tls("require", cert=__file__, key="FILE")),
        ("sslcrl", Tls("verify-full", "system", crl="FILE")),
    ],
)
@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_a_file_that_cannot_be_used_is_refused_by_name(
    name: str, tls: Tls, content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "FILE").write_bytes(content)
    with pytest.raises(DatabaseUrlError) as refused:
        to_ssl(tls)
    # A key and its certificate are one pair.
    named = "sslcert" if content and name == "sslkey" else name
    assert str(refused.value).startswith(f"the parameter {named} ")


def test_the_context_of_tls_has_what_the_url_says() -> None:
    assert to_ssl(Tls("prefer")) == "prefer"
    full = to_ssl(Tls("verify-full", "system", min_version="TLSv1.3", max_version="TLSv1.3"))
    assert isinstance(full, ssl.SSLContext)
    assert (full.check_hostname, full.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert (full.minimum_version, full.maximum_version) == (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3)
    required = to_ssl(Tls("require"))
    assert isinstance(required, ssl.SSLContext)
    assert (required.verify_mode, required.minimum_version) == (ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2)
