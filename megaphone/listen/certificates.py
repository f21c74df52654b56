"""Certificates of this node: read from files, checked, and read again when the files change.

A certificate comes into use as a whole, with its key and with the authority of client certificates.
The new files are first loaded apart from those in use, so a wrong file changes nothing.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from megaphone.settings import Settings

log = logging.getLogger(__name__)

CHECK_S = 10.0
"""How often the files are compared with what is in use."""
SHORTEST_RSA_BITS = 2_048
NAMES_REMEMBERED = 1_000
"""Of how many certificates the names are remembered."""


class UnusableCertificate(OSError):
    """A file of a certificate is missing or wrong. The text names the setting."""


class Files(NamedTuple):
    """Where the certificate of a door is. The names of the settings are for error texts."""

    certificate: str
    key: str
    client_ca: str | None
    setting: str
    """The table of the settings that has the three paths, such as `tls`."""
    ca_setting: str = "client_ca"


class Contents(NamedTuple):
    """What the files contain, in PEM form."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with everything that belongs to it, checked."""

    contents: Contents = field(repr=False)
    not_after: datetime
    """Until when the certificate is valid."""
    context: ssl.SSLContext
    """For the connections of clients over HTTP."""


class Certificates:
    """The certificate that a door shows its clients, and the authority by which it checks theirs.

    A `Reloadable`. New files apply to new connections; those that are open go on.
    """

    def __init__(
        self, door: str, files_in: Callable[[Settings], Files | None], settings: Settings
    ) -> None:
        """`files_in` returns where the files are; None if the door has no TLS.

        Raises: UnusableCertificate.
        """
        self.door = door
        """The name of the door in metrics and in the log."""
        self.succeeded = 0
        """How often other files came into use."""
        self.failed = 0
        """How often files had changed that were wrong."""
        self._files_in = files_in
        self._files = files_in(settings)
        assert self._files is not None
        self.identity = load(self._files)
        self._refused: Contents | None = None
        """The last files that were wrong, so that they are reported once."""
        log_validity(self.door, self.identity)

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Fulfil `megaphone.reload.Reloadable`."""
        files = self._files_in(settings)
        if files is None or self._files is None:
            raise UnusableCertificate(
                f"TLS of the {self.door} is switched on and off only at a start"
            )
        if (files.client_ca is None) != (self._files.client_ca is None):
            raise UnusableCertificate(
                f"{files.setting}.{files.ca_setting} is set and removed only at a start"
            )
        try:
            identity = load(files)
        except Exception:
            self.failed += 1
            raise

        def apply() -> None:
            self._files = files
            self._use(identity)

        return apply

    def _use(self, identity: Identity) -> None:
        self._refused = None
        if identity.contents == self.identity.contents:
            return
        self.identity = identity
        self.succeeded += 1
        log_validity(self.door, identity)

    async def keep_current(self, one_at_a_time: asyncio.Lock) -> None:
        """Compare the files with what is in use, again and again, and use them if they are right.
        The lock is held meanwhile, so that no other reload runs. No error ends this: an error is
        logged and counted, and the next comparison tries again."""
        while True:
            await asyncio.sleep(CHECK_S)
            async with one_at_a_time:
                await self._check()

    async def _check(self) -> None:
        assert self._files is not None
        contents: Contents | None = None
        with suppress(Exception):  # `load` reads the files too, and its error is reported
            contents = await asyncio.to_thread(read, self._files)
        if contents == self.identity.contents:
            self._refused = None
            return
        if contents is not None and contents == self._refused:
            return
        try:
            self._use(await asyncio.to_thread(load, self._files))
        except Exception as error:
            if contents is None or contents != self._refused:
                self.failed += 1
                unforeseen = None if isinstance(error, UnusableCertificate) else error
                text = "the certificate of the %s port stays as it was: %s"
                log.error(text, self.door, error, exc_info=unforeseen)
            self._refused = contents


def public_files(settings: Settings) -> Files | None:
    """Return where the certificate of the ports for clients is."""
    tls = settings.tls
    if tls.certificate is None or tls.key is None:
        return None
    return Files(tls.certificate, tls.key, tls.client_ca, "tls")


def nodes_files(settings: Settings) -> Files | None:
    """Return where the certificate for other nodes is."""
    nodes = settings.nodes
    if nodes.certificate is None or nodes.key is None:
        return None
    return Files(nodes.certificate, nodes.key, nodes.ca, "nodes", "ca")


def log_validity(door: str, identity: Identity) -> None:
    until = identity.not_after.isoformat()
    if identity.not_after > datetime.now(UTC):
        log.info("the certificate of the %s port is valid until %s", door, until)
    else:
        log.warning("the certificate of the %s port has expired at %s", door, until)


def load(files: Files) -> Identity:
    """Read and check the files of a door.

    Raises: UnusableCertificate.
    """
    contents = read(files)
    not_after = checked(files, contents)
    context = context_of(files, contents)
    if read(files) != contents:
        raise UnusableCertificate(f"the files of {files.setting} have just changed")
    return Identity(contents, not_after, context)


def read(files: Files) -> Contents:
    """Raises: UnusableCertificate, if one of the files cannot be read."""
    return Contents(
        content(files, "certificate", files.certificate),
        content(files, "key", files.key),
        content(files, files.ca_setting, files.client_ca) if files.client_ca is not None else None,
    )


def content(files: Files, member: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UnusableCertificate(f"{files.setting}.{member}: {path}: {reason}") from None


def checked(files: Files, contents: Contents) -> datetime:
    """Check that a certificate and its key fit together, and that both faces can use them.

    Returns: until when the certificate is valid. Raises: UnusableCertificate.
    """

    def refuse(member: str, path: str | None, reason: str) -> NoReturn:
        raise UnusableCertificate(f"{files.setting}.{member}: {path}: {reason}")

    allowed = f"P-256, P-384, or RSA of {SHORTEST_RSA_BITS} bits or more"
    other_kind = f"has another kind of key than {allowed}"
    try:
        certificate = x509.load_pem_x509_certificates(contents.certificate)[0]
        public = certificate.public_key()
    except ValueError:
        refuse("certificate", files.certificate, "is not a certificate in PEM form")
    except UnsupportedAlgorithm:
        refuse("certificate", files.certificate, other_kind)
    try:
        key = load_pem_private_key(contents.key, None)
    except TypeError:
        refuse("key", files.key, "is encrypted, but the broker cannot ask for its password")
    except ValueError:
        refuse("key", files.key, "is not a private key in PEM form")
    except UnsupportedAlgorithm:
        refuse("key", files.key, f"is another kind of key than {allowed}")
    if key.public_key() != public:
        refuse("key", files.key, "does not belong to the certificate")
    match public:
        case EllipticCurvePublicKey(curve=SECP256R1() | SECP384R1()):
            pass
        case RSAPublicKey(key_size=size) if size >= SHORTEST_RSA_BITS:
            pass
        case _:
            refuse("certificate", files.certificate, other_kind)
    if contents.client_ca is not None:
        try:
            x509.load_pem_x509_certificates(contents.client_ca)
        except (ValueError, UnsupportedAlgorithm):
            refuse(files.ca_setting, files.client_ca, "has no certificate in PEM form")
    return certificate.not_valid_after_utc


def context_of(files: Files, contents: Contents) -> ssl.SSLContext:
    """Return what new connections need. A context of its own for each version of the files, because
    a file that fails to load would break one that is in use. So nobody resumes a session either
    that was begun with another client authority.

    Raises: UnusableCertificate.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    # As gRPC does it: an authority that is no root will do.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    try:
        context.load_cert_chain(files.certificate, files.key, password="")
        if contents.client_ca is not None:
            context.load_verify_locations(cadata=contents.client_ca.decode("ascii"))
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "cannot be used"
        raise UnusableCertificate(f"the files of {files.setting}: {reason}") from None
    return context


@lru_cache(NAMES_REMEMBERED)
def names_of(certificate: bytes) -> tuple[str, ...]:
    """Return the names in a certificate in DER form: the URIs and the DNS names. Only what TLS has
    checked may come here."""
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (
        ValueError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        return ()
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return (*uris, *names.get_values_for_type(x509.DNSName))


def names_of_pem(certificate: bytes) -> tuple[str, ...]:
    """Do the same for a certificate in PEM form."""
    return names_of(ssl.PEM_cert_to_DER_cert(certificate.decode("ascii")))
