"""In which phase a symbol was traded when something happened: what the records of the log do not carry.

The reports of a shard are kept for ever, its market data, where changes of status are told, for days. Since the kernel
is deterministic, `TradingPhases` has a fresh one apply the same commands again, each by itself, and so knows the status
of every symbol before any of them. Pure; its state is that of the kernel.
"""

from __future__ import annotations

from pipelines.frames import Events, Frame
from pipelines.matching.kernel import MatchingKernel
from pipelines.matching.records import TradingStatus

__all__ = ["TradingPhases"]


class TradingPhases:
    """One shard, from its first command on. Each frame is asked about in the order of its events, then finished."""

    def __init__(self) -> None:
        self._kernel = MatchingKernel()
        self._places: dict[str, int] = {}
        self._applied = 0

    def before(self, command: Frame, number: int, symbol: str) -> str:
        """The name of the `TradingStatus` of ``symbol`` before event ``number`` of a frame is applied; -1: before what
        the frame's time alone brings about. Symbols that are not known yet are ready to trade."""
        self._apply(command, max(0, number))
        place = self._places.get(symbol)
        if place is None:
            self._places = {name: place for place, name in enumerate(self._kernel.symbols)}
            place = self._places.get(symbol)
        return TradingStatus.READY_TO_TRADE.name if place is None else self._kernel.trading_status(place).name

    def finish(self, command: Frame) -> None:
        """Apply what is left of a frame."""
        self._apply(command, len(command.events))
        self._applied = 0

    def _apply(self, command: Frame, end: int) -> None:
        heap = command.events.heap
        for number in range(self._applied, end):
            alone = Events(command.events.rows[number : number + 1], heap)
            self._kernel.apply(
                Frame(command.topic, command.shard, command.sequence, command.produced_at, command.trace, alone)
            )
        self._applied = max(self._applied, end)
