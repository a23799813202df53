"""Finds the Java that the servers need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from infra.stack.errors import PrerequisiteError

__all__ = ["INSTALL_JAVA", "java_home", "java_version"]

JAVA_VERSION = 17
INSTALL_JAVA = "apt-get install openjdk-17-jdk-headless (Debian, Ubuntu) or brew install openjdk@17 (macOS)"


@cache
def java_home() -> Path:
    """Home of a JDK 17: JAVA_HOME, the ``java`` on the path, or one where distributions put it.

    Cassandra runs on 17 and not on later ones, so a newer default is passed over. Raises `PrerequisiteError`.
    """
    candidates: list[Path] = []
    if os.environ.get("JAVA_HOME"):
        candidates.append(Path(os.environ["JAVA_HOME"]))
    on_path = shutil.which("java")
    if on_path:
        candidates.append(Path(on_path).resolve().parent.parent)
    candidates += sorted(Path("/usr/lib/jvm").glob("*17*"))
    candidates += sorted(Path("/opt/homebrew/opt").glob("openjdk@17/libexec/openjdk.jdk/Contents/Home"))
    found: list[str] = []
    for home in candidates:
        version = java_version(home / "bin" / "java")
        if version == JAVA_VERSION and (home / "bin" / "javac").exists():
            return home
        if version is not None:
            what = f"Java {version}" if version != JAVA_VERSION else f"Java {version} without javac"
            found.append(f"{what} in {home}")
    seen = f"; found {', '.join(dict.fromkeys(found))}" if found else ""
    raise PrerequisiteError(f"JDK {JAVA_VERSION} is missing{seen}. Install it: {INSTALL_JAVA}, or set JAVA_HOME")


def java_version(java: Path) -> int | None:
    """Major version of a java executable; None when it does not run."""
    try:
        answer = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
    return int(match.group(1)) if match else None
