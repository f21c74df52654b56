"""`megaphone store`: see whether a Redis or Valkey will do, and how fast it is."""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from megaphone.cli.config import ConfigOption, load_or_exit
from megaphone.cli.help import App

store_app = App(help="Check a shared store in Redis or Valkey.")

MIB = 1_048_576
WILL_NOT_DO = 1


@store_app.callback()
def options() -> None:
    """Commands for a shared store."""


@store_app.command()
def check(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]",
            help="Such as redis://host:6379/0. Without it, the setting `store` is used.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    password_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The first line of this file is the password."),
    ] = None,
    wait_replicas: Annotated[
        int | None,
        typer.Option(
            min=0, max=10, metavar="N", help="Check for this value of store_wait_replicas."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Say whether a Redis or Valkey will do, what 201 would mean there, and how fast it is.

    This writes some thousand events to channels of its own, and removes them again. It exits with
    1 if the store will not do.
    """
    # Not above, because `--help` does not need them.
    from megaphone.errors import MegaphoneError
    from megaphone.settings import MEMORY
    from megaphone.store.errors import UnusableStore

    settings = load_or_exit(config).settings
    text = url or settings.store
    file = str(password_file) if password_file else None if url else settings.store_password_file
    if text == MEMORY:
        typer.echo("megaphone: no store is set, and no URL is given", err=True)
        raise typer.Exit(WILL_NOT_DO)
    replicas = settings.store_wait_replicas if wait_replicas is None else wait_replicas
    try:
        found = asyncio.run(look(text, file, settings.store_prefix, replicas))
    except (UnusableStore, MegaphoneError) as error:
        found = {"usable": False, "reason": str(error)}
    if as_json:
        typer.echo(json.dumps(found))
    elif found["usable"]:
        typer.echo(report(found))
    else:
        typer.echo(f"The store will not do: {found['reason']}")
    if not found["usable"]:
        raise typer.Exit(WILL_NOT_DO)


async def look(
    text: str, password_file: str | None, prefix: str, wait_replicas: int
) -> dict[str, Any]:
    """Return what there is to say about a store. Raises: UnusableStore; MegaphoneError."""
    from megaphone.store.errors import UnusableStore

    try:  # only this command needs the packages for it
        from megaphone.store.redis.errors import ReplyError
        from megaphone.store.redis.measure import looking_at, measure
        from megaphone.store.redis.url import StoreUrl
    except ImportError as error:
        raise UnusableStore(str(error)) from None
    url = StoreUrl.of_settings(text, password_file)
    async with looking_at(url, prefix) as (link, facts):
        if facts.replicas < wait_replicas:
            of_each = " of a master" if facts.in_cluster else ""
            raise UnusableStore(
                f"store_wait_replicas is {wait_replicas}, but the store has {facts.replicas}"
                f" connected replicas{of_each}: every write would fail"
            )
        try:
            speed = await measure(link, prefix, wait_replicas)
        except ReplyError as error:
            raise UnusableStore(f"the store refuses what is needed: {error}") from None
    return {
        "usable": True,
        "store": str(url),
        "server": facts.kind,
        "persistence": facts.persistence,
        "replicas": facts.replicas,
        "storeWaitReplicas": wait_replicas,
        "answerAfter": facts.must_have(wait_replicas),
        "usedMemory": facts.used_memory,
        "maxMemory": facts.max_memory,
        "roundTripMs": round(speed.round_trip_ms, 3),
        "slowRoundTripMs": round(speed.slow_round_trip_ms, 3),
        "writeMs": round(speed.write_ms, 3),
        "writesPerSecond": round(speed.writes_per_s),
    }


def report(found: dict[str, Any]) -> str:
    """Return the same for people."""
    used = f"{found['usedMemory'] / MIB:,.1f} MiB used"
    limit = f"of {found['maxMemory'] / MIB:,.0f} MiB" if found["maxMemory"] else "no limit"
    rows = {
        "server": found["server"],
        "memory": f"{used}, {limit}, no eviction",
        "persistence": found["persistence"],
        "replicas": found["replicas"],
        "201 means": f"stored by {found['answerAfter']}"
        f" (store_wait_replicas = {found['storeWaitReplicas']})",
        "round trip": f"{found['roundTripMs']:.2f} ms; 99 of 100 within"
        f" {found['slowRoundTripMs']:.2f} ms",
        "one write": f"{found['writeMs']:.2f} ms",
        "throughput": f"{found['writesPerSecond']:,} writes a second from this process",
    }
    lines = [f"  {name:<12} {value}" for name, value in rows.items()]
    return "\n".join([f"The store {found['store']} will do.", "", *lines])
