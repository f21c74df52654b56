"""Certificates for tests, signed by an authority that only the test knows."""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

from megaphone.settings import Tls

DAY = datetime.timedelta(days=1)
HERE = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files with the authority, and with a certificate for this machine and its key."""

    authority: Path
    certificate: Path
    key: Path

    @property
    def tls(self) -> Tls:
        """The settings of a node with this certificate."""
        return Tls(certificate=str(self.certificate), key=str(self.key))

    @property
    def tls_for_known_clients(self) -> Tls:
        """The same for a node whose clients need a certificate of the authority."""
        return Tls(
            certificate=str(self.certificate), key=str(self.key), client_ca=str(self.authority)
        )


class Authority:
    """Signs certificates, and writes them to files in a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _sign(f"{name} of a test", self._key, None, ())
        self.file = folder / f"{name}.pem"
        """The file of its own certificate."""
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str = "certificate",
        names: Sequence[str] = HERE,
        key: CertificateIssuerPrivateKeyTypes | None = None,
        days: int = 1,
    ) -> Certificates:
        """Write a certificate with some names, which are IP addresses, URIs and DNS names, and its
        key. The files that are there are replaced."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        signed = _sign(name, key, (self._certificate, self._key), names, days)
        made = Certificates(
            self.file, self._folder / f"{name}.pem", self._folder / f"{name}-key.pem"
        )
        made.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return made


def make_certificates(folder: Path) -> Certificates:
    """Make an authority and a certificate of it for this machine."""
    return Authority(folder).issue()


def general_name(name: str) -> x509.GeneralName:
    if ":/" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _sign(
    name: str,
    key: CertificateIssuerPrivateKeyTypes,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    names: Sequence[str],
    days: int = 1,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 3 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if names:
        alternative = x509.SubjectAlternativeName([general_name(one) for one in names])
        builder = builder.add_extension(alternative, critical=False)
    return builder.sign(key if issuer is None else issuer[1], hashes.SHA256())
