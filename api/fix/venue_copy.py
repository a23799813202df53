"""A venue's own record of its trades with us: a file of the FIX messages that its drop copy sent.

The file holds messages as they were on the wire, as FIX engines store them, with anything between them: time stamps,
line ends. An execution told twice counts once; a trade that the venue canceled or corrected later counts as it is in
the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from api.fix.definitions import Instrument
from api.fix.routes import MAX_ID
from api.fix.wire import SIDES, Framer, Message
from pipelines.errors import StreambankError
from pipelines.trading.venue_trades import VenueTrade

__all__ = ["VenueCopyError", "read_venue_copy"]

_TRADE: Final = "F"
_CORRECT: Final = "G"
_CANCEL: Final = "H"
_READ_BYTES: Final = 1 << 20


class VenueCopyError(StreambankError):
    """A file is no drop copy; the message says what is wrong with it."""


def read_venue_copy(files: Iterable[Path], instruments: Mapping[str, Instrument]) -> list[VenueTrade]:
    """The trades of all files, in the order in which they were told. Raises `VenueCopyError`."""
    trades: dict[tuple[str, str], VenueTrade] = {}
    for path in files:
        for message in _messages(path):
            kind = message.get(150)
            if message.type != "8" or kind not in (_TRADE, _CORRECT, _CANCEL):
                continue
            # OrderID stays, ClOrdID changes with a replace
            order, execution = message.get(37), message.get(17)[:MAX_ID]
            if kind != _TRADE:
                trades.pop((order, message.get(19)[:MAX_ID]), None)
            if kind != _CANCEL:
                trades[order, execution] = _trade(path, message, instruments)
    return list(trades.values())


def _messages(path: Path) -> Iterable[Message]:
    framer, found = Framer(), 0
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                for message in framer.feed(data):
                    found += 1
                    yield message
    except OSError as error:
        raise VenueCopyError(f"{path} cannot be read: {error.strerror}") from error
    if framer.garbled or not found:
        raise VenueCopyError(
            f"{path}: {found} FIX messages, and {framer.garbled} whose length or checksum is wrong; give the file as "
            "the venue's engine wrote it"
        )


def _trade(path: Path, message: Message, instruments: Mapping[str, Instrument]) -> VenueTrade:
    symbol = message.get(55)
    instrument = instruments.get(symbol, Instrument())
    lots = instrument.units(message.get(32), instrument.lot)
    ticks = instrument.units(message.get(31), instrument.tick)
    if lots is None or ticks is None or message.get(54) not in SIDES or not message.get(11) or not message.get(17):
        raise VenueCopyError(
            f"{path}: the trade with MsgSeqNum {message.get(34)} has ClOrdID {message.get(11)!r}, ExecID "
            f"{message.get(17)!r}, Side {message.get(54)!r}, LastQty {message.get(32)!r} and LastPx "
            f"{message.get(31)!r}: these must be there, and whole lots and ticks of {symbol!r} (the instruments' file)"
        )
    return VenueTrade(message.get(11), message.get(17)[:MAX_ID], symbol, SIDES[message.get(54)], lots, ticks)
