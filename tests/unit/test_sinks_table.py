"""The table of sinks: every entry loads, and is what its name says."""

from __future__ import annotations

import pytest

from jobs.sinks import SINKS, load_sink
from jobs.sinks.base import Sink


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_is_found_by_its_name(name: str) -> None:
    kind = load_sink(name)
    assert isinstance(kind, type)
    assert issubclass(kind, Sink)
    assert kind.name == name


def test_no_two_sinks_share_a_port() -> None:
    offsets = [load_sink(name).web_port_offset for name in SINKS]  # type: ignore[attr-defined]
    assert len(set(offsets)) == len(offsets)
