"""PEM files: certificates of authorities, and a certificate with its key. Checked before anything uses them."""

import ssl

from cart_grpc.tls.reloaded_files import NamedFile


def read_authorities(file: NamedFile) -> bytes:
    """Return the certificates in the file. Raises FileError unless there is at least one."""
    content = file.read()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file.path)
    except (OSError, ValueError):
        raise file.fault("the file has no certificate in PEM form") from None
    return content


def read_identity(certificate: NamedFile, key: NamedFile) -> tuple[bytes, bytes]:
    """Return the private key and the certificate chain. Raises FileError unless they fit together."""
    contents = key.read(), certificate.read()
    try:
        # Without a function, OpenSSL would ask for a passphrase on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate.path, key.path, password=lambda: "")
    except (OSError, ValueError):
        why = f"it must be a PEM file with a certificate that fits {key.name}, a PEM file with a key without passphrase"
        raise certificate.fault(why) from None
    return contents
