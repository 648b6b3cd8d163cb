"""PEM files of an authority, and of those whom it certifies, that tests replace."""

import datetime as dt
from pathlib import Path

import trustme

from cart_grpc.tls.reloaded_files import NamedFile

NOW = dt.datetime.now(dt.UTC)


class PemFolder:
    """Files in `folder`. Each write replaces a file at once, as a careful deployment does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, content: bytes | str) -> NamedFile:
        """Write a file, or replace it."""
        path, new = self.folder / name, self.folder / f"{name}.new"
        new.write_bytes(content if isinstance(content, bytes) else content.encode())
        new.replace(path)
        return NamedFile(name, str(path))

    def remove(self, file: NamedFile) -> None:
        """Remove a file."""
        Path(file.path).unlink()

    def write_authorities(self, name: str, *authorities: trustme.CA) -> NamedFile:
        """Write the certificates of authorities."""
        return self.write(name, b"".join(each.cert_pem.bytes() for each in authorities))

    def write_identity(self, name: str, issued: trustme.LeafCert) -> tuple[NamedFile, NamedFile]:
        """Write a certificate chain and its key, one after the other."""
        chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
        return self.write(f"{name}.pem", chain), self.write(f"{name}.key", issued.private_key_pem.bytes())


def new_authority() -> trustme.CA:
    """Return a new authority. Elliptic curves, because RSA keys take long to make."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


def issue(authority: trustme.CA, *names: str, expired: bool = False) -> trustme.LeafCert:
    """Return a certificate for names and addresses; by default for those of this machine.

    Tests of failures connect to an address: for a name with two, gRPC reports the failure of either.
    """
    end = NOW - dt.timedelta(hours=1) if expired else NOW + dt.timedelta(hours=1)
    return authority.issue_cert(*(names or ("localhost", "127.0.0.1")), not_after=end, key_type=trustme.KeyType.ECDSA)
