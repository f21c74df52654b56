"""Run a node: `python -m tests.operator_e2e.kubelet NAME NUMBER FOLDER`.

`FOLDER` has `access.json`, and the certificate of kubelets with its key.
"""

import asyncio
import sys
from pathlib import Path

import aiohttp

from tests.operator_e2e.addresses import node_address
from tests.operator_e2e.api import Access, Api
from tests.operator_e2e.kubelet.node import Node
from tests.operator_e2e.kubelet.serving import serving


async def main(name: str, number: int, folder: Path) -> None:
    access = Access.load(folder / "access.json")
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with Api(access) as api, aiohttp.ClientSession(connector=connector) as session:
        node = Node(api, session, name, number, folder / name)
        certificate, key = folder / "kubelet.pem", folder / "kubelet-key.pem"
        async with serving(node, node_address(number), certificate, key):
            await node.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
