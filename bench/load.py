"""A load of one write per request. It uses wrk if it is installed, otherwise this module.

`python -m bench.load PORT SECONDS CONNECTIONS PATH...` runs the replacement of wrk.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.events import BODIES
from bench.processes import HOST, BenchError, output_of
from bench.raw import Exchange, post
from megaphone.cli.serve import new_event_loop

CONNECTIONS = 32
BODY = BODIES[0]

SCRIPT = """
local requests, turn = {}, 0

function init(args)
  local headers = {["Content-Type"] = "application/json"}
  for i, path in ipairs(args) do
    requests[i] = wrk.format("POST", path, headers, [[%s]])
  end
end

function request()
  turn = turn %% #requests + 1
  return requests[turn]
end

function done(summary)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %%d, "seconds": %%f, "failed": %%d}\\n',
    summary.requests, summary.duration / 1e6,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """Writes to several paths alternately, over several connections at once."""

    wrk: str | None
    """The command wrk; without it, the replacement is used."""

    @classmethod
    def chosen(cls, by: str) -> "Load":
        """Return the load by name: wrk, python or auto. Raises: BenchError, if there is no wrk."""
        found = None if by == "python" else shutil.which("wrk")
        if by == "wrk" and found is None:
            raise BenchError("there is no wrk on the PATH")
        return cls(found)

    @property
    def name(self) -> str:
        return "wrk" if self.wrk else "asyncio sockets in another process (no wrk)"

    async def write(self, port: int, paths: list[str], seconds: float) -> tuple[int, float]:
        """Write for a while. wrk can do this only for whole seconds.

        Returns: how many writes were answered, and in how many seconds.
        Raises: BenchError, if a write failed.
        """
        if self.wrk:
            out = await self._run_wrk(self.wrk, port, paths, max(1, round(seconds)))
        else:
            amounts = [str(port), str(seconds), str(CONNECTIONS)]
            out = await output_of([sys.executable, "-m", "bench.load", *amounts, *paths])
        result = json.loads(out.strip().splitlines()[-1])
        if result["failed"] or not result["requests"]:
            raise BenchError(f"{result['failed']} writes failed, {result['requests']} did not")
        return int(result["requests"]), float(result["seconds"])

    async def _run_wrk(self, wrk: str, port: int, paths: list[str], seconds: int) -> str:
        with tempfile.TemporaryDirectory(prefix="megaphone-bench-") as folder:
            script = script_in(folder)
            amounts = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script]
            return await output_of([wrk, *amounts, f"http://{HOST}:{port}", "--", *paths])


def script_in(folder: str) -> str:
    script = Path(folder, "write.lua")
    script.write_text(SCRIPT % BODY.decode())
    return str(script)


# -- The stand-in


async def write_for(port: int, seconds: float, connections: int, paths: list[str]) -> None:
    loop = asyncio.get_running_loop()
    requests = [post(path, BODY) for path in paths]
    exchanges = [await Exchange.connect(port) for _ in range(connections)]
    began = loop.time()
    counts = await asyncio.gather(
        *(
            write_until(began + seconds, exchange, requests, first)
            for first, exchange in enumerate(exchanges)
        )
    )
    took = loop.time() - began
    print(json.dumps({"requests": sum(counts), "seconds": took, "failed": 0}))


async def write_until(end: float, exchange: Exchange, requests: list[bytes], turn: int) -> int:
    """Write to all paths alternately. Returns: how many writes were answered with 201."""
    loop = asyncio.get_running_loop()
    count = 0
    while loop.time() < end:
        await exchange.ask(requests[(turn + count) % len(requests)], 201)
        count += 1
    return count


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            port, seconds, connections, *paths = sys.argv[1:]
            runner.run(write_for(int(port), float(seconds), int(connections), paths))
        except BenchError as error:
            sys.exit(str(error))
