"""How a client encrypts, and by which files it knows the broker and the broker knows it."""

import os
import ssl
from pathlib import Path
from ssl import SSLContext
from typing import Final, NamedTuple, TypeAlias

AnyPath: TypeAlias = str | os.PathLike[str]
Certificate: TypeAlias = AnyPath | tuple[AnyPath, AnyPath]
"""A file in PEM form with a certificate and its key, or one file for each."""

CA: Final = "MEGAPHONE_CA"
CERTIFICATE: Final = "MEGAPHONE_CERTIFICATE"
KEY: Final = "MEGAPHONE_KEY"


class Encryption(NamedTuple):
    """What a client needs for TLS beside its URL: a context, or files in PEM form, or nothing."""

    context: SSLContext | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def for_http(self) -> SSLContext | bool:
        """Return what aiohttp needs. Raises: OSError or ValueError, if a file is wrong."""
        if self.context is not None:
            return self.context
        if self.ca is None and self.certificate is None:
            return True
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context

    def for_grpc(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the certificates that are trusted, the own key and the own certificate, for gRPC.
        It can use nothing else of a context. Raises: OSError, if a file cannot be read."""
        if self.context is not None:
            trusted = self.context.get_ca_certs(binary_form=True)
            roots = "".join(map(ssl.DER_cert_to_PEM_cert, trusted)).encode() or None
            return roots, None, None
        roots = None if self.ca is None else self.ca.read_bytes()
        if self.certificate is None:
            return roots, None, None
        # Both may be in one file, of which gRPC takes what it needs.
        key = (self.key or self.certificate).read_bytes()
        return roots, key, self.certificate.read_bytes()


def encryption_of(
    context: SSLContext | None,
    ca: AnyPath | None,
    certificate: Certificate | None,
    *,
    is_encrypted: bool,
) -> Encryption:
    """Return the encryption of a client. Without any of these it is that of the environment.

    Raises: ValueError, if it is not clear what is meant; OSError or ValueError, if a file is wrong.
    """
    if context is not None and (ca is not None or certificate is not None):
        raise ValueError("`ssl` stands for itself: put `ca` and `certificate` into it")
    if not is_encrypted:
        if ca is not None or certificate is not None:
            raise ValueError("`ca` and `certificate` are for https:// and grpcs://")
        return Encryption()
    if context is not None:
        return Encryption(context)
    if ca is None and certificate is None:
        ca, certificate = of_environment()
    both = certificate if isinstance(certificate, tuple) else (certificate, None)
    found = Encryption(None, path_of(ca), path_of(both[0]), path_of(both[1]))
    check(found)
    return found


def check(found: Encryption) -> None:
    """Raises: OSError or ValueError, if a file is missing or wrong."""
    for path in found[1:]:
        if path is not None:
            path.read_bytes()  # because `ssl` does not say which file is missing
    try:
        found.for_http()
    except ssl.SSLError as error:
        raise ValueError(
            f"the files of `ca` or `certificate` cannot be used: {error.reason or error}"
        ) from None


def of_environment() -> tuple[AnyPath | None, Certificate | None]:
    certificate, key = os.environ.get(CERTIFICATE), os.environ.get(KEY)
    if certificate and key:
        return os.environ.get(CA) or None, (certificate, key)
    return os.environ.get(CA) or None, certificate or None


def path_of(path: AnyPath | None) -> Path | None:
    return None if path is None else Path(path)
