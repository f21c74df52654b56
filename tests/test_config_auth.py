"""The settings that say who may do what."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megaphone.access.tokens import digest_of
from megaphone.cli.config import config_app
from megaphone.cli.token import token_app
from megaphone.config import ConfigError, load
from megaphone.model import Action
from megaphone.settings import Auth, ClientCertificates, Token
from tests.support.issuer import ec, pem

A, B = "a" * 64, "b" * 64
TOML = f"""
[auth]
require = ["create", "exists"]
[auth.tokens.shop]
sha256 = "{A}"
previous_sha256 = "{B}"
tenant = "shop"
actions = ["create"]
streams = ["a", "b.*"]
"""
SHOP = Token(
    sha256=A,
    previous_sha256=B,
    tenant="shop",
    actions=(Action.CREATE,),
    streams=("a", "b.*"),
)


def auth_of(directory: Path, text: str = "", **variables: str) -> Auth:
    (directory / "megaphone.toml").write_text(text)
    environment = {f"megaphone_{key.replace('__', '.')}": text for key, text in variables.items()}
    return load(directory, environment).settings.auth


def test_nothing_is_required_unless_it_is_set(tmp_path: Path) -> None:
    assert auth_of(tmp_path) == Auth(require=(), tokens={})


def test_tokens_are_read_from_a_file(tmp_path: Path) -> None:
    assert auth_of(tmp_path, TOML) == Auth(
        require=(Action.CREATE, Action.EXISTS), tokens={"shop": SHOP}
    )


def test_tokens_are_read_from_the_environment(tmp_path: Path) -> None:
    auth = auth_of(
        tmp_path,
        auth__require="create, metrics",
        auth__tokens__Shop__sha256=A,
        auth__tokens__Shop__actions="create,write",
        auth__tokens__Shop__streams="a,b.*",
    )
    shop = Token(sha256=A, actions=(Action.CREATE, Action.WRITE), streams=("a", "b.*"))
    assert auth == Auth(require=(Action.CREATE, Action.METRICS), tokens={"Shop": shop})


def test_the_environment_overrides_single_members_of_a_token(tmp_path: Path) -> None:
    auth = auth_of(tmp_path, TOML, auth__tokens__shop__actions="read")
    assert auth.tokens["shop"].actions == (Action.READ,)
    assert auth.tokens["shop"].sha256 == A


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("auth = 3", r"megaphone\.toml: auth = … is not allowed; allowed is tables such as"),
        ("[auth]\nrequired = []", "auth.required is not a known key; did you mean require"),
        ('[auth]\nrequire = ["creat"]', "each entry of which is one of create, write, read, ack"),
        ("[auth]\ntokens = 3", "auth = … is not allowed"),
        ("[auth.tokens]\nshop = 3", r"auth\.tokens\.shop = … is not allowed"),
        (f'[auth.tokens."x y"]\nsha256 = "{A}"\nactions = []', "as a name 1 to 100 letters"),
        (f'[auth.tokens.x]\nsha256 = "{A}"', r"auth\.tokens\.x\.actions is missing"),
        ('[auth.tokens.x]\nactions = ["create"]', r"auth\.tokens\.x\.sha256 is missing"),
        (
            '[auth.tokens.x]\nactions = ["create"]\nsha256 = "mgp_secret"',
            r"auth\.tokens\.x\.sha256 = … is not allowed; allowed is 64 hexadecimal digits",
        ),
        (
            f'[auth.tokens.x]\nactions = ["create"]\nsha256 = "{A}"\nstreams = ["a*b"]',
            r"auth\.tokens\.x\.streams = … is not allowed; .* the id of a stream, or the beginning",
        ),
        (
            f'[auth.tokens]\nx = {{sha256 = "{A}", actions = []}}\ny = {{sha256 = "{B}",'
            f' previous_sha256 = "{A}", actions = []}}',
            r"auth\.tokens\.y has the same token as auth\.tokens\.x",
        ),
    ],
)
def test_a_wrong_setting_is_named_and_not_shown(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error) as raised:
        auth_of(tmp_path, text)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_show_prints_means_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = auth_of(tmp_path, TOML)
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(config_app, ["show"]).stdout
    assert tomllib.loads(shown)["auth"]["tokens"]["shop"]["streams"] == ["a", "b.*"]
    assert auth_of(tmp_path, shown) == before


# -- Issuers

SECRET = "s" * 32
SHOP_ISSUER = """
[auth.issuers.shop]
issuer = "shop"
audience = "here"
"""


def test_issuers_are_read_from_a_file_and_the_environment(tmp_path: Path) -> None:
    auth = auth_of(
        tmp_path,
        f'{SHOP_ISSUER}tenant_claim = "org/tenant"\nleeway_secs = 5',
        auth__issuers__shop__secret=SECRET,
        auth__issuers__Main__issuer="https://id.example.com/realm",
        auth__issuers__Main__audience="https://push.example.com",
        auth__issuers__Main__algorithms="PS256, ES384",
        auth__issuers__Main__rfc9068="true",
    )
    shop, main = auth.issuers["shop"], auth.issuers["Main"]
    assert (shop.secret, shop.tenant_claim, shop.leeway_secs) == (SECRET, "org/tenant", 5.0)
    assert shop.allowed_algorithms == ("HS256",)
    assert (main.algorithms, main.rfc9068) == (("PS256", "ES384"), True)
    assert main.tenant == "default"


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ("", r"shop\.issuer is no URL for discovery: set one of jwks_url, public_key_file, secret"),
        ('secret = "short"', r"shop\.secret = … is not allowed; allowed is at least 32 ASCII"),
        (f'secret = "{SECRET}"\nalgorithms = ["RS256"]', "not allowed with a secret"),
        (f'secret = "{SECRET}"\npublic_key_file = "x"', "has both public_key_file and secret"),
        ('public_key_file = "x"\nalgorithms = ["ES256", "HS256"]', "allowed only with a secret"),
        ('public_key_file = "x"\nalgorithms = ["none"]', r"algorithms = … is not allowed"),
        ('jwks_url = "http://id.example.com/"', "https URL .* http is allowed only for an address"),
        ('jwks_url = "http://127.0.0.1.example.com/"', r"jwks_url = … is not allowed"),
        ('jwks_url = "http://localhost/"', r"jwks_url = … is not allowed"),
        ('jwks_url = "https://id.example.com/#a"', r"jwks_url = … is not allowed"),
        ('jwks_uri = "x"', "did you mean jwks_url"),
        ('public_key_file = "x"\nleeway_secs = 301', "a number of seconds from 0 to 300"),
        ('public_key_file = "x"\n[auth.issuers.b]\nissuer = "b"', r"b\.audience is missing"),
        (
            f'secret = "{SECRET}"\n[auth.issuers.b]\nissuer = "shop"\naudience = "x"\n'
            'public_key_file = "x"',
            r"auth\.issuers\.b\.issuer is that of auth\.issuers\.shop too",
        ),
    ],
)
def test_a_wrong_issuer_is_named_and_not_shown(tmp_path: Path, lines: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error) as raised:
        auth_of(tmp_path, SHOP_ISSUER + lines)
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/keys", "http://[::1]/k", "https://[2001:db8::1]/k"]
)
def test_keys_may_be_at_https_and_on_this_machine(tmp_path: Path, url: str) -> None:
    auth = auth_of(tmp_path, f'{SHOP_ISSUER}jwks_url = "{url}"')
    assert auth.issuers["shop"].jwks_url == url


def test_show_hides_the_secret_of_an_issuer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth_of(tmp_path, f'{SHOP_ISSUER}secret = "{SECRET}"')
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(config_app, ["show"]).stdout
    assert SECRET not in shown
    assert 'audience = "here"' in shown
    with_secrets = CliRunner().invoke(config_app, ["show", "--secrets"]).stdout
    assert auth_of(tmp_path, with_secrets).issuers["shop"].secret == SECRET


@pytest.mark.parametrize("content", ["nonsense", None])
def test_check_looks_into_the_files_of_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    (tmp_path / "megaphone.toml").write_text(f'{SHOP_ISSUER}public_key_file = "key.pem"')
    if content is not None:
        (tmp_path / "key.pem").write_text(content)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(config_app, ["check"])
    assert done.exit_code == 2
    assert done.stderr.startswith("megaphone: auth.issuers.shop.public_key_file ")
    (tmp_path / "key.pem").write_bytes(pem(ec()))
    assert CliRunner().invoke(config_app, ["check"]).exit_code == 0


# -- Certificates

TLS = '[tls]\ncertificate = "a"\nkey = "b"\nclient_ca = "c"\n'
GROUP = '[auth.certificates.shop]\nactions = ["create"]\n'


def test_certificates_are_read_from_a_file_and_the_environment(tmp_path: Path) -> None:
    auth = auth_of(
        tmp_path,
        f'{TLS}{GROUP}names = ["spiffe://a/b", "c.example.*", "*"]',
        auth__certificates__Ops__names="spiffe://a/*, d.example",
        auth__certificates__Ops__actions="metrics",
        auth__certificates__Ops__tenant="acme",
    )
    assert auth.certificates == {
        "shop": ClientCertificates(
            names=("spiffe://a/b", "c.example.*", "*"), actions=(Action.CREATE,)
        ),
        "Ops": ClientCertificates(
            names=("spiffe://a/*", "d.example"), actions=(Action.METRICS,), tenant="acme"
        ),
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f'{GROUP}names = ["a"]', r"auth\.certificates is set, but not tls\.client_ca"),
        (f"{TLS}{GROUP}", r"auth\.certificates\.shop\.names is missing"),
        (f'{TLS}{GROUP}names = ["a*b"]', r"names = … is not allowed; .* a URI or a DNS name"),
        (f'{TLS}{GROUP}names = [""]', r"names = … is not allowed"),
        (f'{TLS}{GROUP}names = ["a b"]', r"names = … is not allowed"),
        (
            f'{TLS}{GROUP}names = ["a"]\n[auth.certificates.b]\nactions = []\nnames = ["a"]',
            r"auth\.certificates\.b\.names has a, which is in auth\.certificates\.shop too",
        ),
    ],
)
def test_wrong_certificates_are_named(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        auth_of(tmp_path, text)


# -- megaphone token new


def test_a_new_token_fits_the_lines_that_are_printed_with_it(tmp_path: Path) -> None:
    arguments = ["new", "shop", "--action", "write", "--stream", "news", "--tenant", "acme"]
    done = CliRunner().invoke(token_app, arguments)
    assert done.exit_code == 0
    token = done.stdout.strip()
    assert token not in done.stderr
    assert auth_of(tmp_path, done.stderr) == Auth(
        tokens={
            "shop": Token(
                sha256=digest_of(token), actions=(Action.WRITE,), streams=("news",), tenant="acme"
            )
        }
    )


def test_a_new_token_is_for_a_back_end_unless_it_is_asked_for_otherwise(tmp_path: Path) -> None:
    done = CliRunner().invoke(token_app, ["new", "shop"])
    token = auth_of(tmp_path, done.stderr).tokens["shop"]
    assert token.actions == (Action.CREATE, Action.WRITE, Action.EXISTS, Action.DISPOSE)
    assert CliRunner().invoke(token_app, ["new", "shop"]).stdout != done.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["x y"], "as a name; allowed is 1 to 100 letters"),
        (["x", "--tenant", "a b"], "as a tenant; allowed is 1 to 64 letters"),
        (["x", "--stream", "a*b"], "as a stream; allowed is the id of a stream"),
        (["x", "--action", "fly"], "as an action; allowed is one of create, write, read"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], error: str) -> None:
    done = CliRunner().invoke(token_app, ["new", *arguments], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert error in done.stderr
    assert done.stdout == ""
