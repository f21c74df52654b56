"""TLS of a gRPC server, whose certificate may change while it serves."""

from collections.abc import Callable

import grpc

from megaphone.listen.certificates import Contents


def server_credentials(current: Callable[[], Contents]) -> grpc.ServerCredentials:
    """Return credentials by which each new connection gets the certificate that is in use then.

    Open connections go on with theirs. Whether clients need a certificate is as it is now.
    """
    used = current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # gRPC calls this in a thread of its own, before each handshake.
        nonlocal used
        contents = current()
        if contents is used:
            return None
        used = contents
        return configuration(contents)

    return grpc.dynamic_ssl_server_credentials(
        configuration(used),
        changed,  # type: ignore[arg-type]  # None is documented
        require_client_authentication=used.client_ca is not None,
    )


def configuration(contents: Contents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(contents.key, contents.certificate)], contents.client_ca
    )


def channel_credentials(contents: Contents) -> grpc.ChannelCredentials:
    """Return credentials with which this node calls another node, and checks its certificate."""
    return grpc.ssl_channel_credentials(contents.client_ca, contents.key, contents.certificate)
