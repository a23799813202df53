"""`streambank compile`: compiles the kernels before anybody waits for it.

Exit codes: 0 done; 1 a kernel does not compile; 2 no such pipeline.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    @app.command(name="compile")
    def compile_(
        pipelines: Annotated[
            list[str] | None, typer.Argument(help="Pipelines of the catalogue; all if none is named.")
        ] = None,
        processes: Annotated[
            int,
            typer.Option(min=1, help="Kernels compiled at once.", envvar="STREAMBANK_COMPILE_PROCESSES"),
        ] = os.cpu_count() or 1,
    ) -> None:
        """Compile kernels and keep the results beside their sources, where jobs and tests find them.

        A kernel that is compiled already takes a second or two. Without this its first frame pays, up to two minutes.
        """
        import subprocess
        import sys
        from concurrent.futures import ThreadPoolExecutor, as_completed

        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from pipelines.catalogue import PIPELINES

        names = pipelines or list(PIPELINES)
        if unknown := [name for name in names if name not in PIPELINES]:
            raise typer.BadParameter(f"no pipeline {unknown[0]!r}; there are: {', '.join(PIPELINES)}")

        def run(name: str) -> tuple[str, subprocess.CompletedProcess[str]]:
            command = [sys.executable, "-m", "jobs.warm_up", name]
            return name, subprocess.run(command, capture_output=True, text=True, check=False)

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        failed = False
        with Progress(*columns, console=console) as progress, ThreadPoolExecutor(processes) as pool:
            task = progress.add_task("compile", total=len(names))
            # the largest first, so that the last one does not run alone
            for done in as_completed([pool.submit(run, name) for name in sorted(names, key=_by_size)]):
                name, result = done.result()
                progress.update(task, advance=1, description=f"compiled {name}")
                if result.returncode:
                    failed = True
                    console.print(f"{name} does not compile:\n{result.stderr[-4000:]}", markup=False)
        if failed:
            raise typer.Exit(1)


def _by_size(name: str) -> int:
    """Order by the size of a kernel's sources, the largest first."""
    from importlib.util import find_spec
    from pathlib import Path

    from pipelines.catalogue import PIPELINES

    specification = find_spec(PIPELINES[name].kernel.partition(":")[0])
    assert specification is not None
    assert specification.origin is not None
    return -sum(path.stat().st_size for path in Path(specification.origin).parent.glob("*.py"))
