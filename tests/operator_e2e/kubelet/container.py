"""One container: its process, which is started again and again, its probes, and its end."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from tests.operator_e2e.api import Object
from tests.operator_e2e.kubelet.images import Image, NoSuchImage, image_of
from tests.operator_e2e.kubelet.probes import Probe
from tests.operator_e2e.kubelet.root import Box

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 16.0
"""How long a container that ends again and again stays away. A kubelet begins with ten seconds."""
PULL_AGAIN_S = 2.0
LAST_BYTES, LAST_LINES = 2048, 80
"""How much of the log of a container that fails its pod may tell."""


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True)
class State:
    """What a pod tells of a container."""

    current: Object = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: Object = field(default_factory=dict)
    restarts: int = 0
    started: bool = False
    ready: bool = False
    """Whether its probes say that it is ready; whether it runs is another matter."""

    @property
    def is_running(self) -> bool:
        return "running" in self.current

    @property
    def exit_code(self) -> int | None:
        """The code with which it has ended for good; None if it runs or will."""
        ended = self.current.get("terminated")
        return None if ended is None else int(ended["exitCode"])


@dataclass(slots=True)
class Place:
    """Where the containers of a pod run."""

    pod: Object
    folder: Path
    network: str
    address: str
    volumes: Mapping[str, Path]
    session: aiohttp.ClientSession
    """For probes."""


class Container:
    """Runs one container of a pod."""

    def __init__(self, wanted: Object, report: Callable[[], None]) -> None:
        """`report` is called after each change of the state."""
        self.wanted = wanted
        self.name = str(wanted["name"])
        self.state = State()
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._image: Image | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._is_over = False

    async def run(self, place: Place, environment: Mapping[str, str], policy: str) -> None:
        """Run it, and again as often as the policy of its pod says."""
        self._image = await self._pull()
        pause_s = FIRST_PAUSE_S
        while True:
            began = asyncio.get_running_loop().time()
            code = await self._run_once(place, environment)
            if self._is_over or policy == "Never" or (policy == "OnFailure" and code == 0):
                return
            if asyncio.get_running_loop().time() - began > 10 * LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            self.state.last = self.state.current
            self._change({"waiting": {"reason": "CrashLoopBackOff"}})
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self.state.restarts += 1

    async def end(self, grace_s: float) -> None:
        """Stop it, and do not start it again."""
        self._is_over = True
        await self._stop(grace_s)

    def kill(self) -> None:
        self._is_over = True
        self._signal(signal.SIGKILL)

    # -- One process

    async def _stop(self, grace_s: float) -> None:
        """Stop it with the signal of its image, and after the grace period at once."""
        if self._process is None:
            return
        deadline = asyncio.get_running_loop().time() + grace_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._before_stop()
        self._signal(signal.Signals[self._image.stop_signal if self._image else "SIGTERM"])
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._process.wait()
        self._signal(signal.SIGKILL)
        self._note_end(await self._process.wait())

    async def _pull(self) -> Image:
        while True:
            try:
                return image_of(self.wanted["image"])
            except NoSuchImage:
                message = f"there is no image {self.wanted['image']}"
                self._change({"waiting": {"reason": "ErrImagePull", "message": message}})
                await asyncio.sleep(PULL_AGAIN_S)

    async def _run_once(self, place: Place, environment: Mapping[str, str]) -> int:
        assert self._image is not None
        folder = place.folder / f"{self.name}-{self.state.restarts}"
        box = Box(
            place.pod,
            self.wanted,
            self._image,
            folder,
            place.network,
            place.address,
            place.volumes,
            environment,
        )
        command = box.command()
        log = place.folder / f"{self.name}.log"
        log.touch()
        log.chmod(0o666)  # as /dev/stdout its program opens it anew
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.state.started = "startupProbe" not in self.wanted
        self.state.ready = "readinessProbe" not in self.wanted
        self._change({"running": {"startedAt": now()}})
        probing = asyncio.create_task(self._probe(place))
        try:
            code = await self._process.wait()
        finally:
            probing.cancel()
        self._signal(signal.SIGKILL)  # to what the program has left
        self._note_end(code, log)
        return code

    def _last_words(self, log: Path) -> Object:
        """Return the message with which a container ends that has failed."""
        if self.wanted.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return {}
        lines = log.read_bytes()[-LAST_BYTES:].splitlines(keepends=True)[-LAST_LINES:]
        return {"message": b"".join(lines).decode(errors="replace")}

    def _note_end(self, code: int, log: Path | None = None) -> None:
        if self.state.exit_code is not None:
            return
        began = self.state.current.get("running", {}).get("startedAt", now())
        self.state.started = self.state.ready = False
        self._change(
            {
                "terminated": {
                    "exitCode": code if code >= 0 else 128 - code,
                    "reason": "Completed" if code == 0 else "Error",
                    "startedAt": began,
                    "finishedAt": now(),
                    **(self._last_words(log) if code and log is not None else {}),
                }
            }
        )

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the program; SIGKILL to all that it has started too."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self._process.pid, number)
            elif self._process.returncode is None:
                self._process.send_signal(number)

    async def _before_stop(self) -> None:
        hook = self.wanted.get("lifecycle", {}).get("preStop", {})
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
        elif "exec" in hook:
            await self._execute(hook["exec"]["command"])
        elif hook:
            raise NotImplementedError(f"a hook like {sorted(hook)}")

    async def _execute(self, command: Sequence[str]) -> None:
        """Run a command within the container, to its end."""
        assert self._process is not None
        if self._process.returncode is None:
            where = (f"--target={self._process.pid}", "--mount", "--uts", "--net", "--root")
            inside = await asyncio.create_subprocess_exec("nsenter", *where, *command)
            await inside.wait()

    # -- Probes

    async def _probe(self, place: Place) -> None:
        probes = {
            kind: Probe(place.session, self.wanted[kind], self.wanted, place.address, report)
            for kind, report in (
                ("startupProbe", self._note_started),
                ("readinessProbe", self._note_ready),
                ("livenessProbe", self._note_alive),
            )
            if kind in self.wanted
        }
        if "startupProbe" in probes:
            await probes.pop("startupProbe").run_until(lambda: self.state.started)
        async with asyncio.TaskGroup() as group:
            for probe in probes.values():
                group.create_task(probe.run())

    def _note_started(self, verdict: bool) -> None:
        self.state.started = verdict
        self._report()

    def _note_ready(self, verdict: bool) -> None:
        if self.state.ready != verdict:
            self.state.ready = verdict
            self._report()

    def _note_alive(self, verdict: bool) -> None:
        """Stop a container that is not alive; `run` starts it again."""
        if not verdict and self._stopping is None:
            grace_s = self.wanted["livenessProbe"].get("terminationGracePeriodSeconds", 30)
            self._stopping = asyncio.create_task(self._stop(grace_s))
            self._stopping.add_done_callback(self._forget_stop)

    def _forget_stop(self, _: object) -> None:
        self._stopping = None

    def _change(self, state: Object) -> None:
        self.state.current = state
        self._report()
