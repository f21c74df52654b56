"""Which callers have which certificates, and what a reload does to them."""

import pytest

from megaphone.access import certificates as module
from megaphone.access.certificates import CertificateCallers
from megaphone.core.access import Caller
from megaphone.core.tenants import Tenants
from megaphone.errors import PermissionDenied, Unauthenticated
from megaphone.model import Action
from megaphone.settings import ClientCertificates

NOW = 1.0
SHOP = "spiffe://example.org/shop/a"


def group(*names: str, **changes: object) -> ClientCertificates:
    made = {"names": names, "actions": (Action.WRITE,)} | changes
    return ClientCertificates(**made)  # type: ignore[arg-type]


def callers(**entries: ClientCertificates) -> CertificateCallers:
    made = CertificateCallers(Tenants())
    made.take(entries, Action)
    return made


def may(caller: Caller, action: Action, stream_id: str | None = None) -> str:
    try:
        caller.check(action, NOW, stream_id)
    except (PermissionDenied, Unauthenticated) as error:
        return error.code
    return "OK"


@pytest.mark.parametrize(
    ("names", "entry"),
    [
        pytest.param((SHOP,), "exact", id="the very name"),
        pytest.param(("spiffe://example.org/shop/b",), "shop", id="a pattern"),
        pytest.param(("spiffe://example.org/other",), "org", id="a shorter pattern"),
        pytest.param(("spiffe://example.org/other", SHOP), "exact", id="the best of two names"),
        pytest.param(("spiffe://example.com/",), None, id="another domain"),
        pytest.param(("spiffe://example.org",), None, id="the beginning of a pattern"),
        pytest.param(("SPIFFE://EXAMPLE.ORG/SHOP/A",), None, id="a URI in capitals"),
        pytest.param(("API.Example.org",), "dns", id="a DNS name in capitals"),
        pytest.param(("api.example.org.evil.example",), None, id="a longer DNS name"),
        pytest.param((), None, id="no name"),
        pytest.param(("*",), None, id="a star"),
    ],
)
def test_the_entry_with_the_longest_name_counts(names: tuple[str, ...], entry: str | None) -> None:
    found = callers(
        org=group("spiffe://example.org/*"),
        exact=group(SHOP),
        shop=group("spiffe://example.org/shop/*", "x"),
        dns=group("api.EXAMPLE.org"),
    ).of(names)
    assert (None if found is None else found.name.partition(":")[0]) == (
        None if entry is None else f"certificate {entry}"
    )


def test_a_star_alone_is_everybody_who_has_a_name() -> None:
    made = callers(all=group("*"))
    assert made.of(("x",)) is not None
    assert made.of(()) is None


def test_a_caller_may_do_what_the_entry_says() -> None:
    tenants = Tenants()
    made = CertificateCallers(tenants)
    made.take({"shop": group(SHOP, tenant="acme", streams=("orders.*",))}, Action)
    caller = made.of((SHOP,))
    assert caller is not None
    assert caller is made.of((SHOP,))
    assert caller.name == f"certificate shop: {SHOP}"
    assert caller.tenant is tenants.named("acme")
    assert may(caller, Action.WRITE, "orders.eu") == "OK"
    assert may(caller, Action.WRITE, "news") == "PERMISSION_DENIED"
    assert may(caller, Action.CREATE) == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("new", "code"),
    [
        pytest.param({"shop": group(SHOP)}, "OK", id="the same"),
        pytest.param({"shop": group("spiffe://*")}, "OK", id="another pattern"),
        pytest.param({"shop": group(SHOP, actions=())}, "PERMISSION_DENIED", id="no action"),
        pytest.param({"shop": group(SHOP, tenant="x")}, "UNAUTHENTICATED", id="another tenant"),
        pytest.param({"other": group(SHOP)}, "UNAUTHENTICATED", id="another entry"),
        pytest.param({}, "UNAUTHENTICATED", id="no entry"),
    ],
)
def test_a_reload_changes_callers_who_have_open_calls(
    new: dict[str, ClientCertificates], code: str
) -> None:
    made = callers(shop=group(SHOP))
    caller = made.of((SHOP,))
    assert caller is not None
    made.take(new, Action)
    assert may(caller, Action.WRITE) == code
    assert (made.of((SHOP,)) is None) == (not new)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    made = callers(all=group("*"))
    first = made.of(("0",))
    for number in range(1, 4):
        made.of((str(number),))
    assert made.of(("3",)) is made.of(("3",))
    assert made.of(("0",)) is not first
