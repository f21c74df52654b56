"""Certificates for the clients of a cluster."""

import base64
from pathlib import Path

from tests.operator_e2e.api import path_of
from tests.operator_e2e.demo import Demo
from tests.support.certificates import Authority


async def secret_with_certificate(demo: Demo, name: str, folder: Path) -> Path:
    """Make a Secret with a certificate for the host of a cluster. Returns: the file of the
    authority that signed it."""
    made = Authority(folder).issue(names=[demo.host])
    files = {"tls.crt": made.certificate, "tls.key": made.key}
    data = {key: base64.b64encode(file.read_bytes()).decode() for key, file in files.items()}
    body = {"metadata": {"name": name}, "type": "kubernetes.io/tls", "data": data}
    await demo.api.create(path_of("secrets", demo.namespace), body)
    return made.authority
