"""The engine of soaks: a load flows, things go wrong by a schedule, and at the end a report says what held.

What goes wrong is data: a `Fault` has a beginning, a time away and an end. Faults that touch the same group never
happen at once; whatever else may. A schedule says when the next one is due: at moments of the load's progress
(`Moments`), or one after the other, the load going on in between (`Rounds`). `disturb` runs it: it starts again what
ends by itself and may, and gives up when the load makes no progress for long.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final, Protocol, cast

from bench.deployment import Deployment
from infra.stack.flink import JOB_MANAGER, Flink
from infra.stack.server import Server
from jobs.verify import Check, Verification
from pipelines.errors import StreambankError

__all__ = [
    "Disturbance",
    "Fault",
    "Happened",
    "Load",
    "Moments",
    "Report",
    "Rounds",
    "Say",
    "SoakError",
    "kill_process",
    "kill_processes",
    "kill_server",
    "outage",
    "part_faults",
]

LOOP_SECONDS: Final = 0.05
STALL_SECONDS: Final = 600.0
"""So long nothing may be acknowledged."""
FAULTS_AT_ONCE: Final = 16

Say = Callable[[str], None]
Servers = Mapping[str, Server]


class SoakError(StreambankError):
    """The soak could not go on."""


# --- what goes wrong --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """``begin`` returns when it has gone wrong, ``end`` when everything is started again, healthy or not yet; between
    them lie ``outage_seconds``. ``groups`` are those of the deployment's locks that it holds."""

    name: str
    groups: tuple[str, ...]
    begin: Callable[[], object]
    end: Callable[[], object] = lambda: None
    outage_seconds: float = 0.0


def kill_process(deployment: Deployment, name: str) -> Fault:
    """SIGKILL to a process and its children; it is started again."""
    return Fault(name, (name,), partial(deployment.kill, name), partial(deployment.start, name))


def kill_processes(deployment: Deployment, name: str, processes: Sequence[str]) -> Fault:
    """The same for several at once."""

    def all_of(act: Callable[[str], None]) -> None:
        for process in processes:
            act(process)

    return Fault(name, tuple(processes), lambda: all_of(deployment.kill), lambda: all_of(deployment.start))


def kill_server(deployment: Deployment, server: Server) -> Fault:
    """SIGKILL to all processes of a server."""
    return Fault(server.name, (server.name,), server.kill, lambda: _bring_back(deployment, [server]))


def outage(deployment: Deployment, servers: Sequence[Server], seconds: float) -> Fault:
    """The servers are stopped, and away together for so long."""

    def stop() -> None:
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(lambda server: server.stop(), servers))

    names = [server.name for server in servers]
    return Fault(f"{', '.join(names)} away", tuple(names), stop, lambda: _bring_back(deployment, servers), seconds)


def part_faults(deployment: Deployment, servers: Servers) -> dict[str, Fault]:
    """A kill of everything there is, by name: each process, one of the API's workers, each server; of Flink a
    TaskManager and the JobManager."""
    flink = cast(Flink, servers["flink"])
    faults = [kill_process(deployment, name) for name in deployment.processes]
    faults += [kill_server(deployment, server) for name, server in servers.items() if name != "flink"]
    faults += [
        Fault("taskmanager", ("flink",), flink.kill_task_manager, flink.start_task_manager),
        Fault(
            JOB_MANAGER, ("flink",), flink.process(JOB_MANAGER).kill, lambda: _bring_back(deployment, [flink])
        ),
        Fault("api-worker", ("api",), deployment.kill_api_worker),
    ]  # fmt: skip
    return {fault.name: fault for fault in sorted(faults, key=lambda fault: fault.name)}


def _bring_back(deployment: Deployment, servers: Sequence[Server]) -> None:
    for server in servers:
        server.start()
    for server in servers:
        server.wait_healthy()
    if any(server.name == "flink" for server in servers):
        # without high availability it has forgotten its jobs: they go on from their newest checkpoints
        deployment.submit_jobs()


# --- when it goes wrong -----------------------------------------------------------------------------------------------


class Schedule(Protocol):
    """Says which faults happen when."""

    @property
    def is_over(self) -> bool:
        """Whether it ends the soak; else that ends when the load does."""
        ...

    def due(self, progress: int, under_way: int) -> Fault | None:
        """The fault that begins now, if any: ``progress`` of the load is made, so many faults are under way."""
        ...


@dataclass(slots=True)
class Moments:
    """Each fault when the load has come so far; several may be under way. ``plan`` is sorted by its moments."""

    plan: list[tuple[int, Fault]]

    @property
    def is_over(self) -> bool:
        """Never: when all has happened, the rest of the load still flows."""
        return False

    def due(self, progress: int, under_way: int) -> Fault | None:
        if self.plan and progress >= self.plan[0][0]:
            return self.plan.pop(0)[1]
        return None


@dataclass(slots=True)
class Rounds:
    """One fault after the other, each when the load came ``between`` further after the one before; whole rounds of
    them, at least one, until ``seconds`` are over."""

    new_round: Callable[[], Sequence[Fault]]
    between: int
    seconds: float = 0.0
    is_over: bool = False
    _left: list[Fault] = field(default_factory=list)
    _rounds: int = 0
    _resume_at: int | None = None
    _begin: float = field(default_factory=time.monotonic)

    def due(self, progress: int, under_way: int) -> Fault | None:
        if under_way or self.is_over:
            return None
        if self._resume_at is None:
            self._resume_at = progress + self.between
        if progress < self._resume_at:
            return None
        if not self._left:
            if self._rounds and time.monotonic() - self._begin >= self.seconds:
                self.is_over = True
                return None
            self._left = list(self.new_round())
            self._rounds += 1
        self._resume_at = None
        return self._left.pop(0)


# --- the run ----------------------------------------------------------------------------------------------------------


class Load(Protocol):
    """What flows meanwhile, on threads of its own."""

    @property
    def progress(self) -> int:
        """How much of it was acknowledged."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether all of it was sent."""
        ...

    def require_no_error(self) -> None:
        """Raises what went wrong."""
        ...


@dataclass(frozen=True, slots=True)
class Happened:
    """A fault that happened, at which progress of the load; ``seconds`` until everything had been started again."""

    name: str
    at: int
    seconds: float


class Disturbance:
    """Faults over a deployment. ``away``: what has gone wrong just now, and since when (`time.monotonic`)."""

    def __init__(self, deployment: Deployment, say: Say) -> None:
        self.happened: list[Happened] = []
        self.away: dict[str, float] = {}
        self._deployment = deployment
        self._say = say

    def run(self, load: Load, schedule: Schedule) -> None:
        """Until the schedule is over, or the load is, and everything is back. Raises `SoakError` and what failed."""
        under_way: list[Future[None]] = []
        moved = time.monotonic(), -1
        with ThreadPoolExecutor(FAULTS_AT_ONCE) as pool:
            while True:
                load.require_no_error()
                for failed in [fault for fault in under_way if fault.done() and fault.exception() is not None]:
                    failed.result()
                under_way = [fault for fault in under_way if not fault.done()]
                if load.progress > moved[1]:
                    moved = time.monotonic(), load.progress
                elif time.monotonic() > moved[0] + STALL_SECONDS:
                    raise SoakError(
                        f"nothing was acknowledged for {STALL_SECONDS:.0f} s; away: {sorted(self.away) or 'nothing'}"
                    )
                while (fault := schedule.due(load.progress, len(under_way))) is not None:
                    under_way.append(pool.submit(self._happen, fault, load))
                if (load.is_over or schedule.is_over) and not under_way:
                    return
                self._deployment.supervise()
                time.sleep(LOOP_SECONDS)

    def _happen(self, fault: Fault, load: Load) -> None:
        with ExitStack() as held:
            for group in sorted(fault.groups):
                held.enter_context(self._deployment.lock(group))
            begin = time.monotonic()
            self.away[fault.name] = begin
            try:
                fault.begin()
                time.sleep(fault.outage_seconds)  # the length is the point, nothing is waited for
                fault.end()
            finally:
                del self.away[fault.name]
            seconds = time.monotonic() - begin
        self.happened.append(Happened(fault.name, load.progress, round(seconds, 2)))
        self._say(f"{fault.name}: back after {seconds:.1f} s, at {load.progress:,}")


@dataclass(slots=True)
class Report:
    """``figures`` in the order in which they are shown; ``answers``: how often what was answered."""

    figures: dict[str, float] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    faults: list[Happened] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    def check(self, name: str, expected: Any, found: Any, detail: str = "") -> None:
        self.checks.append(Check(name, expected, found, detail))

    def times(self) -> Counter[str]:
        """How often each fault happened."""
        return Counter(fault.name for fault in self.faults)

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "figures": self.figures,
            "answers": self.answers,
            "faults": [asdict(fault) for fault in self.faults],
            "checks": Verification(self.checks).as_json()["checks"],
            **self.more,
        }
