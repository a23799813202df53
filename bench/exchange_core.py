"""exchange-core 0.5.3, the fast open-source exchange in Java, on the streams that the matching kernel is measured with.

Its order book (OrderBookDirectImpl) alone, called directly in one thread: no ring buffer, no risk engine, no journal,
and no reports but its trade events, which is as fast as it gets. CPU time of that thread, garbage collection not
counted. Java compiles while it runs, so each pass with a fresh book is told, and the best is what is compared.

A small program (bench/exchange_core_java) feeds it the file of the messages and prints what it found, the SHA-256 of
all reports included, so a figure stands for the same answers. Its jars come by Maven when the benchmark runs for the
first time, into the home directory of the settings; without Maven, JDK or network the comparison is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infra.secret_files import exclusive
from infra.settings import Settings, settings
from infra.setup import DEPENDENCY_PLUGIN, Part
from infra.stack.errors import PrerequisiteError
from infra.stack.java import java_home
from pipelines.errors import StreambankError

__all__ = ["ComparisonUnavailable", "ExchangeCoreResult", "measure_book", "parse", "prepare"]

SOURCES: Final = Path(__file__).parent / "exchange_core_java"
PROGRAM: Final = "ExchangeCoreBook"
PASSES: Final = 10
JVM_OPTIONS: Final = ("-Xms2g", "-Xmx2g", "-XX:+UseParallelGC")


class ComparisonUnavailable(StreambankError):  # noqa: N818 - says what is the case
    """exchange-core cannot be run here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class ExchangeCoreResult:
    """What the book did with one stream. ``sha256`` is of all reports, see `bench.matching_streams.report_hash`."""

    messages: int
    trades: int
    live_orders: int
    sha256: str
    cpu_seconds: list[float]
    """Of each pass, the first ones with code that is not compiled yet."""

    @property
    def best(self) -> float:
        """Messages per CPU-second of the fastest pass."""
        return self.messages / min(self.cpu_seconds)

    @property
    def median(self) -> float:
        """The same of the later half of the passes."""
        return self.messages / statistics.median(self.cpu_seconds[len(self.cpu_seconds) // 2 :])


def prepare(config: Settings | None = None) -> Path:
    """The directory with exchange-core's jars and the compiled program; made when it is missing or something changed.

    Raises `ComparisonUnavailable`.
    """
    pom, program = SOURCES / "pom.xml", SOURCES / f"{PROGRAM}.java"
    directory = (config or settings()).home.resolve() / "exchange-core"

    def build(new: Path, _: object) -> None:
        maven = ["mvn", "--batch-mode", "-q", "-C", "-f", str(pom), DEPENDENCY_PLUGIN, f"-DoutputDirectory={new}"]
        _run(maven, 300)
        javac = str(java_home() / "bin" / "javac")
        _run([javac, "-cp", f"{new}/*", "-d", str(new), str(program)], 120)

    part = Part("exchange-core", directory, (pom.read_text(), program.read_text()), build)
    if not part.is_ready and shutil.which("mvn") is None:
        raise ComparisonUnavailable("mvn is not on the path")
    try:
        java_home()
    except PrerequisiteError as error:
        raise ComparisonUnavailable(str(error)) from error
    with exclusive(directory.with_suffix(".lock")):
        if not part.is_ready:
            part.make(lambda _: None)
    return directory


def measure_book(classes: Path, messages: NDArray[np.int64], building: int = 0) -> ExchangeCoreResult:
    """Run the book over the messages, of which the first ``building`` are not measured; see `prepare` for ``classes``.

    Raises `ComparisonUnavailable`.
    """
    with tempfile.NamedTemporaryFile(suffix=".int64") as file:
        file.write(np.ascontiguousarray(messages, "<i8").tobytes())
        file.flush()
        java = [str(java_home() / "bin" / "java"), *JVM_OPTIONS, "-cp", f"{classes}:{classes}/*", PROGRAM]
        return parse(_run([*java, file.name, str(messages.shape[1]), str(building), str(PASSES)], 300))


def parse(output: str) -> ExchangeCoreResult:
    """The program's line of JSON. Raises `ComparisonUnavailable` for anything else."""
    try:
        found = ExchangeCoreResult(**json.loads(output))
        if not found.cpu_seconds or min(found.cpu_seconds) <= 0:
            raise ValueError("a pass took no time")
    except (TypeError, ValueError) as error:
        raise ComparisonUnavailable(f"{PROGRAM} printed {output[:200]!r}: {error}") from error
    return found


def _run(command: list[str], seconds: int) -> str:
    """Standard output of a command; `ComparisonUnavailable` with its last line if it fails."""
    environment = {**os.environ, "JAVA_HOME": str(java_home())}
    try:
        done = subprocess.run(
            command,
            check=True,
            timeout=seconds,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as error:
        said = (error.stdout + error.stderr).strip().splitlines()
        raise ComparisonUnavailable(f"{Path(command[0]).name}: {said[0] if said else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ComparisonUnavailable(f"{Path(command[0]).name}: {error}") from error
    return done.stdout
