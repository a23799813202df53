"""Fraud features as a kernel: exact windows of cards and terminals over one totally ordered stream of a shard.

A frame of fraud.transactions holds transactions and labels. It is answered by one frame of fraud.features, with one
FeatureVector per transaction in their order, and by one frame of fraud.labels, with what each label met.
docs/reference/fraud.md has every rule; docs/adr/0005-fraud-order.md says why both stages, card and terminal, share one
shard.

Units: times UTC microseconds, amounts integer cents, windows days of exactly 86,400 s. Time comes from the events
alone. Late transactions are put at their place by event time; ids seen before change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipelines import id_index, pages
from pipelines.codec import codec_of
from pipelines.compiled import source_digest
from pipelines.errors import FrameError, StateVersionError, StreambankError
from pipelines.frames import Events, Frame
from pipelines.fraud import engine, rebuild
from pipelines.fraud.features import FEATURE_WORDS
from pipelines.fraud.records import (
    CAPACITY,
    CARDS,
    CLOCK,
    COMPUTED,
    DETAIL_WORDS,
    DETAILS,
    DUPLICATES,
    FRAUD,
    HEAD,
    HELD,
    KEY,
    LABELS,
    MAX_AHEAD,
    META_WORDS,
    NEWEST,
    NO_LABEL,
    RECORD_WORDS,
    TAIL,
    TERMINALS,
    TOO_LATE,
    TRANSACTION,
    TRANSACTIONS,
    VALUE,
    Known,
    LabelStatus,
    Status,
)  # fmt: skip
from pipelines.fraud.state import COLUMNS, READ_AHEAD, FraudArrays
from pipelines.kernel import InvariantBroken, Output

__all__ = ["CapacityExceeded", "FraudKernel"]

STATE_VERSION: Final = 1

_TRANSACTIONS: Final = "fraud.transactions"
_FEATURES: Final = "fraud.features"
_LABELS: Final = "fraud.labels"

_READ_AT_RANDOM: Final = {"cards", "card_entries", "card_details", "terminals", "terminal_entries"}
"""Columns on large memory pages."""


class CapacityExceeded(StreambankError):  # noqa: N818 - an alarm, named for what happened
    """The shard's reserved columns are full; the job must stop and be started with larger ones."""


_SOURCES: Final = np.zeros(0, np.dtype([(f"sources_{source_digest(__file__, id_index, pages)}", "u1")]))


class FraudKernel:
    """One shard of the fraud features.

    The arguments reserve address space, not memory: a card and a terminal take 128 bytes, an entry of a card's ring 16
    (and 32 if the card's transactions have device, country or merchant), of a terminal's 8, a remembered transaction
    64, and each key about 13 in its index. Ids are remembered, for duplicates and labels, until ``max_transactions``
    later ones have come; every other limit stops the job with `CapacityExceeded`.
    """

    state_version: ClassVar[int] = STATE_VERSION

    def __init__(
        self,
        *,
        max_cards: int = 1 << 23,
        max_terminals: int = 1 << 22,
        max_transactions: int = 1 << 25,
        max_entries: int = 1 << 29,
        max_held_labels: int = 1 << 22,
    ) -> None:
        if max_transactions & (max_transactions - 1):
            raise ValueError(f"max_transactions must be a power of two, found {max_transactions}")
        self._transactions = codec_of(_TRANSACTIONS)
        self._features = codec_of(_FEATURES)
        self._labels = codec_of(_LABELS)
        self._check_schemas()
        self._transaction_view, self._label_view = (
            self._transactions.event_type(name).dtype for name in ("Transaction", "FraudLabel")
        )
        self._received_view = self._labels.event_type("LabelReceived").dtype
        sizes: dict[str, tuple[Any, int, int]] = {
            "meta": (np.int64, META_WORDS, 1),
            "cards": (np.int64, max_cards, RECORD_WORDS),
            "card_entries": (np.int64, max_entries, 2),
            "card_details": (np.int64, max_entries, DETAIL_WORDS),
            "terminals": (np.int64, max_terminals, RECORD_WORDS),
            "terminal_entries": (np.int64, max_entries, 1),
            "transactions": (TRANSACTION, max_transactions, 1),
            "held_labels": (np.int64, max_held_labels, 4),
        }
        assert tuple(sizes) == COLUMNS
        self._state = pages.PagedState(
            {
                name: pages.Column(dtype, rows * words, huge_pages=name in _READ_AT_RANDOM)
                for name, (dtype, rows, words) in sizes.items()
            }
        )
        columns = {name: self._state.columns[name][: rows * words] for name, (_, rows, words) in sizes.items()}
        max_values = max_entries >> 3
        self._arrays = FraudArrays(
            meta=columns["meta"],
            cards=columns["cards"].reshape(-1, RECORD_WORDS),
            card_keys=columns["cards"].view(KEY),
            card_entries=columns["card_entries"].reshape(-1, 2),
            card_details=columns["card_details"].reshape(-1, DETAIL_WORDS),
            terminals=columns["terminals"].reshape(-1, RECORD_WORDS),
            terminal_keys=columns["terminals"].view(KEY),
            terminal_entries=columns["terminal_entries"].reshape(-1, 1),
            transactions=columns["transactions"],
            held=columns["held_labels"].reshape(-1, 4),
            dirty=self._state.dirty,
            first_pages=np.array([self._state.first_page[name] for name in COLUMNS], np.int64),
            card_index=id_index.new_index(max_cards),
            terminal_index=id_index.new_index(max_terminals),
            transaction_index=id_index.new_index(max_transactions),
            value_index=id_index.new_index(max_values),
            values=pages.reserve(VALUE, max_values, huge_pages=True),
            value_list=np.zeros(2, np.int64),
            ahead=np.zeros((READ_AHEAD + 1, 3), np.int64),
            sources=_SOURCES,
        )

    def _check_schemas(self) -> None:
        for codec, names in (
            (self._transactions, ("Transaction", "FraudLabel")),
            (self._features, ("FeatureVector",)),
            (self._labels, ("LabelReceived",)),
        ):
            if tuple(event_type.name for event_type in codec.event_types) != names:
                raise StreambankError(f"{codec.topic}: the kernel is written for the events {', '.join(names)}")
        words = {event_type.field("event_time").word for event_type in self._transactions.event_types}
        if len(words) > 1:
            raise StreambankError(f"{_TRANSACTIONS}: event_time lies in the words {sorted(words)} of a row")
        (self._time_word,) = words
        fields = {field.name: field.word for field in self._features.event_type("FeatureVector").fields}
        if fields != FEATURE_WORDS:
            raise StreambankError(f"{_FEATURES}: the kernel is written for the fields {', '.join(FEATURE_WORDS)}")
        for codec, name, field, symbols in (
            (self._features, "FeatureVector", "status", Status),
            (self._labels, "LabelReceived", "status", LabelStatus),
        ):
            found = codec.event_type(name).field(field).symbols
            if found != tuple(status.name for status in symbols):
                raise StreambankError(f"{codec.topic}: {name}.{field} has the symbols {', '.join(found)}")

    def apply(self, frame: Frame) -> list[Output]:
        """Apply one frame of fraud.transactions; see `pipelines.kernel.Kernel.apply`.

        `FrameError` reason: ``event_in_the_future``.
        """
        self._check_times(frame)
        arrays = self._arrays
        rows = frame.events.rows
        count = len(rows)
        labels = int(np.count_nonzero(rows[:, 0]))
        for name, used, capacity in (
            ("cards", CARDS, len(arrays.cards)),
            ("terminals", TERMINALS, len(arrays.terminals)),
        ):
            if int(arrays.meta[used]) + count - labels > capacity:
                raise CapacityExceeded(
                    f"fraud: {arrays.meta[used]} of at most {capacity} {name} are known, {count - labels} more may "
                    f"not fit: start the kernel with a larger max_{name}"
                )
        events = rows.view()
        events.flags.writeable = False  # one compilation serves decoded and hand-made rows
        heap = frame.events.heap.view()
        heap.flags.writeable = False
        features = np.empty((count - labels, self._features.row_words), np.int64)
        received = np.empty((labels, self._labels.row_words), np.int64)
        written = engine.apply_rows(
            arrays,
            _seen_as(self._transaction_view, events),
            _seen_as(self._label_view, events),
            heap,
            features,
            _seen_as(self._received_view, received),
        )
        if written == engine.OUT_OF_ROOM:
            raise CapacityExceeded(
                f"fraud: the rings of {arrays.meta[CARDS]} cards and {arrays.meta[TERMINALS]} terminals or the "
                f"{arrays.meta[HELD]} held labels have no more room: start the kernel with a larger max_entries or "
                "max_held_labels"
            )
        return [Output(_FEATURES, Events(features)), Output(_LABELS, Events(received))]

    def _check_times(self, frame: Frame) -> None:
        """One transaction far ahead would make all others of its card and terminal too late, and let labels out that
        are not known yet; a label far ahead would never count, and would shut out what is learnt until then. So a frame
        whose producer's clock, or whose data, are that wrong is not believed."""
        if not frame.produced_at or not len(frame.events):
            return
        times = frame.events.rows[:, self._time_word]
        newest = int(times.argmax())
        if times[newest] > frame.produced_at + MAX_AHEAD:
            raise FrameError(
                "event_in_the_future",
                f"events[{newest}] has the event_time {times[newest]}, more than a day after {frame.produced_at}, when "
                "its frame was produced; correct the producer's clock or the event and send the frame again",
            )

    def apply_many(self, frames: Sequence[Frame]) -> list[list[Output]]:
        """What `apply` would return for each of the frames, one after another, at the price of one.

        Answers do not depend on where frames begin and end, so many small frames of a file go through together.
        """
        for frame in frames:
            self._check_times(frame)
        events = [frame.events for frame in frames]
        offsets = np.cumsum([0, *(len(found.heap) for found in events)])
        rows = np.concatenate([found.rows for found in events]) if frames else self._transactions.new_rows(0)
        starts = np.cumsum([0, *(len(found) for found in events)])
        view = _seen_as(self._transaction_view, rows)
        is_transaction = rows[:, 0] == 0
        for name in ("device", "country", "merchant"):
            # a text's word is its offset and length in its frame's heap; the heaps lie one behind the other
            given = is_transaction & (view[f"{name}_is_set"] != 0)
            view[name][given] += np.repeat(offsets[:-1], np.diff(starts))[given] << 32
        heap = np.concatenate([found.heap for found in events]) if frames else np.empty(0, np.uint8)
        first = frames[0] if frames else Frame(_TRANSACTIONS, 0, 0, 0, None, Events(rows))
        joined = Frame(_TRANSACTIONS, first.shard, 0, 0, None, Events(rows, heap))
        features, labels = self.apply(joined)
        feature_ends = np.concatenate([[0], np.cumsum(is_transaction)])[starts]
        label_ends = starts - feature_ends
        return [
            [
                Output(_FEATURES, Events(features.events.rows[feature_ends[at] : feature_ends[at + 1]])),
                Output(_LABELS, Events(labels.events.rows[label_ends[at] : label_ends[at + 1]])),
            ]
            for at in range(len(frames))
        ]

    def dirty_pages(self) -> dict[str, bytes]:
        return self._state.dirty_pages()

    def dirty_bytes(self) -> int:
        return self._state.dirty_bytes()

    def restore(self, pages: Mapping[str, bytes], state_version: int) -> None:
        """Load stored pages and rebuild what follows from them: the indexes and what cards used in 30 days.

        Raises `InvariantBroken` when the pages do not make up a whole state (one is missing, say).
        """
        if state_version != STATE_VERSION:
            raise StateVersionError(f"fraud: state version {state_version} found, this code reads {STATE_VERSION}")
        for key, data in pages.items():
            self._state.load(key, data)
        self.audit()
        rebuild.indexes(self._arrays)

    def audit(self) -> None:
        """Check the invariants of the whole state, ring by ring; O(entries). Raises `InvariantBroken`."""
        broken = rebuild.first_broken(self._arrays)
        if broken:
            kind, number = divmod(int(broken), 1 << 40)
            raise InvariantBroken(
                f"fraud: {('card', 'terminal', 'transaction')[kind - 1]} record {number - 1} contradicts its entries: "
                "not in time order, or its windows or fraud counts differ from them; a stored page may be missing"
            )

    @property
    def counts(self) -> dict[str, int]:
        """Cards, terminals, ids ever remembered, labels held, and transactions by what became of them."""
        words = {
            "cards": CARDS, "terminals": TERMINALS, "ids": TRANSACTIONS, "held_labels": HELD, "computed": COMPUTED,
            "duplicates": DUPLICATES, "too_late": TOO_LATE, "labels": LABELS,
        }  # fmt: skip
        return {name: int(self._arrays.meta[word]) for name, word in words.items()}

    @property
    def clock(self) -> int:
        """Newest event time of all transactions, microseconds."""
        return int(self._arrays.meta[CLOCK])

    def state_rows(self) -> Iterator[dict[str, Any]]:
        """The counts, then cards and terminals in the order of their first transaction, then labels by transaction."""
        arrays = self._arrays
        yield {"type": "Shard", "clock": self.clock, **self.counts}
        for name, key, records, number in (
            ("Card", "customer_id", arrays.cards, CARDS),
            ("Terminal", "terminal_id", arrays.terminals, TERMINALS),
        ):
            for record in records[: arrays.meta[number]]:
                yield {
                    "type": name,
                    key: int(record[0]),
                    "newest": int(record[NEWEST]),
                    "transactions": int(record[HEAD]),
                    "kept": int(record[HEAD] - record[TAIL]),
                }
        ever, capacity = int(arrays.meta[TRANSACTIONS]), len(arrays.transactions)
        for number in range(max(0, ever - capacity), ever):
            found = arrays.transactions[number % capacity]
            if found["label"] != NO_LABEL:
                yield {
                    "type": "Label",
                    "transaction_id": int(found["id_lo"]) | int(found["id_hi"]) << 64,
                    "event_time": int(found["label_time"]),
                    "fraud": bool(found["label"] == FRAUD),
                    "transaction_known": bool(found["known"] != Known.label_only),
                }

    def memory(self) -> dict[str, int]:
        """Bytes in use: records and rings of cards and of terminals, details, remembered ids, all without indexes."""
        arrays = self._arrays
        cards = arrays.cards[: arrays.meta[CARDS]]
        terminals = arrays.terminals[: arrays.meta[TERMINALS]]
        return {
            "cards": cards.nbytes + int(cards[:, CAPACITY].sum()) * 16,
            "card_details": int(cards[cards[:, DETAILS] > 0, CAPACITY].sum()) * 8 * DETAIL_WORDS,
            "terminals": terminals.nbytes + int(terminals[:, CAPACITY].sum()) * 8,
            "transactions": int(min(arrays.meta[TRANSACTIONS], len(arrays.transactions))) * TRANSACTION.itemsize,
        }


def _seen_as(dtype: np.dtype[np.void], rows: NDArray[np.int64]) -> NDArray[np.void]:
    """The rows as one event type; many times faster than ``rows.view(dtype)``."""
    view: NDArray[np.void] = np.ndarray(len(rows), dtype, rows)
    return view
