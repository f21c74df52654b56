"""Asks for a report, and waits for it at the broker."""

import asyncio
import os
import sys

import aiohttp

from megaphone_client import Megaphone


async def main(url: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/report") as answer,
        Megaphone.from_url(os.environ.get("MEGAPHONE_URL")) as megaphone,
    ):
        consumer = (await answer.json())["consumer"]
        async with megaphone.read(consumer) as events:
            async for event in events:
                print(event.stream, event.body)
                if event.stream == "done":
                    break


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
