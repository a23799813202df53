"""A small kernel whose every output depends on every frame before it: the runtimes are tested with it.

It reads ledger.commands and answers each event with the number of times its slot (id modulo `SLOTS`) was hit, in the
result's timestamp, and how many events the shard has seen, in the high word of the id. A lost, repeated or reordered
frame therefore changes the bytes that follow. A transfer of code `BREAK_CODE` breaks an invariant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_DEAD_LETTERS, LEDGER_EVENTS, LEDGER_RESULTS, Pipeline
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from pipelines.kernel import InvariantBroken, Output
from pipelines.pages import Column, PagedState, mark

SLOTS: Final = 1 << 17
BREAK_CODE: Final = 666

COUNTER: Final = Pipeline(
    "counter",
    kernel="tests.support.counter_kernel:CounterKernel",
    inputs=(LEDGER_COMMANDS,),
    outputs=(LEDGER_RESULTS, LEDGER_EVENTS),
    replies=LEDGER_RESULTS,
    dead_letters=LEDGER_DEAD_LETTERS,
    shards=LEDGER_COMMANDS.partitions,
    max_frame_events=2_000,
    doc="Counts, for the tests of the runtimes.",
)


class CounterKernel:
    state_version = 1

    def __init__(self) -> None:
        self._state = PagedState({"counts": Column(np.int64, SLOTS), "seen": Column(np.int64, 1)})
        self._commands = codec_of(LEDGER_COMMANDS.name)
        self._results = codec_of(LEDGER_RESULTS.name)
        self._events = codec_of(LEDGER_EVENTS.name)

    def apply(self, frame: Frame) -> list[Output]:
        state = self._state
        counts, seen = state.columns["counts"], state.columns["seen"]
        transfers = frame.events.view(self._commands.event_type("CreateTransfer").dtype)
        rows = self._results.new_rows(len(frame.events))
        results = rows.view(self._results.event_types[0].dtype)[:, 0]
        for index, command in enumerate(transfers):
            if command["kind"] == 1 and command["code"] == BREAK_CODE:
                try:
                    _check(int(command["id_lo"]))
                except ValueError as error:
                    raise InvariantBroken("the counter met its breaking code") from error
            slot = int(command["id_lo"]) % SLOTS
            counts[slot] += 1
            seen[0] += 1
            mark(state.dirty, state.first_page["counts"] + slot // state.rows_per_page["counts"])
            mark(state.dirty, state.first_page["seen"])
            results[index]["kind"] = command["kind"]
            results[index]["id_lo"] = command["id_lo"]
            results[index]["id_hi"] = seen[0]
            results[index]["timestamp"] = counts[slot]
        return [
            Output(LEDGER_RESULTS.name, Events(rows)),
            Output(LEDGER_EVENTS.name, Events(self._events.new_rows(0))),
        ]

    def dirty_pages(self) -> dict[str, bytes]:
        return self._state.dirty_pages()

    def dirty_bytes(self) -> int:
        return self._state.dirty_bytes()

    def restore(self, pages: Mapping[str, bytes], state_version: int) -> None:
        for key, page in pages.items():
            self._state.load(key, page)

    def state_rows(self) -> Iterator[dict[str, Any]]:
        counts = self._state.columns["counts"]
        for slot in np.flatnonzero(counts).tolist():
            yield {"slot": slot, "count": int(counts[slot])}


def _check(identifier: int) -> None:
    raise ValueError(f"event {identifier} cannot be counted")
