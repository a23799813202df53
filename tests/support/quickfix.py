"""A FIX counterparty on QuickFIX/J as a process: an engine that shares no code with the gateway.

Its jars come from Maven and its classes from the JDK once, into the clone's ``.streambank``; later runs download and
compile nothing. It validates what it gets against QuickFIX/J's dictionary of FIX 4.4 and answers with a Reject else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from infra.secret_files import exclusive
from infra.settings import settings
from infra.setup import DEPENDENCY_PLUGIN, Part
from infra.stack.java import java_home
from tests.support.waiting import wait_until

SOURCES: Final = Path(__file__).parent / "quickfixj"

TRUST_PASSWORD: Final = "changeit"

Fix = dict[int, str]
"""Tags and values of a message."""


def counterparty_classes() -> Path:
    """The directory with QuickFIX/J's jars and the compiled program; made when it is missing or something changed."""
    pom, program = SOURCES / "pom.xml", SOURCES / "Counterparty.java"
    directory = settings().home.resolve() / "fix-counterparty"

    def build(new: Path, _: object) -> None:
        maven = ["mvn", "--batch-mode", "-q", "-C", "-f", str(pom), DEPENDENCY_PLUGIN, f"-DoutputDirectory={new}"]
        subprocess.run(maven, check=True, timeout=240, env={**os.environ, "JAVA_HOME": str(java_home())})
        javac = str(java_home() / "bin" / "javac")
        subprocess.run([javac, "-cp", f"{new}/*", "-d", str(new), str(program)], check=True, timeout=120)

    part = Part("QuickFIX/J", directory, (pom.read_text(), program.read_text()), build)
    with exclusive(directory.with_suffix(".lock")):
        if not part.is_ready:
            part.make(lambda _: None)
    return directory


def trust_store(directory: Path, authority: Path) -> Path:
    """Java's form of the authority's certificate."""
    store = directory / "trust.p12"
    if not store.exists():
        keytool = [str(java_home() / "bin" / "keytool"), "-importcert", "-noprompt", "-storetype", "PKCS12"]
        options = ["-keystore", str(store), "-storepass", TRUST_PASSWORD, "-file", str(authority)]
        subprocess.run([*keytool, *options], check=True, capture_output=True, timeout=60)
    return store


class Engine:
    """One process of QuickFIX/J; ``directory`` keeps its sequence numbers and messages, so that another one can take
    over. ``hears`` gets each line's event and message, in a thread."""

    def __init__(
        self, directory: Path, configuration: str, username: str, password: str,
        hears: Callable[[str, Fix], None] | None = None,
    ) -> None:  # fmt: skip
        directory.mkdir(parents=True, exist_ok=True)
        settings_file = directory / "session.cfg"
        settings_file.write_text(configuration)
        classes = counterparty_classes()
        self._log = (directory / "counterparty.log").open("ab")
        self.process = subprocess.Popen(
            [str(java_home() / "bin" / "java"), "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-Xmx128m",
             "-cp", f"{classes}:{classes}/*", "Counterparty", str(settings_file), username, password],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._hears = hears
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if self._hears is not None:
                event, _, message = line.rstrip("\n").partition(" ")
                self._hears(event, _parse(message))

    def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def send(self, msg_type: str, fields: Fix) -> None:
        self.tell("send", msg_type, "|".join(f"{tag}={value}" for tag, value in fields.items()))

    def heard(self, event: str = "app") -> list[Fix]:
        """Messages so far, of an event: app, admin, sent."""
        return [_parse(line.removeprefix(f"{event} ")) for line in list(self.lines) if line.startswith(f"{event} ")]

    def count(self, event: str) -> int:
        return sum(line.split(" ", 1)[0] == event for line in list(self.lines))

    def wait(self, wanted: Callable[[Fix], bool], what: str, event: str = "app") -> Fix:
        """The first message that is wanted, as soon as it is there."""
        return wait_until(lambda: next(filter(wanted, self.heard(event)), None), 60, what) or {}

    def wait_logon(self, times: int = 1) -> None:
        wait_until(lambda: self.count("logon") >= times, 60, "the counterparty is logged on")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """End it; a logout first, unless it was killed."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self._reader.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


class Counterparty(Engine):
    """An initiator, which trusts servers whose certificates are by ``authority``."""

    def __init__(
        self, directory: Path, comp_id: str, port: int, username: str, password: str, target: str, authority: Path
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        configuration = (
            "[default]\nConnectionType=initiator\nNonStopSession=Y\nHeartBtInt=20\nReconnectInterval=1\n"
            "UseDataDictionary=Y\nDataDictionary=FIX44.xml\nValidateFieldsOutOfOrder=Y\nResetOnLogon=N\n"
            f"FileStorePath={directory / 'store'}\n"
            f"[session]\nBeginString=FIX.4.4\nSenderCompID={comp_id}\nTargetCompID={target}\n"
            f"SocketConnectHost=127.0.0.1\nSocketConnectPort={port}\n"
            f"SocketUseSSL=Y\nSocketTrustStore={trust_store(directory, authority)}\nTrustStoreType=PKCS12\n"
            f"SocketTrustStorePassword={TRUST_PASSWORD}\n"
        )
        super().__init__(directory, configuration, username, password)


def _parse(text: str) -> Fix:
    fields: Fix = {}
    for field in text.split("|"):
        tag, _, value = field.partition("=")
        if tag.isdigit():
            fields.setdefault(int(tag), value)
    return fields
