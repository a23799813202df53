"""`streambank submit | list | savepoint | upgrade | cancel`: operate the Flink jobs.

Exit codes: 0 done; 1 Flink refused, the job failed (its Python traceback is printed) or a deadline passed; 2 wrong
usage. `list` exits with 1 when a job is failed or restarting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from infra.flink_rest import FlinkRest, Job

Parallelism = Annotated[
    int, typer.Option("--parallelism", "-p", min=1, help="Subtasks of the kernel.", envvar="STREAMBANK_PARALLELISM")
]
CheckpointInterval = Annotated[
    str | None,
    typer.Option(
        help="Time between checkpoints, say '5 s': what a recovery reads again.",
        envvar="STREAMBANK_CHECKPOINT_INTERVAL",
    ),
]
StateBackend = Annotated[
    str | None,
    typer.Option(
        help="rocksdb unless given; hashmap keeps all state on the Java heap, which must hold it.",
        envvar="STREAMBANK_STATE_BACKEND",
        metavar="hashmap|rocksdb",
    ),
]
FlinkOption = Annotated[
    list[str] | None,
    typer.Option("--option", "-D", help="Any Flink option, key=value.", envvar="STREAMBANK_FLINK_OPTION"),
]
JobArgument = Annotated[str, typer.Argument(help="Name of a pipeline, or a job id.", metavar="JOB")]


def submit(
    pipeline: Annotated[str, typer.Argument(help="Pipeline of the catalogue, say ledger.")],
    parallelism: Parallelism = 1,
    from_savepoint: Annotated[
        str | None,
        typer.Option(
            help="State to start from: path of a savepoint or checkpoint, or 'latest-checkpoint'. Without it the "
            "state is rebuilt from the beginning of the input.",
            envvar="STREAMBANK_FROM_SAVEPOINT",
        ),
    ] = None,
    checkpoint_interval: CheckpointInterval = None,
    state_backend: StateBackend = None,
    option: FlinkOption = None,
) -> None:
    """Start a pipeline's job and wait until it runs."""
    from rich.console import Console

    from infra import flink_jobs
    from infra.settings import settings

    config = settings()
    submission = flink_jobs.Submission(
        flink_jobs.job_file(pipeline),
        flink_jobs.job_name(pipeline, config),
        parallelism,
        from_savepoint,
        checkpoint_interval,
        _backend(state_backend),
        _options(option),
    )
    console = Console(stderr=True)
    with console.status(f"submitting {submission.name}"):
        job = flink_jobs.submit(submission, config)
    _started(job, config.flink_url)


def list_jobs() -> None:
    """This environment's jobs, the newest first; under a failed or restarting one its Python traceback.

    A failed job that was started again since is shown, but is no longer a failure.
    """
    from rich.console import Console
    from rich.table import Table

    from infra.flink_rest import FlinkRest
    from infra.settings import settings

    console = Console()
    if not console.is_terminal:
        console.width = 140  # so that ids and times are whole in a pipe or a log
    table = Table("job")
    table.add_column("id", no_wrap=True, min_width=32)
    for column in ("state", "tasks", "started", "restarts", "newest checkpoint", "state size"):
        table.add_column(column)
    troubled: list[tuple[Job, str]] = []
    config = settings()
    names: set[str] = set()
    with FlinkRest(config) as flink:
        for job in flink.jobs():
            if not job.name.startswith(config.topic_prefix):
                continue
            superseded = job.name in names
            names.add(job.name)
            table.add_row(job.name, job.id, *_row(flink, job))
            failing = job.state in {"FAILED", "FAILING", "RESTARTING"} or (not job.is_terminal and not job.is_serving)
            failing = failing and not superseded
            reason = flink.failure(job) if failing else None
            if reason is not None or (failing and job.state == "FAILED"):
                troubled.append((job, reason or "no reason given"))
    console.print(table)
    for job, reason in troubled:
        console.print(f"[red]{job.name}[/] {job.id} is {job.state}:", highlight=False, soft_wrap=True)
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    if troubled:
        raise typer.Exit(1)


def savepoint(job: JobArgument) -> None:
    """Write a savepoint of a running job and print its path; the job goes on."""
    from infra.flink_jobs import savepoint_directory
    from infra.flink_rest import FlinkRest
    from infra.settings import settings

    config = settings()
    with FlinkRest(config) as flink:
        found = _running(flink, job)
        typer.echo(flink.savepoint(found, savepoint_directory(found.name, config)))


def upgrade(
    pipeline: Annotated[str, typer.Argument(help="Pipeline whose job is running.")],
    parallelism: Annotated[
        int | None,
        typer.Option(
            "--parallelism",
            "-p",
            min=1,
            help="Another parallelism; the same unless given.",
            envvar="STREAMBANK_PARALLELISM",
        ),
    ] = None,
    checkpoint_interval: CheckpointInterval = None,
    state_backend: StateBackend = None,
    option: FlinkOption = None,
    restart_task_managers: Annotated[
        bool,
        typer.Option(
            help="Restart the local TaskManagers, so that new Python code is loaded; other jobs there recover by "
            "themselves.",
            envvar="STREAMBANK_RESTART_TASK_MANAGERS",
        ),
    ] = True,
) -> None:
    """Replace a running job by the code of this clone: stop with a savepoint, start from it."""
    from rich.console import Console

    from infra import flink_jobs
    from infra.flink_rest import FlinkRest
    from infra.settings import settings

    config = settings()
    with FlinkRest(config) as flink:
        job = flink.running_job(flink_jobs.job_name(pipeline, config))
        parallelism = parallelism or flink.parallelism(job)
    submission = flink_jobs.Submission(
        flink_jobs.job_file(pipeline),
        job.name,
        parallelism,
        None,
        checkpoint_interval,
        _backend(state_backend),
        _options(option),
    )
    with Console(stderr=True).status(f"upgrading {job.name}"):
        job = flink_jobs.upgrade(job, submission, config, restart_task_managers=restart_task_managers)
    _started(job, config.flink_url)


def cancel(job: JobArgument) -> None:
    """End a running job. Its newest checkpoint stays: `submit --from-savepoint latest-checkpoint` goes on from it."""
    from infra.flink_rest import FlinkRest
    from infra.settings import settings

    with FlinkRest(settings()) as flink:
        found = _running(flink, job)
        flink.cancel(found)
    typer.echo(f"{found.name} {found.id} is cancelled")


def register(app: typer.Typer) -> None:
    app.command()(submit)
    app.command(name="list")(list_jobs)
    app.command()(savepoint)
    app.command()(upgrade)
    app.command()(cancel)


def _running(flink: FlinkRest, name_or_id: str) -> Job:
    """By id, by name on the cluster, or by pipeline."""
    from infra.flink_jobs import job_name
    from infra.flink_rest import JobNotFound
    from infra.settings import settings

    try:
        return flink.running_job(name_or_id)
    except JobNotFound:
        prefixed = job_name(name_or_id, settings())
        if prefixed == name_or_id:
            raise
        return flink.running_job(prefixed)


def _row(flink: FlinkRest, job: Job) -> tuple[str, ...]:
    colour = "green" if job.is_serving else "red" if job.state in {"FAILED", "RESTARTING", "FAILING"} else "yellow"
    checkpoint = flink.latest_checkpoint(job)
    return (
        f"[{colour}]{job.state}",
        f"{job.running_tasks}/{job.tasks}",
        f"{job.started_at:%Y-%m-%d %H:%M:%S}",
        str(flink.restarts(job)) if not job.is_terminal else "",
        f"{checkpoint.completed_at:%H:%M:%S} ({checkpoint.duration_ms} ms)" if checkpoint else "",
        f"{checkpoint.size_bytes / 2**20:,.1f} MiB" if checkpoint else "",
    )


def _backend(name: str | None) -> str | None:
    if name not in {None, "hashmap", "rocksdb"}:
        raise typer.BadParameter(f"{name!r} is neither hashmap nor rocksdb", param_hint="--state-backend")
    return name


def _options(given: list[str] | None) -> dict[str, str]:
    options = {}
    for entry in given or []:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{entry!r} is not key=value", param_hint="--option")
        options[key] = value
    return options


def _started(job: Job, url: str) -> None:
    from rich.console import Console

    Console().print(
        f"{job.name} {job.id} is {job.state}: {url}/#/job/{job.id}/overview", highlight=False, soft_wrap=True
    )
