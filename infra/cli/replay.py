"""`streambank replay`: runs a pipeline's kernel over a file of frames, in process, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register", "replay"]


def register(app: typer.Typer) -> None:
    app.command()(replay)


def replay(
    pipeline: Annotated[str, typer.Argument(help="Pipeline of the catalogue, say ledger.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="NDJSON (one frame or one event per line) or Avro container file; - for stdin."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(envvar="STREAMBANK_REPLAY_OUT", help="Output events, one line per input frame; - for stdout."),
    ] = Path("-"),
    state: Annotated[
        Path | None, typer.Option(envvar="STREAMBANK_REPLAY_STATE", help="Final state as NDJSON; - for stdout.")
    ] = None,
    all_topics: Annotated[
        bool,
        typer.Option(
            envvar="STREAMBANK_REPLAY_ALL_TOPICS", help="Also write the events of the other output topics, per frame."
        ),
    ] = False,
    topic: Annotated[
        str | None,
        typer.Option(
            envvar="STREAMBANK_REPLAY_TOPIC", help="Input topic of frames that name none [default: the first]."
        ),
    ] = None,
) -> None:
    """Apply the frames of INPUT to a fresh kernel and write what it answers.

    A line is {"produced_at": microseconds, "events": [{"type": ..., ...}, ...]}, or one event alone.
    """
    from contextlib import ExitStack

    import click
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    from jobs.replay import Replay
    from pipelines.catalogue import PIPELINES

    if pipeline not in PIPELINES:
        raise typer.BadParameter(f"{pipeline!r} is not a pipeline; there are {', '.join(PIPELINES)}")
    chosen = PIPELINES[pipeline]
    if topic is not None and topic not in {found.name for found in chosen.inputs}:
        raise typer.BadParameter(
            f"{topic!r} is not an input of {pipeline}; it has {', '.join(t.name for t in chosen.inputs)}"
        )
    if str(source) != "-" and not source.is_file():
        raise typer.BadParameter(f"{source} is not a file")

    console = Console(stderr=True)
    with ExitStack() as files:
        reader = files.enter_context(click.open_file(str(source), "rb"))
        writer = files.enter_context(click.open_file(str(out), "wb"))
        run = Replay(chosen, reader, topic=topic, all_topics=all_topics)
        progress = files.enter_context(
            Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
                console=console, transient=True, disable=not console.is_terminal,
            )
        )  # fmt: skip
        task = progress.add_task(pipeline, total=None if str(source) == "-" else source.stat().st_size)
        for line in run.lines():
            writer.write(line)
            if run.frames % 64 == 0:
                progress.update(task, completed=run.bytes_read, description=f"{pipeline}: {run.events:,} events")
        if state is not None:
            with click.open_file(str(state), "wb") as dump:
                dump.writelines(run.state_lines())
    console.print(f"{pipeline}: {run.frames:,} frames, {run.events:,} events in {run.seconds:.2f} s of kernel time")
