"""`megaphone token check`: what it says of good and bad tokens, and that it never repeats one."""

import asyncio
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from megaphone.access.tokens import digest_of
from megaphone.cli.token import token_app
from tests.support.certificates import make_certificates
from tests.support.issuer import AUDIENCE, claims, pem, public, rsa, token
from tests.support.process import MEGAPHONE, environment
from tests.support.publisher import publishing

STATIC = "mgp_" + "s" * 43
TOML = f"""
[auth.tokens.shop]
sha256 = "{digest_of(STATIC)}"
tenant = "acme"
actions = ["write", "create"]
streams = ["orders.*", "news"]
[auth.issuers.main]
issuer = "main"
audience = "{AUDIENCE}"
public_key_file = "main.pem"
[auth.issuers.away]
issuer = "away"
audience = "{AUDIENCE}"
jwks_url = "http://127.0.0.1:1/keys"
"""


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "megaphone.toml").write_text(TOML)
    (tmp_path / "main.pem").write_bytes(pem(rsa()))
    monkeypatch.chdir(tmp_path)


def check(text: str) -> Result:
    """Check a token that is given on standard input."""
    done = CliRunner().invoke(token_app, ["check", "-"], input=f"{text}\n")
    assert text not in done.output
    assert text.rpartition(".")[2] not in done.output  # nor its signature
    return done


def test_a_valid_jwt() -> None:
    detail = {"type": "urn:megaphone:authorization", "actions": ["read"], "streams": ["a", "b.*"]}
    done = check(token(claims(iss="main", authorization_details=[detail])))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "alg          RS256",
        "kid          k1",
        "typ          JWT",
        "iss          main",
        f"aud          {AUDIENCE}",
        "sub          shop-1",
    ]
    assert lines[6].startswith("exp          ")
    assert lines[6].endswith(" UTC)")
    assert lines[-4].startswith("It is valid here: auth.issuers.main answers for it, for 6")
    assert lines[-3:] == [
        "tenant       default",
        "allows       create, write",
        "allows       read on a, b.*",
    ]


def test_a_jwt_that_allows_nothing() -> None:
    done = check(token(claims(iss="main", scope="openid")))
    assert done.exit_code == 0
    assert done.stdout.endswith("allows       nothing\n")


def test_a_static_token() -> None:
    done = check(STATIC)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "It is valid here: it is auth.tokens.shop.",
        "tenant       acme",
        "allows       create, write on orders.*, news",
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": time.time() - 3_600}, "the token would be refused: it has expired"),
        ({"exp": "tomorrow"}, "the token would be refused: a claim is missing or wrong"),
        ({"exp": 10**400}, "the token would be refused: a claim is missing or wrong"),
        ({"iss": "x"}, "the token would be refused: its issuer is not one of the settings"),
        ({"aud": "x"}, "the token would be refused: its audience is not that in the settings"),
        ({"iss": "away"}, "the token cannot be checked: the keys"),
    ],
)
def test_a_jwt_that_would_be_refused(changes: dict[str, object], reason: str) -> None:
    done = check(token(claims(**{"iss": "main"} | changes)))
    assert done.exit_code == 1
    assert done.stdout.startswith("alg          RS256\n")
    assert done.stderr.splitlines()[-1].startswith(f"megaphone: {reason}")


@pytest.mark.parametrize("text", ["mgp_unknown", "nonsense", "a.b.c"])
def test_what_is_no_token_of_this_node(text: str) -> None:
    done = check(text)
    assert done.exit_code == 1
    assert done.stderr.startswith("megaphone: the token would be refused: it ")


def test_claims_cannot_command_a_terminal() -> None:
    done = check(token(claims(iss="main", sub="\x1b[2Jroot\n\u202eadmin")))
    assert "sub          \ufffd[2Jroot\ufffd\ufffdadmin\n" in done.stdout
    assert "\x1b" not in done.output


def test_a_key_that_cannot_be_used_is_named() -> None:
    Path("main.pem").write_text("nonsense")
    done = check(token(claims(iss="main")))
    assert done.exit_code == 1
    assert "auth.issuers.main.public_key_file is not allowed: it is no JSON object" in done.stderr


def test_no_token_is_wrong_usage() -> None:
    done = CliRunner().invoke(token_app, ["check", "-"], input="\n")
    assert done.exit_code == 2
    assert "there is no token" in done.stderr


def test_a_token_may_be_an_argument() -> None:
    assert CliRunner().invoke(token_app, ["check", STATIC]).exit_code == 0


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_keys_come_by_https_from_an_issuer_that_is_trusted(
    tmp_path: Path, is_trusted: bool
) -> None:
    made = make_certificates(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(made.certificate, made.key)
    async with publishing(tls) as publisher:
        publisher.publish(public(rsa(), kid="k1"))
        issuer = f'[auth.issuers.main]\nissuer = "{publisher.issuer}"\naudience = "{AUDIENCE}"\n'
        Path("megaphone.toml").write_text(issuer)
        variables = environment(tmp_path, {})
        if is_trusted:
            variables["SSL_CERT_FILE"] = str(made.authority)
        arguments = [MEGAPHONE, "token", "check", token(claims(iss=publisher.issuer))]
        command = await asyncio.create_subprocess_exec(
            *arguments, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        stdout, stderr = await command.communicate()
    assert (b"It is valid here" in stdout) == is_trusted, stderr
    assert (b"ClientConnectorCertificateError" in stderr) == (not is_trusted)
    assert bool(publisher.asked) == is_trusted
