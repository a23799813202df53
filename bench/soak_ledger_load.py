"""What a soak of the ledger sends to Kafka: transfers of every kind in frames, functions of seed, shard and number.

A frame of 500 transfers has plain ones, reservations (half of them with a time-out of seconds), posts and voids of the
reservations of an earlier frame, and linked chains. A few accounts have little money, or may only be credited up to
what they were debited, so that a share of all kinds is refused, whole chains with their member. Now and then an
earlier frame is sent again, byte for byte, and once some records that are no frames at all.

The load is as fast as what reads it: it never runs further ahead than `Gate` allows, nor has more than
`FRAMES_IN_FLIGHT` frames unacknowledged.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from confluent_kafka import Producer

from infra.kafka import kafka_options
from infra.registry import schema_ids
from infra.settings import Settings
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_SHARDS
from pipelines.codec import codec_of
from pipelines.errors import StreambankError
from pipelines.frames import Events, Frame, Rows
from pipelines.ledger.records import AccountFlags, TransferFlags
from pipelines.wire import wrap

__all__ = [
    "FRAME_TRANSFERS",
    "MARK",
    "FrameLoad",
    "Gate",
    "LoadFailed",
    "account_rows",
    "funding_rows",
    "transfer_rows",
]

FRAME_TRANSFERS: Final = 500
MARK: Final = 1
"""High word of every id here, so that nobody else uses them; fundings have the next one."""
FIRST_LEDGER: Final = 100

RICH: Final = 900
POOR: Final = 80
CREDITORS: Final = 19
ACCOUNTS: Final = RICH + POOR + CREDITORS + 1
"""The last one is the bank, which funds the others and has no limit."""
RICH_FUNDS: Final = 10**9
POOR_FUNDS: Final = 1_000

RESERVED: Final = 60
POSTED: Final = 40
POSTED_IN_PART: Final = 10
VOIDED: Final = 8
FINISHED: Final = POSTED + POSTED_IN_PART + VOIDED
"""What is left of the reservations expires, or stays."""
FINISHED_AFTER_FRAMES: Final = 4
CHAINED: Final = 40
CHAIN: Final = 4

FRAMES_IN_FLIGHT: Final = 64
REPEATED_SHARE: Final = 0.02
REPEATED_FROM: Final = 20
"""A repeat is one of this many frames sent last."""
BAD_RECORDS_AT: Final = 0.3
"""Share of the load after which the records that are no frames are sent."""
DELIVERY_SECONDS: Final = 900

_COMMANDS: Final = codec_of(LEDGER_COMMANDS.name)
_ACCOUNT: Final = _COMMANDS.event_type("CreateAccount")
_TRANSFER: Final = _COMMANDS.event_type("CreateTransfer")
_WORD_MAX: Final = 2**64 - 1


class LoadFailed(StreambankError):  # noqa: N818 - an alarm, named for what happened
    """Kafka refused a frame for good."""


def account_rows(shard: int) -> Rows:
    """The accounts of a shard."""
    rows = _COMMANDS.new_rows(ACCOUNTS)
    accounts = rows.view(_ACCOUNT.dtype)[:, 0]
    accounts["kind"] = _ACCOUNT.kind
    accounts["id_lo"] = np.arange(1, ACCOUNTS + 1)
    accounts["id_hi"] = MARK
    accounts["ledger"] = FIRST_LEDGER + shard
    accounts["code"] = 10
    accounts["flags"][: RICH + POOR] = AccountFlags.debits_must_not_exceed_credits
    accounts["flags"][RICH + POOR : -1] = AccountFlags.credits_must_not_exceed_debits
    return rows


def funding_rows(shard: int) -> Rows:
    """One transfer from the bank to each account that has money."""
    count = RICH + POOR
    rows = _transfers(shard, np.arange(1, count + 1))
    transfers = rows.view(_TRANSFER.dtype)[:, 0]
    transfers["id_hi"] = MARK + 1
    transfers["debit_account_id_lo"] = ACCOUNTS
    transfers["credit_account_id_lo"] = np.arange(1, count + 1)
    transfers["amount_lo"][:RICH] = RICH_FUNDS
    transfers["amount_lo"][RICH:] = POOR_FUNDS
    return rows


def transfer_rows(seed: int, shard: int, number: int) -> Rows:
    """Frame ``number`` (from 0) of a shard; its transfers' ids are ``number * FRAME_TRANSFERS + 1`` and so on."""
    rng = np.random.default_rng((seed, shard, number))
    count = FRAME_TRANSFERS
    rows = _transfers(shard, number * count + 1 + np.arange(count))
    transfers = rows.view(_TRANSFER.dtype)[:, 0]
    debit = rng.integers(0, RICH, count)
    credit = (debit + rng.integers(1, RICH, count)) % RICH
    kind = rng.random(count)
    debit = np.where(kind < 0.04, RICH + debit % POOR, debit)
    credit = np.where((kind > 0.04) & (kind < 0.06), RICH + POOR + credit % CREDITORS, credit)
    debit = np.where(kind > 0.995, RICH + POOR + debit % CREDITORS, debit)
    transfers["debit_account_id_lo"] = debit + 1
    transfers["credit_account_id_lo"] = credit + 1
    transfers["amount_lo"] = rng.integers(1, 1_000, count)

    reserved = transfers[:RESERVED]
    reserved["flags"] = TransferFlags.pending
    reserved["timeout"] = np.where(rng.random(RESERVED) < 0.5, 0, rng.integers(1, 20, RESERVED))
    if number >= FINISHED_AFTER_FRAMES:
        finished = transfers[RESERVED : RESERVED + FINISHED]
        first = (number - FINISHED_AFTER_FRAMES) * count + 1
        finished["pending_id_lo"] = first + rng.permutation(RESERVED)[:FINISHED]
        finished["pending_id_hi"] = MARK
        for side in ("debit", "credit"):  # those of the reservation
            finished[f"{side}_account_id_lo"] = finished[f"{side}_account_id_hi"] = 0
        finished["flags"] = TransferFlags.post_pending_transfer
        finished["amount_lo"][:POSTED] = finished["amount_hi"][:POSTED] = _WORD_MAX  # all of it
        finished["amount_lo"][POSTED : POSTED + POSTED_IN_PART] = 1
        finished["flags"][-VOIDED:] = TransferFlags.void_pending_transfer
        finished["amount_lo"][-VOIDED:] = 0
    chained = transfers[2 * RESERVED : 2 * RESERVED + CHAINED]
    chained["flags"] = np.where(np.arange(CHAINED) % CHAIN < CHAIN - 1, int(TransferFlags.linked), 0)
    return rows


def _transfers(shard: int, ids: Any) -> Rows:
    rows = _COMMANDS.new_rows(len(ids))
    transfers = rows.view(_TRANSFER.dtype)[:, 0]
    transfers["kind"] = _TRANSFER.kind
    transfers["id_lo"] = ids
    for name in ("id_hi", "debit_account_id_hi", "credit_account_id_hi"):
        transfers[name] = MARK
    transfers["ledger"] = FIRST_LEDGER + shard
    transfers["code"] = 1
    return rows


class Gate:
    """How far the load may run ahead of the job and the sinks, in frames."""

    def __init__(self, ahead_frames: int) -> None:
        self._ahead = ahead_frames
        self._seen_sent = 0
        self._seen_waiting = 0
        self._moved = threading.Condition()

    def seen(self, sent: int, waiting: int) -> None:
        """``waiting`` frames were not applied everywhere when ``sent`` had been sent."""
        with self._moved:
            self._seen_sent, self._seen_waiting = sent, waiting
            self._moved.notify_all()

    def wait(self, sent: int, seconds: float) -> bool:
        """Whether one more frame may leave after ``sent``, within so many seconds."""
        with self._moved:
            return self._moved.wait_for(lambda: sent - self._seen_sent + self._seen_waiting < self._ahead, seconds)


class FrameLoad(threading.Thread):
    """Sends the frames. Counts are read by others meanwhile; `finish` raises what went wrong."""

    def __init__(self, config: Settings, transfers: int, seed: int, gate: Gate) -> None:
        super().__init__(name="frames", daemon=True)
        self.frames = -(-transfers // FRAME_TRANSFERS)
        self.sent_frames = 0
        self.acknowledged_frames = 0
        self.repeated_frames = 0
        self.bad_records = 0
        self.stopping = False
        self.error: BaseException | None = None
        self._config = config
        self._seed = seed
        self._gate = gate
        self._topic = config.kafka_topic(LEDGER_COMMANDS.name)
        self._schema_id = schema_ids([LEDGER_COMMANDS], config)[LEDGER_COMMANDS.name]
        self._in_flight = 0
        self._producer: Any = Producer(
            {
                **kafka_options(config),
                "client.id": "streambank-soak",
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 2,
                "compression.type": "lz4",
                "reconnect.backoff.max.ms": 500,
                "delivery.timeout.ms": DELIVERY_SECONDS * 1000,
                "message.max.bytes": 1_000_000,
                "log_level": 0,
            }
        )

    @property
    def acknowledged_transfers(self) -> int:
        """Without fundings and repeats."""
        return self.acknowledged_frames * FRAME_TRANSFERS

    @property
    def all_frames(self) -> int:
        """Those that readers will have to apply."""
        return self.sent_frames + self.repeated_frames

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error

    def require_no_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        for shard in range(LEDGER_SHARDS):
            for rows in (account_rows(shard), funding_rows(shard)):
                self._produce(shard, self._encoded(shard, rows), lambda: None)
        rng = np.random.default_rng((self._seed, LEDGER_SHARDS))
        recent: list[deque[bytes]] = [deque(maxlen=REPEATED_FROM) for _ in range(LEDGER_SHARDS)]
        for frame in range(self.frames):
            shard = frame % LEDGER_SHARDS
            while not self._gate.wait(self.all_frames, 0.05):
                self._producer.poll(0)
                if self.stopping:
                    return
            value = self._encoded(shard, transfer_rows(self._seed, shard, frame // LEDGER_SHARDS))
            self.sent_frames += 1
            self._produce(shard, value, self._acknowledged)
            recent[shard].append(value)
            if rng.random() < REPEATED_SHARE:
                self.repeated_frames += 1
                self._produce(shard, recent[shard][rng.integers(len(recent[shard]))], lambda: None)
            if frame == int(self.frames * BAD_RECORDS_AT):
                self._send_bad_records(value)
        while self._in_flight and not self.stopping:
            self._producer.poll(0.1)
            self._require_delivered()

    def _encoded(self, shard: int, rows: Rows) -> bytes:
        frame = Frame(LEDGER_COMMANDS.name, shard, 0, time.time_ns() // 1000, None, Events(rows))
        return wrap(self._schema_id, _COMMANDS.encode(frame))

    def _send_bad_records(self, good: bytes) -> None:
        for bad in (
            b"not avro at all",
            b"\x00\x00\xff\xff\xff" + good[5:],  # a schema id that the registry does not have
            good[:-3],  # cut off
            good[:5] + b"\x00" * 900_000,  # large, and no frame
        ):
            self.bad_records += 1
            self._produce(0, bad, lambda: None)

    def _produce(self, shard: int, value: bytes, acknowledged: Callable[[], None]) -> None:
        while self._in_flight >= FRAMES_IN_FLIGHT and not self.stopping:
            self._producer.poll(0.1)
            self._require_delivered()

        def delivered(error: Any, _: Any) -> None:
            self._in_flight -= 1
            if error is not None:
                self.error = LoadFailed(f"{self._topic} {shard}: {error.str()}")
            else:
                acknowledged()

        self._in_flight += 1
        self._producer.produce(self._topic, value, key=str(shard).encode(), partition=shard, on_delivery=delivered)
        self._producer.poll(0)
        self._require_delivered()

    def _acknowledged(self) -> None:
        self.acknowledged_frames += 1

    def _require_delivered(self) -> None:
        if self.error is not None:
            raise self.error
