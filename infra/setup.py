"""Set-up without Docker: fetches the Java servers and lays out FLINK_HOME, once.

Each part has its own fingerprint (of poms, versions and sources), written beside it when it is complete; a part whose
fingerprint fits is left alone, so a second run downloads nothing and does not disturb running servers. A part is built
aside and put in place in one rename. Two set-ups at once wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from infra.settings import Settings
from infra.stack.errors import PrerequisiteError, StackError
from infra.stack.java import INSTALL_JAVA, java_home

__all__ = ["Prerequisite", "prerequisites", "require_set_up", "set_up"]

MAVEN_PROJECT = Path(__file__).parent / "stack" / "maven"
JAVA_SOURCES = Path(__file__).parent / "flink_java"
DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
DISK_NEEDED_BYTES = 4 << 30
FINGERPRINT = ".fingerprint"


@dataclass(frozen=True, slots=True)
class Prerequisite:
    """Something the machine must have. ``fix`` is what to do when ``ok`` is False."""

    name: str
    ok: bool
    found: str
    fix: str


def prerequisites(settings: Settings) -> list[Prerequisite]:
    """Python, JDK, Maven and disk space, each as found on this machine."""
    return [_python(), _java(), _maven(), _disk(settings)]


def _python() -> Prerequisite:
    found = ".".join(map(str, sys.version_info[:3]))
    return Prerequisite(
        "Python 3.11", sys.version_info[:2] == (3, 11), found, "uv python install 3.11, or pyenv install 3.11"
    )


def _java() -> Prerequisite:
    try:
        return Prerequisite("JDK 17", True, str(java_home()), "")
    except PrerequisiteError as error:
        return Prerequisite("JDK 17", False, str(error).split(". Install", 1)[0], INSTALL_JAVA)


def _maven() -> Prerequisite:
    maven = shutil.which("mvn")
    fix = "apt-get install maven (Debian, Ubuntu) or brew install maven (macOS)"
    return Prerequisite("Maven", maven is not None, maven or "mvn is not on the path", fix)


def _disk(settings: Settings) -> Prerequisite:
    directory = settings.home
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    fix = f"free some space on the disk of {directory}, or choose another with STREAMBANK_HOME and STREAMBANK_DATA_DIR"
    found = f"{free / (1 << 30):.1f} GiB free"
    return Prerequisite(f"{DISK_NEEDED_BYTES >> 30} GiB of disk", free >= DISK_NEEDED_BYTES, found, fix)


Report = Callable[[str], None]
"""Told what is being done, for a progress display."""


@dataclass(frozen=True, slots=True)
class Part:
    """A directory that set-up makes. ``build`` fills an empty directory; ``inputs`` are what it depends on."""

    title: str
    directory: Path
    inputs: tuple[str, ...]
    build: Callable[[Path, Report], None]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self.inputs).encode()).hexdigest()

    @property
    def is_ready(self) -> bool:
        try:
            return (self.directory / FINGERPRINT).read_text() == self.fingerprint
        except OSError:
            return False

    def make(self, report: Report) -> None:
        new = self.directory.with_name(f".{self.directory.name}.new")
        old = self.directory.with_name(f".{self.directory.name}.old")
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir(parents=True)
        self.build(new, report)
        (new / FINGERPRINT).write_text(self.fingerprint)
        if self.directory.exists():
            self.directory.rename(old)
        new.rename(self.directory)
        shutil.rmtree(old, ignore_errors=True)


def parts(settings: Settings) -> list[Part]:
    """What set-up makes, in this order."""
    home = settings.home.resolve()
    flink = version("apache-flink")
    poms = tuple(path.read_text() for path in sorted(MAVEN_PROJECT.rglob("pom.xml")))
    sources = tuple(path.read_text() for path in sorted(JAVA_SOURCES.rglob("*.java")))
    jars = home / "jars"
    return [
        Part("Kafka, Cassandra, registry and connector jars from Maven", jars, poms, _fetch_jars),
        Part("Schema registry", home / "registry", poms, lambda new, _: _unpack_registry(jars, new)),
        Part("FLINK_HOME", home / "flink", (flink, *poms), lambda new, _: _lay_out_flink(jars, new)),
        Part(
            "Kafka frame schemas for Flink",
            home / "glue",
            (flink, *poms, *sources),
            lambda new, _: _compile_glue(home / "flink", new),
        ),
    ]


def require_set_up(settings: Settings) -> None:
    """Raise `PrerequisiteError` when `set_up` has not been run (or not since something changed)."""
    missing = [part.title for part in parts(settings) if not part.is_ready]
    if missing:
        raise PrerequisiteError(f"not set up: {', '.join(missing)}. Run: make setup (or streambank setup)")


def set_up(settings: Settings, report: Report = lambda _: None) -> list[str]:
    """Make what is missing and return the titles of what was made.

    Raises `PrerequisiteError` naming what is missing on the machine and the command that installs it.
    """
    with _lock(settings.home.resolve()):
        missing = [part for part in parts(settings) if not part.is_ready]
        if missing:
            unmet = [needed for needed in prerequisites(settings) if not needed.ok]
            if unmet:
                lines = [f"{needed.name}: {needed.found}. Fix: {needed.fix}" for needed in unmet]
                raise PrerequisiteError("missing on this machine:\n  " + "\n  ".join(lines))
        for part in missing:
            report(part.title)
            part.make(lambda detail, title=part.title: report(f"{title}: {detail}"))  # type: ignore[misc]
        # FLINK_HOME may be newer than the glue, so this is looked at every time.
        _install_glue(settings.home.resolve())
        return [part.title for part in missing]


def _fetch_jars(new: Path, report: Report) -> None:
    fetched = 0

    def on_line(line: str) -> None:
        nonlocal fetched
        if line.startswith(("[INFO] Downloaded from", "Downloaded from")):
            fetched += 1
            report(f"{fetched} files, {line.rsplit('/', 1)[-1].strip()}")

    # -C refuses what fails its checksum.
    command = ["mvn", "--batch-mode", "-C", "-f", str(MAVEN_PROJECT / "pom.xml"), DEPENDENCY_PLUGIN, f"-Djars={new}"]
    _run("mvn", command, seconds=1800, environment={"JAVA_HOME": str(java_home())}, on_line=on_line)


def _unpack_registry(jars: Path, new: Path) -> None:
    archive = next((jars / "registry").glob("apicurio-registry-app-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(new, filter="data")


def _lay_out_flink(jars: Path, new: Path) -> None:
    specification = find_spec("pyflink")
    if specification is None or specification.origin is None:
        raise StackError("apache-flink is not installed in this environment; run: uv sync --locked")
    wheel = Path(specification.origin).parent
    for directory in ("bin", "opt", "conf"):  # real copies: the scripts do not find a linked opt/
        shutil.copytree(wheel / directory, new / directory, ignore=shutil.ignore_patterns("__pycache__"))
    for script in (new / "bin").iterdir():
        script.chmod(0o755)
    for directory in ("plugins", "licenses"):
        if (wheel / directory).is_dir():
            shutil.copytree(wheel / directory, new / directory)
    (new / "lib").mkdir()
    for jar in [
        *(wheel / "lib").glob("*.jar"),
        *(wheel / "opt").glob("flink-python-*.jar"),
        *(jars / "flink").glob("*.jar"),
    ]:
        _link_or_copy(jar, new / "lib" / jar.name)


def _compile_glue(flink_home: Path, new: Path) -> None:
    classes = new / "classes"
    classes.mkdir()
    sources = sorted(str(path) for path in JAVA_SOURCES.rglob("*.java"))
    tools = java_home() / "bin"
    # Java 11 is the oldest that Flink runs on; the class path is what the cluster runs with.
    options = [
        "--release",
        "11",
        "-Xlint:all,-processing,-classfile,-path",
        "-d",
        str(classes),
        "-cp",
        f"{flink_home / 'lib'}/*",
    ]
    _run("javac", [str(tools / "javac"), *options, *sources], seconds=300)
    _run(
        "jar",
        [str(tools / "jar"), "--create", "--file", str(new / "streambank-flink.jar"), "-C", str(classes), "."],
        seconds=60,
    )
    shutil.rmtree(classes)


def _install_glue(home: Path) -> None:
    source, target = home / "glue" / "streambank-flink.jar", home / "flink" / "lib" / "streambank-flink.jar"
    if not target.exists() or target.read_bytes() != source.read_bytes():
        temporary = target.with_suffix(".new")
        shutil.copy2(source, temporary)
        temporary.replace(target)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _run(
    name: str,
    arguments: list[str],
    seconds: float,
    environment: dict[str, str] | None = None,
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a tool to its end; `StackError` with its last lines when it fails or takes too long."""
    lines: deque[str] = deque(maxlen=40)
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as child:
        timer = threading.Timer(seconds, child.kill)
        timer.start()
        try:
            for line in child.stdout or ():
                lines.append(line.rstrip())
                on_line(line)
            exit_code = child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            timed_out = timer.finished.is_set()
            timer.cancel()
    if exit_code != 0:
        what = f"did not finish within {seconds:.0f} s" if timed_out else f"failed with exit code {exit_code}"
        tail = "\n".join(f"  | {line}" for line in lines)
        raise StackError(f"{name} {what} ({' '.join(arguments)}):\n{tail}")


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
