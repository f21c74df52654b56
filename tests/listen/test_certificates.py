"""The certificate of a door: which files are refused, and what happens when they change."""

import asyncio
import base64
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from megaphone.listen import certificates
from megaphone.listen.certificates import Certificates, UnusableCertificate, public_files
from megaphone.reload import Reloader
from megaphone.settings import Settings, Tls
from tests.support.certificates import Authority
from tests.support.certificates import Certificates as Made
from tests.support.scenes import eventually


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def door(made: Made) -> Certificates:
    return Certificates("public", public_files, Settings(tls=made.tls))


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())],
    ids=["P-256", "P-384"],
)
def test_kinds_of_keys_that_both_faces_can_use(
    authority: Authority, key: ec.EllipticCurvePrivateKey
) -> None:
    assert door(authority.issue(key=key)).identity.contents.key


def test_rsa_is_allowed(authority: Authority) -> None:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    assert door(authority.issue(key=key)).identity.contents.key


Spoil = Callable[[Made, Authority], None]


def no_certificate(made: Made, authority: Authority) -> None:
    made.certificate.unlink()


def text_for_a_certificate(made: Made, authority: Authority) -> None:
    made.certificate.write_text("not a certificate")


def binary_key(made: Made, authority: Authority) -> None:
    made.key.write_bytes(bytes(range(256)))


def key_of_another(made: Made, authority: Authority) -> None:
    other = authority.issue("other")
    made.key.write_bytes(other.key.read_bytes())


def encrypted_key(made: Made, authority: Authority) -> None:
    key = serialization.load_pem_private_key(made.key.read_bytes(), None)
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )


def key_that_grpc_cannot_use(made: Made, authority: Authority) -> None:
    authority.issue(key=ed25519.Ed25519PrivateKey.generate())


def curve_that_grpc_cannot_use(made: Made, authority: Authority) -> None:
    authority.issue(key=ec.generate_private_key(ec.SECP521R1()))


def weak_key(made: Made, authority: Authority) -> None:
    authority.issue(key=rsa.generate_private_key(public_exponent=65_537, key_size=1_024))


P256 = bytes.fromhex("06082a8648ce3d030107")
"""The number of the curve P-256, as keys and certificates in DER form have it."""
UNKNOWN_CURVE = bytes.fromhex("06082a8648ce3d03017f")


def with_unknown_curve(file: Path) -> None:
    """Let a key or a certificate name a curve that no library knows."""
    first, *lines, last = file.read_text().splitlines()
    der = base64.b64decode("".join(lines))
    assert der.count(P256) == 1
    text = base64.encodebytes(der.replace(P256, UNKNOWN_CURVE)).decode()
    file.write_text(f"{first}\n{text}{last}\n")


def certificate_with_unknown_curve(made: Made, authority: Authority) -> None:
    with_unknown_curve(made.certificate)


def key_with_unknown_curve(made: Made, authority: Authority) -> None:
    with_unknown_curve(made.key)


WRONG: list[tuple[Spoil, str]] = [
    (no_certificate, "tls.certificate: {certificate}: No such file or directory"),
    (text_for_a_certificate, "tls.certificate: {certificate}: is not a certificate in PEM form"),
    (binary_key, "tls.key: {key}: is not a private key in PEM form"),
    (key_of_another, "tls.key: {key}: does not belong to the certificate"),
    (encrypted_key, "tls.key: {key}: is encrypted, but the broker cannot ask for its password"),
    (
        key_that_grpc_cannot_use,
        "tls.certificate: {certificate}: has another kind of key than P-256",
    ),
    (curve_that_grpc_cannot_use, "has another kind of key than P-256"),
    (
        certificate_with_unknown_curve,
        "tls.certificate: {certificate}: has another kind of key than P-256",
    ),
    (key_with_unknown_curve, "tls.key: {key}: is another kind of key than P-256"),
    (weak_key, "has another kind of key than P-256, P-384, or RSA of 2048 bits or more"),
]


@pytest.mark.parametrize(("spoil", "text"), WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
def test_wrong_files_are_refused_at_the_start(
    authority: Authority, spoil: Spoil, text: str
) -> None:
    made = authority.issue()
    spoil(made, authority)
    with pytest.raises(UnusableCertificate) as refused:
        door(made)
    assert text.format(certificate=made.certificate, key=made.key) in str(refused.value)


def test_a_wrong_client_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    made = authority.issue()
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    settings = Settings(tls=replace(made.tls, client_ca=str(empty)))
    with pytest.raises(UnusableCertificate, match=r"tls\.client_ca: .*has no certificate in PEM"):
        Certificates("public", public_files, settings)


def test_an_expired_certificate_is_used_but_not_in_silence(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    door(authority.issue(days=-1))
    [line] = [one for one in caplog.records if "certificate" in one.message]
    assert line.levelno == logging.WARNING
    assert line.message.startswith("the certificate of the public port has expired at 20")


# -- While the node serves


async def test_a_reload_takes_other_paths_too(authority: Authority) -> None:
    node = door(authority.issue())
    other = authority.issue("other")
    settings = Settings(tls=other.tls)
    reloader = Reloader(settings)
    reloader.add(node, "tls")
    assert await reloader.reload(lambda present: settings)
    assert node.identity.contents.certificate == other.certificate.read_bytes()
    assert (node.succeeded, node.failed) == (1, 0)


@pytest.mark.parametrize(
    "tls",
    [
        Tls(),
        Tls(certificate="/nowhere", key="/nowhere"),
    ],
    ids=["none", "missing"],
)
async def test_a_reload_that_is_wrong_changes_nothing(authority: Authority, tls: Tls) -> None:
    made = authority.issue()
    node = door(made)
    before = node.identity
    reloader = Reloader(Settings(tls=made.tls))
    reloader.add(node, "tls")
    assert not await reloader.reload(lambda present: Settings(tls=tls))
    assert not await reloader.reload(lambda present: Settings(tls=made.tls_for_known_clients))
    assert node.identity is before


async def test_the_files_are_compared_again_and_again(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(certificates, "CHECK_S", 0.01)
    caplog.set_level(logging.INFO)
    made = authority.issue()
    node = door(made)
    first = node.identity
    checking = asyncio.create_task(node.keep_current(asyncio.Lock()))

    async def has_failed() -> bool:
        return node.failed == 1

    async def has_changed() -> bool:
        return node.succeeded == 1

    made.key.write_text("half of a k")
    await eventually(has_failed)
    await asyncio.sleep(0.1)  # ten more comparisons
    assert node.failed == 1
    assert node.identity is first
    authority.issue(days=2)
    await eventually(has_changed)
    assert node.identity.not_after > first.not_after
    checking.cancel()
    errors = [one.message for one in caplog.records if one.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "stays as it was: tls.key" in errors[0]


@pytest.mark.parametrize(
    ("spoil", "is_foreseen"),
    [(key_with_unknown_curve, True), (certificate_with_unknown_curve, True), (None, False)],
    ids=["key", "certificate", "other error"],
)
async def test_no_error_ends_the_comparisons(
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Spoil | None,
    is_foreseen: bool,
) -> None:
    monkeypatch.setattr(certificates, "CHECK_S", 0.01)
    made = authority.issue()
    node = door(made)
    checking = asyncio.create_task(node.keep_current(asyncio.Lock()))

    async def has_failed() -> bool:
        return node.failed > 0

    async def has_changed() -> bool:
        return node.succeeded == 1

    with monkeypatch.context() as patched:
        if spoil is not None:
            spoil(made, authority)
        else:  # an error that nobody foresaw
            patched.setattr(certificates, "SHORTEST_RSA_BITS", "not a number")
            authority.issue(key=rsa.generate_private_key(public_exponent=65_537, key_size=2_048))
        await eventually(has_failed)
    authority.issue(days=2)
    await eventually(has_changed)
    assert not checking.done()
    checking.cancel()
    [line] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert line.message.startswith("the certificate of the public port stays as it was: ")
    assert (line.exc_info is None) == is_foreseen


def test_a_certificate_with_a_kind_of_name_that_nobody_uses_has_no_names() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([])
    today = datetime.now(UTC)
    edi_party = x509.UnrecognizedExtension(
        x509.OID_SUBJECT_ALTERNATIVE_NAME, bytes.fromhex("3007a505a1030c0178")
    )
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, today, today)
        .add_extension(edi_party, critical=False)
        .sign(key, hashes.SHA256())
    )
    assert certificates.names_of(certificate.public_bytes(serialization.Encoding.DER)) == ()


def test_a_certificate_has_uris_and_dns_names(authority: Authority) -> None:
    made = authority.issue(names=("spiffe://example.org/shop/1", "shop.example.org", "127.0.0.1"))
    der = x509.load_pem_x509_certificate(made.certificate.read_bytes()).public_bytes(
        serialization.Encoding.DER
    )
    assert certificates.names_of(der) == ("spiffe://example.org/shop/1", "shop.example.org")
    assert certificates.names_of(b"no certificate") == ()
