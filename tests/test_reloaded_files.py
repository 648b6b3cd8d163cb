"""Files that are replaced while a process runs."""

import logging
import os
import threading
from pathlib import Path

import pytest

from cart_grpc.tls.pem_files import read_authorities, read_identity
from cart_grpc.tls.reloaded_files import CHECK_SECONDS, FileError, NamedFile, Reloaded
from tests.pem import PemFolder, issue, new_authority

SECRET = "hunter2"


class Time:
    """A clock in seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_check(self) -> None:
        self.now += CHECK_SECONDS


@pytest.fixture
def files(tmp_path: Path) -> PemFolder:
    return PemFolder(tmp_path)


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_file_that_changed_is_read_at_the_next_check(files: PemFolder, time: Time) -> None:
    token = files.write("token", "old")
    reloaded = Reloaded([token], token.read_text, time)
    files.write("token", "new")
    assert reloaded.get() == "old"
    time.pass_check()
    assert reloaded.get() == "new"


def test_a_file_that_did_not_change_keeps_its_value(files: PemFolder, time: Time) -> None:
    token = files.write("token", "old")
    reloaded = Reloaded([token], object, time)
    first = reloaded.get()
    time.pass_check()
    assert reloaded.get() is first


def test_a_folder_that_a_link_swaps_is_noticed(files: PemFolder, time: Time, tmp_path: Path) -> None:
    """As Kubernetes updates a mounted secret."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
    link = tmp_path / "current"
    link.symlink_to("one")
    token = NamedFile("token", str(link / "token"))
    reloaded = Reloaded([token], token.read_text, time)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(link)
    time.pass_check()
    assert reloaded.get() == "two"


def test_a_broken_file_is_logged_once_and_the_old_value_stays(
    files: PemFolder, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    token = files.write("token", "old")
    reloaded = Reloaded([token], token.read_text, time)
    files.write("token", f"{SECRET}\n{SECRET}\n")
    for _ in range(3):
        time.pass_check()
        assert reloaded.get() == "old"
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert line.startswith("token: the file contains a control character")
    assert line.endswith("; the earlier files stay in use")
    Path(token.path).unlink()
    time.pass_check()
    assert reloaded.get() == "old"
    assert "token: the file cannot be read: No such file or directory" in caplog.text
    files.write("token", "new")
    time.pass_check()
    assert reloaded.get() == "new"
    assert SECRET not in caplog.text


def test_a_folder_that_is_mounted_again_ends_the_fault(
    time: Time, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault that comes again is news again."""
    mounted, aside = tmp_path / "mounted", tmp_path / "aside"
    mounted.mkdir()
    token = PemFolder(mounted).write("token", "old")
    reloaded = Reloaded([token], token.read_text, time)
    caplog.set_level(logging.INFO)
    for _ in range(2):
        mounted.rename(aside)
        time.pass_check()
        assert reloaded.get() == "old"
        aside.rename(mounted)
        time.pass_check()
        assert reloaded.get() == "old"
    missing = "token: the file cannot be read: No such file or directory; the earlier files stay in use"
    assert caplog.messages == [missing, "token: the earlier file is back"] * 2


def test_a_certificate_and_a_key_that_do_not_fit_yet_change_nothing(files: PemFolder, time: Time) -> None:
    authority = new_authority()
    certificate, key = files.write_identity("client", issue(authority))
    reloaded = Reloaded([certificate, key], lambda: read_identity(certificate, key), time)
    before = reloaded.get()
    renewed = issue(authority)
    files.write("client.pem", renewed.cert_chain_pems[0].bytes())
    time.pass_check()
    assert reloaded.get() == before
    files.write("client.key", renewed.private_key_pem.bytes())
    time.pass_check()
    assert reloaded.get() == (renewed.private_key_pem.bytes(), renewed.cert_chain_pems[0].bytes())


def test_a_look_that_hangs_delays_no_other_thread(files: PemFolder, time: Time) -> None:
    """Handshakes need the value, and a network file system may hang."""
    token, hanging, goes_on = files.write("token", "old"), threading.Event(), threading.Event()
    goes_on.set()

    def load() -> str:
        hanging.set()
        assert goes_on.wait(30)
        return token.read_text()

    reloaded = Reloaded([token], load, time)
    files.write("token", "new")
    time.pass_check()
    hanging.clear()
    goes_on.clear()
    looking = threading.Thread(target=reloaded.get, daemon=True)
    looking.start()
    assert hanging.wait(30)
    time.pass_check()
    assert reloaded.get() == "old"
    goes_on.set()
    looking.join(30)
    assert reloaded.get() == "new"


def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="pipe: it is not a file"):
        NamedFile("pipe", str(tmp_path / "pipe")).read()


def test_files_that_change_while_they_are_read_are_read_again(files: PemFolder, time: Time) -> None:
    """The parts of a value that was read meanwhile may not fit together."""
    token = files.write("token", "old")
    reads = []

    def load() -> str:
        reads.append(token.read_text())
        if len(reads) == 2:
            files.write("token", "newest")
        return reads[-1]

    reloaded = Reloaded([token], load, time)
    files.write("token", "new")
    time.pass_check()
    assert (reloaded.get(), reads) == ("old", ["old", "new"])
    time.pass_check()
    assert reloaded.get() == "newest"


@pytest.mark.parametrize("content", ["s3cret", "s3cret\n", "s3cret\r\n", "s3cret\n\n"])
def test_line_ends_at_the_end_of_a_secret_are_ignored(files: PemFolder, content: str) -> None:
    secret = files.write("secret", content)
    assert (secret.read_text(), secret.read_token()) == ("s3cret", "s3cret")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "the file is empty"),
        ("\n", "the file is empty"),
        (f"{SECRET}\n{SECRET}", "control character"),
        (f"{SECRET}\r{SECRET}", "control character"),
        (f"{SECRET}\0", "control character"),
        (f"{SECRET}\x85", "control character"),
        (b"hunter2\xff", "not UTF-8"),
        (f"{SECRET} {SECRET}", "one word"),
        (f"{SECRET}é", "one word"),
        (SECRET * 2000, "one word"),
        (SECRET * 200_000, "longer than 1024 KiB"),
    ],
)
def test_an_unusable_token_is_refused_without_quoting_it(files: PemFolder, content: str | bytes, fault: str) -> None:
    token = files.write("token", content)
    with pytest.raises(FileError, match=fault) as refused:
        token.read_token()
    assert str(refused.value).startswith("token: ")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("path", [f"/nowhere/{SECRET}", f"{SECRET}\0", "/"])
def test_a_path_is_not_quoted(path: str) -> None:
    """Somebody may write the secret itself into the setting."""
    with pytest.raises(FileError) as refused:
        NamedFile("CART_TOKEN_FILE", path).read()
    assert SECRET not in str(refused.value)
    assert str(refused.value).startswith("CART_TOKEN_FILE: ")


def test_a_pem_file_without_a_certificate_or_with_another_key_is_refused(files: PemFolder) -> None:
    authority = new_authority()
    certificate, key = files.write_identity("one", issue(authority))
    _, other_key = files.write_identity("other", issue(authority))
    with pytest.raises(FileError, match=r"^one\.key: the file has no certificate in PEM form$"):
        read_authorities(key)
    for wrong in (other_key, certificate, files.write("empty", "")):
        with pytest.raises(FileError, match=r"^one\.pem: it must be a PEM file with a certificate that fits"):
            read_identity(certificate, wrong)
