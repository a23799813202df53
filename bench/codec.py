"""The frame codec against fastavro: frames of CreateTransfer events, decoded and encoded, in alternation.

Both do the same work on the same bytes: from an Avro body to values in memory (rows for the codec, dicts for fastavro)
and back, on one thread. They take turns within one run, and the clock is the thread's CPU time, so that other work on
the machine costs them caches and little else; the figure of each is its median round.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import fastavro
import numpy as np

from bench.report import Measurement
from pipelines.catalogue import LEDGER_COMMANDS
from pipelines.codec import FrameCodec, codec_of
from pipelines.frames import Events, Frame

__all__ = ["measure"]

EVENTS_PER_FRAME: Final = 500
FRAMES: Final = 20
ROUNDS: Final = 15
SECONDS_PER_TURN: Final = 0.05
GOAL: Final = ">= 5 M events/s and >= 30x fastavro"


def transfer_frames(codec: FrameCodec, frames: int = FRAMES, events: int = EVENTS_PER_FRAME) -> list[Frame]:
    """Transfers as the API sends them: 128-bit time-ordered ids, accounts out of 10,000, amounts in cents."""
    numbers = np.random.default_rng(7)
    transfer = codec.event_type("CreateTransfer")
    made = []
    for frame in range(frames):
        rows = codec.new_rows(events)
        view = rows.view(transfer.dtype)[:, 0]
        view["kind"] = transfer.kind
        view["id_hi"] = np.uint64(0x0198_0000_0000_7000) + np.arange(events, dtype=np.uint64)
        view["id_lo"] = numbers.integers(2**63, 2**64 - 1, events, np.uint64)
        view["debit_account_id_lo"] = numbers.integers(1, 10_000, events)
        view["credit_account_id_lo"] = numbers.integers(1, 10_000, events)
        view["amount_lo"] = numbers.integers(1, 100_000, events)
        view["ledger"] = 978
        view["code"] = 1
        trace = f"00-{random.Random(frame).getrandbits(128):032x}-00f067aa0ba902b7-01"
        made.append(Frame(codec.topic, 0, 0, 1_780_000_000_000_000 + frame, trace, Events(rows)))
    return made


def measure() -> list[Measurement]:
    """Decode and encode, events per second, with fastavro in the same run as the baseline."""
    codec = codec_of(LEDGER_COMMANDS.name)
    schema = fastavro.parse_schema(json.loads(json.dumps(codec.schema)))
    frames = transfer_frames(codec)
    bodies = [codec.encode(frame) for frame in frames]
    values: list[Any] = [
        fastavro.schemaless_reader(io.BytesIO(body), schema, None, return_record_name=True) for body in bodies
    ]

    def fastavro_encode(value: Any) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, schema, value)
        return out.getvalue()

    for frame, body, value in zip(frames, bodies, values, strict=True):
        decoded = codec.decode(body)
        if not np.array_equal(decoded.events.rows, frame.events.rows) or fastavro_encode(value) != body:
            raise AssertionError("the codec and fastavro disagree; the figures would mean nothing")
        view = decoded.events.view(codec.event_type("CreateTransfer").dtype)
        if [int(event["amount"]) for _, event in value["events"]] != view["amount_lo"].tolist():
            raise AssertionError("the codec and fastavro read different amounts")
    digest = hashlib.sha256(b"".join(bodies)).hexdigest()[:16]
    check = f"bytes equal fastavro's both ways, sha256 {digest}"
    size = round(statistics.mean(map(len, bodies)))
    return [
        _compare("codec decode", codec.decode, lambda body: _fastavro_decode(body, schema), bodies, check, size),
        _compare("codec encode", codec.encode, fastavro_encode, (frames, values), check, size),
    ]


def _fastavro_decode(body: bytes, schema: Any) -> Any:
    return fastavro.schemaless_reader(io.BytesIO(body), schema, None)


def _compare(
    name: str, ours: Callable[[Any], Any], theirs: Callable[[Any], Any], inputs: Any, check: str, size: int
) -> Measurement:
    our_inputs, their_inputs = inputs if isinstance(inputs, tuple) else (inputs, inputs)
    rounds = [(_rate(ours, our_inputs), _rate(theirs, their_inputs)) for _ in range(ROUNDS)]
    value = statistics.median(rate for rate, _ in rounds)
    baseline = statistics.median(rate for _, rate in rounds)
    ratio = value / baseline
    return Measurement(
        name=name,
        value=value,
        unit="events/s",
        baseline=baseline,
        baseline_name="fastavro",
        ratio=ratio,
        goal=GOAL,
        met=value >= 5e6 and ratio >= 30,
        check=check,
        detail={
            "events_per_frame": EVENTS_PER_FRAME,
            "bytes_per_frame": size,
            "rounds": ROUNDS,
            "clock": "CPU time of the one thread",
            "best": max(rate for rate, _ in rounds),
            "worst": min(rate for rate, _ in rounds),
            "baseline_best": max(rate for _, rate in rounds),
        },
    )


def _rate(work: Callable[[Any], Any], inputs: list[Any]) -> float:
    """Events per second over at least SECONDS_PER_TURN of the thread's time."""
    events = 0
    start = time.thread_time()
    while True:
        for given in inputs:
            work(given)
            events += EVENTS_PER_FRAME
            elapsed = time.thread_time() - start
            if elapsed >= SECONDS_PER_TURN:
                return events / elapsed
