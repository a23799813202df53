"""Payments and ledger under whatever a network and operators do to the messages between them.

Commands are drawn at random; frames between the two kernels are delivered late, repeated, out of order or after the
payments kernel was killed and restored. In the end, once everything is delivered and time has passed, every payment has
exactly one final status, the two kernels agree on the money, and a plain model of what clients were told agrees too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.payments.kernel import PaymentsKernel
from pipelines.payments.states import SETTLED, TABLE, Cause, Status
from tests.support.payments_saga import EMPTY, PAYEE, PAYER, SECOND, SMALL, Saga, create, rules

FINAL = {status.name for status in SETTLED}


class Model:
    """What a client may conclude from the events alone: plain sums and the table."""

    def __init__(self) -> None:
        self.payments: dict[int, dict[str, Any]] = {}

    def apply(self, event: dict[str, Any]) -> None:
        payment_id = int(event["payment_id"])
        known = self.payments.setdefault(
            payment_id, {"status": "NONE", "captured": 0, "refunded": 0, "finals": 0, "version": 0}
        )
        row = TABLE[Status[known["status"]], Cause[event["cause"]]]
        assert event["previous_status"] == known["status"]
        assert event["status"] == row.becomes.name
        assert event["version"] == known["version"] + 1
        if event["cause"] in ("captured", "captured_in_part", "rest_refused"):
            known["captured"] += event["action_amount"]
        if event["cause"] in ("refunded", "refunded_in_part"):
            known["refunded"] += event["action_amount"]
        assert event["captured"] == known["captured"]
        assert event["refunded"] == known["refunded"] <= known["captured"] <= event["amount"]
        assert event["held"] + event["captured"] + event["released"] in (0, event["amount"])
        known["finals"] += event["status"] in FINAL and known["status"] not in FINAL
        known |= {"status": event["status"], "version": event["version"]}


@st.composite
def commands(draw: st.DrawFn) -> dict[str, Any]:
    payment_id = draw(st.integers(1, 6))
    kind = draw(
        st.sampled_from(["create", "create", "capture", "void", "refund", "cancel", "fraud", "review", "party"])
    )
    amount = draw(st.sampled_from([0, 1, 40, 100]))
    client = {"payment_id": payment_id, "command_id": draw(st.integers(1, 50))}
    if kind == "create":
        payer, payee = draw(st.sampled_from([(PAYER, PAYEE), (PAYER, PAYEE), (PAYER, PAYEE), (EMPTY, PAYEE)]))
        return create(payment_id, draw(st.sampled_from([1, 100])), payer_account_id=payer, payee_account_id=payee,
                      capture=draw(st.sampled_from(["automatic", "manual"])))  # fmt: skip
    if kind == "capture":
        return {"type": "CapturePayment", **client, "amount": amount, "final": draw(st.booleans())}
    if kind == "refund":
        return {"type": "RefundPayment", **client, "amount": amount}
    if kind == "fraud":
        what = draw(st.sampled_from(["APPROVE", "APPROVE", "REVIEW", "BLOCK", "UNKNOWN"]))
        return {"type": "FraudDecision", "payment_id": payment_id, "decision": what}
    if kind == "review":
        return {"type": "ReviewDecision", "payment_id": payment_id, "approved": draw(st.booleans())}
    if kind == "party":
        return {"type": "BlockedParty", "account_id": PAYEE, "blocked": draw(st.booleans())}
    return {"type": "VoidPayment" if kind == "void" else "CancelPayment", **client}


STEPS = st.one_of(
    commands().map(lambda command: ("command", command)),
    st.tuples(st.sampled_from(["ledger", "payments"]), st.tuples(st.integers(0, 3), st.booleans())),
    st.tuples(st.sampled_from(["ledger", "payments"]), st.tuples(st.just(0), st.just(False))),
    st.tuples(st.just("time"), st.sampled_from([SECOND, 10 * SECOND, 60 * SECOND])),
    st.tuples(st.just("kill"), st.none()),
)


def killed(saga: Saga, pages: dict[str, bytes]) -> None:
    """Restore the payments kernel from its pages, as a runtime does after a crash."""
    pages |= saga.payments.dirty_pages()
    saga.payments = PaymentsKernel(**SMALL)
    saga.payments.restore(pages, PaymentsKernel.state_version)


def run(steps: list[tuple[str, Any]], screening: str) -> Saga:
    saga = Saga(funds=250)
    pages: dict[str, bytes] = {}
    saga.command(rules(screening=screening, hold_seconds=60, review_seconds=60, duplicate_seconds=0))
    for kind, value in steps:
        if kind == "command":
            saga.command(value | ({"requested_at": saga.now} if value["type"] == "CreatePayment" else {}))
        elif kind == "time":
            saga.pass_time(value)
        elif kind == "kill":
            killed(saga, pages)
        else:
            waiting = saga.to_ledger if kind == "ledger" else saga.to_payments
            index, keep = value
            if index < len(waiting):
                deliver = saga.deliver_to_ledger if kind == "ledger" else saga.deliver_to_payments
                deliver(index, keep=keep)
    for _ in range(4):
        saga.settle()
        saga.pass_time(700 * SECOND)
    saga.settle()
    return saga


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=5, max_size=60), st.sampled_from(["off", "stream"]))
def test_every_payment_ends_once_and_the_sums_hold(steps: list[tuple[str, Any]], screening: str) -> None:
    saga = run(steps, screening)
    model = Model()
    for event in saga.events:
        model.apply(event)
    for row in saga.payments.state_rows():
        if row["type"] == "Payment":
            known = model.payments[row["payment_id"]]
            assert (row["status"], row["captured"], row["refunded"]) == (
                known["status"], known["captured"], known["refunded"]
            )  # fmt: skip
            assert known["status"] in FINAL
            assert known["finals"] == 1
            assert row["held"] == 0
    saga.check()


def test_the_steps_reach_what_matters() -> None:
    """The strategy is worth nothing if it only draws the ordinary: count what a fixed sample of it meets."""
    seen: Counter[str] = Counter()

    @settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEPS, min_size=30, max_size=60), st.sampled_from(["off", "stream"]))
    def sample(steps: list[tuple[str, Any]], screening: str) -> None:
        seen.update({event["cause"] for event in run(steps, screening).events})

    sample()
    for cause in ("captured", "ledger_late", "reserve_refused", "hold_expired", "capture_requested", "review_late"):
        assert seen[cause] >= 1, seen
