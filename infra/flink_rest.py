"""Flink's REST API, as far as operating jobs needs it: list, submit, savepoint, stop, cancel, and why a job failed.

Errors: `FlinkError` for a cluster that is away or refuses, `JobNotFound`, `JobFailed` with the Python traceback.
Every wait has a deadline and raises `FlinkError` when it passes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import httpx

from infra.settings import Settings, settings
from pipelines.errors import StreambankError

__all__ = ["Checkpoint", "FlinkError", "FlinkRest", "Job", "JobFailed", "JobNotFound", "python_error"]

TIMEOUT_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.1
TERMINAL_STATES: Final = frozenset({"FINISHED", "CANCELED", "FAILED", "SUSPENDED"})
PYTHON_EXCEPTIONS: Final = ("pemja.core.PythonException: ", "io.streambank.flink.KernelStoppedException: ")


class FlinkError(StreambankError):
    """The cluster is away, refused a request, or did not finish in time."""


class JobNotFound(FlinkError):  # noqa: N818 - a state, named for what it is
    """No job has that name or id."""


class JobFailed(FlinkError):  # noqa: N818 - a state, named for what it is
    """A job failed; the message holds the Python traceback where there is one."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job of the cluster. ``running_tasks`` of ``tasks`` are working; a job serves when all do."""

    id: str
    name: str
    state: str
    started_at: datetime
    running_tasks: int
    tasks: int

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def is_serving(self) -> bool:
        return self.state == "RUNNING" and self.running_tasks == self.tasks


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The newest completed checkpoint of a job."""

    id: int
    path: str
    completed_at: datetime
    size_bytes: int
    duration_ms: int


class FlinkRest:
    """A connection to one cluster. Use as a context manager; not thread-safe."""

    def __init__(self, config: Settings | None = None) -> None:
        self._config = config or settings()
        self._client = httpx.Client(base_url=self._config.flink_url, timeout=TIMEOUT_SECONDS, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    # --- looking

    def jobs(self) -> list[Job]:
        """All jobs that the cluster remembers, the newest first."""
        found = [
            Job(
                id=entry["jid"],
                name=entry["name"],
                state=entry["state"],
                started_at=_time(entry["start-time"]),
                running_tasks=entry["tasks"]["running"],
                tasks=entry["tasks"]["total"],
            )
            for entry in self._call("GET", "/jobs/overview")["jobs"]
        ]
        return sorted(found, key=lambda job: job.started_at, reverse=True)

    def job(self, name_or_id: str) -> Job:
        """The job with that id; or of that name the one that is not over, or else the newest."""
        jobs = self.jobs()
        for job in jobs:
            if job.id == name_or_id:
                return job
        named = [job for job in jobs if job.name == name_or_id]
        if not named:
            known = ", ".join(sorted({job.name for job in jobs})) or "none"
            raise JobNotFound(f"no job {name_or_id!r} on {self._config.flink_url}; there are: {known}")
        return next((job for job in named if not job.is_terminal), named[0])

    def running_job(self, name_or_id: str) -> Job:
        """As `job`, but it must not be over."""
        job = self.job(name_or_id)
        if job.is_terminal:
            raise JobNotFound(f"job {job.name} ({job.id}) is {job.state}; `streambank submit {job.name}` starts it")
        return job

    def parallelism(self, job: Job) -> int:
        """The largest parallelism of the job's operators."""
        vertices = self._call("GET", f"/jobs/{job.id}")["vertices"]
        return max(int(vertex["parallelism"]) for vertex in vertices)

    def restarts(self, job: Job) -> int:
        """How often the job was restarted since it was submitted."""
        found = self._call("GET", f"/jobs/{job.id}/metrics", params={"get": "numRestarts"})
        return int(float(found[0]["value"])) if found else 0

    def latest_checkpoint(self, job: Job) -> Checkpoint | None:
        """The newest completed checkpoint, None before the first."""
        latest = self._call("GET", f"/jobs/{job.id}/checkpoints")["latest"]["completed"]
        if latest is None:
            return None
        return Checkpoint(
            id=latest["id"],
            path=latest["external_path"],
            completed_at=_time(latest["latest_ack_timestamp"]),
            size_bytes=latest["state_size"],
            duration_ms=latest["end_to_end_duration"],
        )

    def failure(self, job: Job) -> str | None:
        """Why the job failed or restarted last: the Python traceback if there is one, else Flink's stack trace."""
        entries = self._call("GET", f"/jobs/{job.id}/exceptions").get("exceptionHistory", {}).get("entries", [])
        if not entries:
            return None
        newest = max(entries, key=lambda entry: entry["timestamp"])
        return python_error(newest["stacktrace"]) or str(newest["stacktrace"])

    def counters(self, job: Job) -> dict[int, dict[str, int]]:
        """The kernel's counters by shard, as {shard: {"frames": ..., "dead_letters": ...}}, since the last restart."""
        found: dict[int, dict[str, int]] = {}
        for vertex in self._call("GET", f"/jobs/{job.id}")["vertices"]:
            path = f"/jobs/{job.id}/vertices/{vertex['id']}/metrics"
            names = [entry["id"] for entry in self._call("GET", path) if re.search(r"\.shard\.\d+\.", entry["id"])]
            if not names:
                continue
            for entry in self._call("GET", path, params={"get": ",".join(names)}):
                match = re.search(r"\.shard\.(\d+)\.(\w+)$", entry["id"])
                if match is not None:
                    found.setdefault(int(match[1]), {})[match[2]] = int(float(entry["value"]))
        return dict(sorted(found.items()))

    # --- acting

    def savepoint(self, job: Job, directory: str, timeout_seconds: float = 120) -> str:
        """Write a savepoint below ``directory`` while the job goes on; returns its path."""
        body = {"target-directory": directory, "cancel-job": False, "formatType": "CANONICAL"}
        trigger = self._call("POST", f"/jobs/{job.id}/savepoints", json=body)["request-id"]
        return self._savepoint_path(job, trigger, timeout_seconds)

    def stop_with_savepoint(self, job: Job, directory: str, timeout_seconds: float = 120) -> str:
        """Stop the job after a last savepoint; returns its path. Nothing that was read is applied twice."""
        body = {"targetDirectory": directory, "drain": False, "formatType": "CANONICAL"}
        trigger = self._call("POST", f"/jobs/{job.id}/stop", json=body)["request-id"]
        path = self._savepoint_path(job, trigger, timeout_seconds)
        self._wait(
            lambda: self.job(job.id).is_terminal, timeout_seconds, f"job {job.name} has a savepoint, but did not stop"
        )
        return path

    def cancel(self, job: Job, timeout_seconds: float = 60) -> None:
        """Cancel the job and wait until it is over; its newest checkpoint is kept."""
        self._call("PATCH", f"/jobs/{job.id}", params={"mode": "cancel"})
        self._wait(lambda: self.job(job.id).is_terminal, timeout_seconds, f"job {job.name} did not stop")

    def wait_serving(self, job: Job, timeout_seconds: float = 300) -> Job:
        """Wait until all tasks of the job are running. Raises `JobFailed` when it failed instead."""

        def is_serving() -> bool:
            now = self.job(job.id)
            if now.is_terminal:
                raise JobFailed(f"job {job.name} ({job.id}) is {now.state}:\n{self.failure(job) or 'no reason given'}")
            return now.is_serving

        try:
            self._wait(is_serving, timeout_seconds, f"job {job.name} ({job.id}) is not running")
        except JobFailed:
            raise
        except FlinkError as error:
            reason = self.failure(job)
            hint = f"it last failed with:\n{reason}" if reason else "are there enough slots?"
            raise FlinkError(f"{error}; {hint}") from error
        return self.job(job.id)

    def wait_task_managers(self, count: int, timeout_seconds: float = 90) -> None:
        """Wait until exactly ``count`` TaskManagers are registered."""

        def registered() -> bool:
            return len(self._call("GET", "/taskmanagers")["taskmanagers"]) == count

        self._wait(registered, timeout_seconds, f"the cluster does not have {count} TaskManagers")

    def _savepoint_path(self, job: Job, trigger: str, timeout_seconds: float) -> str:
        answer: dict[str, Any] = {}

        def is_complete() -> bool:
            nonlocal answer
            answer = self._call("GET", f"/jobs/{job.id}/savepoints/{trigger}")
            return bool(answer["status"]["id"] == "COMPLETED")

        self._wait(is_complete, timeout_seconds, f"the savepoint of job {job.name} is not complete")
        operation = answer["operation"]
        if "failure-cause" in operation:
            cause = operation["failure-cause"]["stack-trace"]
            raise FlinkError(f"the savepoint of job {job.name} failed: {python_error(cause) or cause.splitlines()[0]}")
        return str(operation["location"])

    def _wait(self, condition: Callable[[], bool], timeout_seconds: float, failure: str) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if time.monotonic() > deadline:
                raise FlinkError(f"{failure} after {timeout_seconds:.0f} s")
            time.sleep(POLL_SECONDS)

    def _call(self, method: str, path: str, **request: Any) -> Any:
        try:
            response = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise FlinkError(
                f"Flink at {self._config.flink_url} does not answer ({error or type(error).__name__}); "
                "start it with `streambank up`"
            ) from error
        if response.is_error:
            raise FlinkError(f"{method} {path}: {response.status_code} {_reason(response)}")
        return response.json() if response.content else None


def python_error(stacktrace: str) -> str | None:
    """The Python error at the bottom of a Java stack trace: the text of the last exception that carries one, without
    Java's lines; None if there is none."""
    start, length = max((stacktrace.rfind(name), len(name)) for name in PYTHON_EXCEPTIONS)
    if start < 0:
        return None
    text = re.split(r"\n\s+at [\w.$/<>]+\(|\n\s*Caused by: ", stacktrace[start + length :], maxsplit=1)[0]
    return re.sub(r"^<class '[\w.]+'>: ", "", text).strip()


def _reason(response: httpx.Response) -> str:
    try:
        text = "\n".join(response.json()["errors"])
    except (ValueError, KeyError, TypeError):
        text = response.text
    found = re.findall(r"(?:Caused by: |^)(?:[\w.$]+(?:Exception|Error): )(.+)", text, re.MULTILINE)
    return (found[-1] if found else text)[:500]


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
