"""What a broker prints on a terminal when it serves."""

import os

from megaphone import __version__
from megaphone.listen.exposure import reachable
from megaphone.observe.logs import LineWriter
from megaphone.settings import Settings

STANDARD_OUTPUT = 1


def announce(settings: Settings, http_port: int, grpc_port: int) -> None:
    """Print the addresses of the node, if standard output is a terminal. Programs find them in the
    process log."""
    if not os.isatty(STANDARD_OUTPUT):
        return
    scheme = "http" if settings.tls.certificate is None else "https"
    http = f"{scheme}://{reachable(settings.http_endpoint.with_port(http_port))}"
    text = (
        f"\n  Megaphone {__version__} is ready.\n\n"
        f"    HTTP   {http}\n"
        f"    gRPC   {reachable(settings.grpc_endpoint.with_port(grpc_port))}\n"
        f"    agent  {', '.join(settings.agent)}\n\n"
        f"  Make a channel:  curl -X POST {http}/create\n"
        "  Stop with Ctrl-C.\n\n"
    )
    # A LineWriter, because a terminal that Ctrl-S has stopped would block a plain write.
    LineWriter(STANDARD_OUTPUT, report=lambda count: b"").write(text.encode())
