"""A published order stream of two million messages, whose right answer is known by its hash.

The other two scenarios run in ``streambank bench matching``.
"""

from __future__ import annotations

import numpy as np

from bench.matching_streams import PUBLISHED, command_rows, interleaved_stream, published_stream, report_hash
from pipelines.frames import Events, Frame
from pipelines.matching.kernel import MatchingKernel

FRAME_EVENTS = 4_000


def frames(events: Events) -> list[Frame]:
    return [
        Frame("matching.commands", 0, 0, 0, None, Events(events.rows[first : first + FRAME_EVENTS], events.heap))
        for first in range(0, len(events), FRAME_EVENTS)
    ]


def test_published_answer() -> None:
    scenario = PUBLISHED["flash-crash"]
    messages = published_stream(scenario)
    assert np.bincount(messages[:, 0]).tolist() == [1_000_000, 823_422, 172_675]
    kernel = MatchingKernel()
    reports = []
    for number, frame in enumerate(frames(command_rows(messages))):
        for output in kernel.apply(frame):
            if output.topic == "matching.reports":
                output.events.rows[:, 1] += number * FRAME_EVENTS
                reports.append(output.events.rows)
    assert report_hash(np.concatenate(reports)) == (scenario.sha256, scenario.reports, scenario.trades)


def test_large_books_stay_whole() -> None:
    """So many live orders, in two hundred symbols, that what they need is read ahead; then restored from pages."""
    rows, _, live = interleaved_stream(20_000, live=25_000, symbols=200)
    kernel = MatchingKernel()
    for frame in frames(command_rows(rows, [f"S{number}" for number in range(200)], 1_000)):
        kernel.apply(frame)
    assert kernel.live_orders == live
    kernel.audit()
    restored = MatchingKernel()
    restored.restore(kernel.dirty_pages(), MatchingKernel.state_version)
    restored.audit()
    assert list(restored.state_rows()) == list(kernel.state_rows())
