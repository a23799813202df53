"""The compiled fraud features against their plain model, on random frames, killed and restored in between.

Times lie on, just before and just after the edges of windows; ids, cards and terminals are few, so that duplicates,
late transactions, equal times and revised labels are common. A shard that is killed and restored must send the bytes
of one that is not, and its windows must still agree with its entries.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.inprocess import default_schema_ids
from pipelines.catalogue import PIPELINES
from pipelines.codec import codec_of
from pipelines.fraud.kernel import FraudKernel
from pipelines.shard import Shard
from pipelines.wire import unwrap, wrap
from tests.support.fraud_frames import SMALL, TRANSACTIONS, label, rendered, transaction, transaction_frame
from tests.support.fraud_model import DAY, HOUR, MINUTE, FraudModel
from tests.support.restarts import RestartableShard

FRAUD = PIPELINES["fraud"]
SCHEMA_IDS = default_schema_ids(FRAUD)
START = 17_622 * DAY
EDGES = [0, MINUTE, 10 * MINUTE, HOUR, DAY, 7 * DAY, 8 * DAY, 14 * DAY, 30 * DAY, 37 * DAY]


def new_shard() -> Shard:
    return Shard(FRAUD, 0, SCHEMA_IDS, kernel=FraudKernel(**SMALL))


@st.composite
def times(draw: st.DrawFn) -> int:
    """A base moment plus the width of a window, give or take a microsecond."""
    base = draw(st.sampled_from([0, HOUR, 5 * DAY, 20 * DAY, 33 * DAY, 50 * DAY]))
    return START + base + draw(st.sampled_from(EDGES)) + draw(st.sampled_from([-1, 0, 0, 0, 1]))


DETAIL = st.sampled_from([None, None, "a", "b", "c"])


@st.composite
def one_event(draw: st.DrawFn) -> dict[str, Any]:
    number = draw(st.integers(0, 40))
    if draw(st.integers(0, 3)) == 0:
        return label(number, draw(times()), draw(st.booleans()))
    details = {name: draw(DETAIL) for name in ("device", "country", "merchant")} if draw(st.booleans()) else {}
    return transaction(
        number, draw(times()), draw(st.integers(1, 2)), draw(st.integers(1, 2)),
        draw(st.sampled_from([0, 1, 10, 999, 10**12])), **details,
    )  # fmt: skip


@st.composite
def event_streams(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Frames of events: in event-time order with labels first, in that order with some swapped, or as they come."""
    events = draw(st.lists(one_event(), min_size=1, max_size=40))
    order = draw(st.sampled_from(["by time", "nearly", "as drawn"]))
    if order != "as drawn":
        events.sort(key=lambda event: (event["event_time"], event["type"] == "Transaction"))
    if order == "nearly":
        for place in draw(st.lists(st.integers(0, max(0, len(events) - 2)), max_size=6)):
            events[place : place + 2] = reversed(events[place : place + 2])
    size = draw(st.integers(1, 12))
    return [events[first : first + size] for first in range(0, len(events), size)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_kernel_is_its_model_and_survives_kills(data: st.DataObject) -> None:
    frames = data.draw(event_streams())
    model = FraudModel()
    killed = RestartableShard("fraud.transactions", new_shard)
    undisturbed = new_shard()
    for events in frames:
        value = wrap(1, TRANSACTIONS.encode(transaction_frame(events)))
        outputs = killed.apply(value)
        assert outputs == undisturbed.apply("fraud.transactions", value)
        found = {
            output.topic: rendered(output.topic, codec_of(output.topic).decode(unwrap(output.value)[1]).events)
            for output in outputs
        }
        vectors, received = model.apply(events)
        assert found == {"fraud.features": vectors, "fraud.labels": received}
        action = data.draw(st.sampled_from(["nothing", "nothing", "store", "kill", "store and kill"]))
        if "store" in action:
            killed.store_pages()
        if "kill" in action:
            killed.kill()
    kernel = killed.shard.kernel
    assert isinstance(kernel, FraudKernel)
    kernel.audit()


def test_model_meets_every_case() -> None:
    """The strategy is worth nothing if it only draws the ordinary: count what a fixed sample of it meets."""
    seen: Counter[str] = Counter()

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(event_streams())
    def sample(frames: list[list[dict[str, Any]]]) -> None:
        model = FraudModel()
        newest = 0
        for vector in (vector for events in frames for vector in model.apply(events)[0]):
            seen[vector["status"]] += 1
            seen["late"] += vector["status"] == "computed" and vector["event_time"] < newest
            newest = max(newest, vector["event_time"])
            seen["fraud known"] += vector["tf30"] > 0
            seen["several merchants"] += vector["merchants30"] > 1

    sample()
    for case in ("computed", "duplicate", "too_late", "late", "fraud known", "several merchants"):
        assert seen[case] >= 5, seen


@pytest.mark.parametrize("leak", ["no delay", "window of the future"])
def test_leaks_are_noticed(leak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be wrong is told from what is right: the model with a leak contradicts the kernel."""
    if leak == "no delay":
        monkeypatch.setattr("tests.support.fraud_model.DELAY", 0)
    else:
        monkeypatch.setattr(FraudModel, "is_fraud", lambda self, transaction_id, clock: any(
            found["fraud"] for found in self.labels if found["transaction_id"] == transaction_id
        ))  # fmt: skip
    events = [
        transaction(1, START), label(1, START + 7 * DAY), transaction(2, START + 3 * DAY), label(2, START + 20 * DAY),
        transaction(3, START + 11 * DAY),
    ]  # fmt: skip
    outputs = FraudKernel(**SMALL).apply(transaction_frame(events))
    assert rendered("fraud.features", outputs[0].events) != FraudModel().apply(events)[0]
