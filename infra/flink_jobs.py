"""Starting, upgrading and finding again the jobs of this project on a Flink cluster.

A job is a file of jobs/ that is handed to the ``flink`` command of the set-up FLINK_HOME, as an operator would do by
hand; its name on the cluster is its pipeline's, with the environment's topic prefix. Checkpoints and savepoints lie
below a directory of that name.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlparse

from infra.flink_rest import FlinkRest, Job, JobNotFound, python_error
from infra.registry import schema_ids
from infra.settings import PROJECT_ROOT, Settings, settings
from infra.stack.flink import Flink
from pipelines.catalogue import PIPELINES, SERVICES
from pipelines.errors import StreambankError

__all__ = ["LATEST", "Submission", "SubmitError", "job_file", "job_name", "latest_state", "submit", "upgrade"]

LATEST: Final = "latest-checkpoint"
"""In place of a savepoint's path: the newest complete checkpoint or savepoint of the pipeline."""
CLIENT_SECONDS: Final = 300.0
LOG_LINE: Final = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")


class SubmitError(StreambankError):
    """A job could not be submitted; the message holds what the client said."""


@dataclass(frozen=True, slots=True)
class Submission:
    """How to start a job. ``flink_options`` are any keys of Flink's configuration."""

    file: Path
    name: str
    parallelism: int = 1
    from_savepoint: str | None = None
    checkpoint_interval: str | None = None
    state_backend: str | None = None
    flink_options: Mapping[str, str] = field(default_factory=dict)

    def options(self) -> dict[str, str]:
        """Flink's configuration keys that this submission sets."""
        given = {
            "execution.checkpointing.interval": self.checkpoint_interval,
            "state.backend.type": self.state_backend,
        }
        return {**{key: value for key, value in given.items() if value is not None}, **self.flink_options}


def job_file(pipeline: str) -> Path:
    """The job file of a catalogue pipeline, or of a service that runs as a job. `SubmitError` names those there are."""
    names = [*PIPELINES, *(name for name, service in SERVICES.items() if service.runs_as == "Flink job")]
    path = PROJECT_ROOT / "jobs" / f"{pipeline}.py"
    if pipeline not in names or not path.exists():
        raise SubmitError(f"no pipeline {pipeline!r}; there are: {', '.join(names)}")
    return path


def job_name(pipeline: str, config: Settings) -> str:
    """A pipeline's name on the cluster."""
    return config.kafka_topic(pipeline)


def submit(submission: Submission, config: Settings | None = None) -> Job:
    """Submit a job and wait until all its tasks run.

    Raises `SubmitError` when the client fails or the job is running already, `JobFailed` with the Python traceback when
    it fails at its start, `SchemaNotRegistered` when an output could not be written.
    """
    config = config or settings()
    if (system := PIPELINES.get(submission.file.stem) or SERVICES.get(submission.file.stem)) is not None:
        # what the job file needs first; here its absence is a plain message
        schema_ids((*system.outputs, system.dead_letters), config)
    with FlinkRest(config) as flink:
        running = [job for job in flink.jobs() if job.name == submission.name and not job.is_terminal]
        if running:
            raise SubmitError(
                f"job {submission.name} is {running[0].state} as {running[0].id}; "
                f"`streambank upgrade {submission.name}` replaces it, `streambank cancel {submission.name}` ends it"
            )
        job_id = _run_client(submission, config)
        return flink.wait_serving(flink.job(job_id))


def upgrade(
    job: Job, submission: Submission, config: Settings | None = None, *, restart_task_managers: bool = True
) -> Job:
    """Replace a running job: stop it with a savepoint, load the new code, start it again from there.

    A TaskManager keeps the Python modules it has imported, therefore those of the local stack are restarted; on
    another cluster the operator restarts them. Frames that arrive meanwhile wait in Kafka.
    """
    config = config or settings()
    with FlinkRest(config) as flink:
        savepoint = flink.stop_with_savepoint(job, savepoint_directory(job.name, config))
    try:
        if restart_task_managers:
            restart_local_task_managers(config)
        return submit(replace(submission, from_savepoint=savepoint), config)
    except StreambankError as error:
        raise SubmitError(
            f"job {job.name} was stopped, but its successor did not start; its state is safe in {savepoint}. "
            f"Go on from there with: streambank submit {job.name} --from-savepoint {savepoint}\n{error}"
        ) from error


def savepoint_directory(name: str, config: Settings) -> str:
    """Where savepoints of a job go, as a URI."""
    return (config.savepoints_dir / name).resolve().as_uri()


def latest_state(name: str, config: Settings | None = None) -> str:
    """URI of the newest complete checkpoint or savepoint of a job, by the time it was completed.

    It is found on disk, so it works when the cluster has forgotten the job.
    """
    config = config or settings()
    found = [
        *(config.checkpoints_dir / name).glob("*/chk-*/_metadata"),
        *(config.savepoints_dir / name).glob("*/_metadata"),
    ]
    if not found:
        raise JobNotFound(
            f"job {name} has no complete checkpoint below {config.checkpoints_dir} and no savepoint below "
            f"{config.savepoints_dir}; without --from-savepoint it is rebuilt from the beginning of its input"
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent.resolve().as_uri()


def restart_local_task_managers(config: Settings) -> int:
    """Restart the TaskManagers of the local stack, one after the other gone; returns how many there were (0 when the
    cluster is not ours)."""
    flink = Flink(config)
    running = flink.task_managers()
    for process in running:
        process.stop(flink.stop_seconds)
    for _ in running:
        flink.start_task_manager()
    if running:
        with FlinkRest(config) as rest:
            rest.wait_task_managers(len(running))
    return len(running)


def _run_client(submission: Submission, config: Settings) -> str:
    cluster = Flink(config)
    arguments = ["run", "--detached"]
    arguments += ["--jobmanager", urlparse(config.flink_url).netloc]
    arguments += ["--parallelism", str(submission.parallelism)]
    if submission.from_savepoint is not None:
        state = submission.from_savepoint
        arguments += ["--fromSavepoint", latest_state(submission.name, config) if state == LATEST else state]
    for key, value in submission.options().items():
        arguments.append(f"-D{key}={value}")
    arguments += ["--python", str(submission.file)]
    environment = {key: value for key, value in {**os.environ, **cluster.environment()}.items() if value is not None}
    environment |= config.variables()
    try:
        done = subprocess.run(
            cluster.client(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
            check=False,
            env=environment,
            cwd=PROJECT_ROOT,
        )
    except FileNotFoundError as error:
        raise SubmitError(f"{error.filename} is not there; run `streambank setup`") from error
    except subprocess.TimeoutExpired as error:
        raise SubmitError(f"the Flink client did not finish within {CLIENT_SECONDS:.0f} s") from error
    found = re.search(r"submitted with JobID ([0-9a-f]{32})", done.stdout)
    if done.returncode != 0 or found is None:
        raise SubmitError(f"the Flink client failed:\n{_client_error(done.stdout + done.stderr)}")
    return found[1]


def _client_error(output: str) -> str:
    """The Python traceback in the client's output, else its last causes.

    The client prints each line of the job file's process twice, plainly and as a log line; log lines are left out.
    """
    lines = [line for line in output.splitlines() if not LOG_LINE.match(line)]
    plain = "\n".join(lines)
    start = plain.find("Traceback (most recent call last):")
    if start >= 0:
        return re.split(r"\n\s*(?=org\.apache\.flink\.|at [\w.$]+\(|-{20})", plain[start:], maxsplit=1)[0].strip()
    in_python = python_error(plain)
    if in_python is not None:
        return in_python
    causes = [line for line in lines if line.startswith("Caused by: ")]
    return "\n".join(causes[-3:] or lines[-10:])
