"""Set-up: complete, done once, and clear about what the machine lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from infra.settings import Settings, settings
from infra.setup import parts, prerequisites, require_set_up, set_up
from infra.stack.errors import PrerequisiteError

STREAMBANK = str(Path(sys.executable).with_name("streambank"))


@pytest.mark.stack
def test_a_second_set_up_makes_nothing_and_needs_no_tools(tmp_path: Path) -> None:
    set_up(settings())
    before = {part.directory: part.directory.stat().st_ino for part in parts(settings())}
    done = subprocess.run(
        [STREAMBANK, "setup"],
        env={**os.environ, "PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Everything is set up." in done.stdout
    assert {part.directory: part.directory.stat().st_ino for part in parts(settings())} == before
    assert not list(tmp_path.iterdir())


@pytest.mark.stack
def test_flink_home_holds_the_connector_and_the_frame_schemas() -> None:
    set_up(settings())
    home = settings().home / "flink"
    jars = {jar.name for jar in (home / "lib").glob("*.jar")}
    assert any(name.startswith("flink-sql-connector-kafka-") for name in jars)
    assert any(name.startswith("flink-python-") for name in jars)
    with zipfile.ZipFile(home / "lib" / "streambank-flink.jar") as glue:
        names = set(glue.namelist())
    for name in ("FrameDeserializationSchema", "FrameSerializationSchema"):
        assert f"io/streambank/flink/{name}.class" in names
    assert os.access(home / "bin" / "flink", os.X_OK)


def test_what_is_missing_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fresh = Settings.model_validate({"home": tmp_path / "home", "data_dir": tmp_path / "data"})
    with pytest.raises(PrerequisiteError, match="not set up"):
        require_set_up(fresh)
    with pytest.raises(PrerequisiteError, match=r"(?s)Maven: mvn is not on the path.*apt-get install maven"):
        set_up(fresh)
    assert [part.is_ready for part in parts(fresh)] == [False] * len(parts(fresh))


def test_too_small_a_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.setup.DISK_NEEDED_BYTES", 1 << 60)
    fresh = Settings.model_validate({"home": tmp_path / "not" / "there", "data_dir": tmp_path})
    disk = next(needed for needed in prerequisites(fresh) if "disk" in needed.name)
    assert not disk.ok
    assert "GiB free" in disk.found
    assert "STREAMBANK_HOME" in disk.fix
    assert not (tmp_path / "not").exists()


def test_a_part_is_made_again_when_its_inputs_change(tmp_path: Path) -> None:
    from infra.setup import Part

    def build(new: Path, report: object) -> None:
        (new / "content").write_text("made")

    def failing(new: Path, report: object) -> None:
        (new / "content").write_text("half")
        raise OSError("disk full")

    directory = tmp_path / "part"
    first = Part("part", directory, ("version 1",), build)
    assert not first.is_ready
    first.make(lambda _: None)
    assert first.is_ready
    changed = Part("part", directory, ("version 2",), failing)
    assert not changed.is_ready
    with pytest.raises(OSError, match="disk full"):
        changed.make(lambda _: None)
    # A failure leaves the earlier one in place.
    assert (directory / "content").read_text() == "made"
    assert first.is_ready
