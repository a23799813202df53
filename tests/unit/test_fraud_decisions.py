"""Rules and decisions over columns: what a rule may say, and what becomes of a transaction."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Frame
from pipelines.fraud.decisions import Decision, Scores, UnknownPolicy, UnknownReason, decide
from pipelines.fraud.rules import DEFAULT_RULES, RuleError, RuleSet

DECISIONS = codec_of("fraud.decisions")
VECTOR = codec_of("fraud.features").event_type("FeatureVector").dtype


def vectors(count: int = 4, **columns: Any) -> Any:
    found = np.zeros(count, VECTOR)
    found["transaction_id_lo"] = np.arange(1, count + 1)
    for name, values in columns.items():
        found[name] = values
    return found


def rule_set(*rules: dict[str, Any], version: int = 3, review_at: int = 300_000, block_at: int = 900_000) -> RuleSet:
    return RuleSet.parse(json.dumps({"review_at": review_at, "block_at": block_at, "rules": rules}), version)


def rule(when: str, action: str = "review", name: str = "r", **more: Any) -> dict[str, Any]:
    return {"id": name, "when": when, "action": action, **more}


def decided(found: Any, scores: Scores, rules: RuleSet = DEFAULT_RULES, **options: Any) -> list[dict[str, Any]]:
    """Decisions as a reader of the topic sees them, after the wire."""
    policy = options.pop("policy", UnknownPolicy())
    events = decide(found, scores, rules, policy, model="fraud", scored_at=17, **options)
    body = DECISIONS.encode(Frame("fraud.decisions", 0, 1, 0, None, events))
    return list(render_events(DECISIONS, DECISIONS.decode(body).events))


def hits(when: str, found: Any, score: Any = None) -> list[bool]:
    score = np.full(len(found), np.nan) if score is None else np.asarray(score, float)
    return rule_set(rule(when)).hits(found, score)[0].tolist()


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("amount > 150", [False, False, True, True]),
        ("100 < amount <= 300", [False, True, True, False]),
        ("amount == 100 or amount == 400 and cn1 > 3", [True, False, False, True]),
        ("not (amount > 150)", [True, True, False, False]),
        ("customer_id in (2, -3, 4)", [False, True, False, True]),
        ("customer_id not in (2, 4)", [True, False, True, False]),
        ("ratio(tf7, tn7) > 0.4", [False, False, True, False]),
        ("tf7 / tn7 > 0.4", [False, False, True, False]),
        ("max(amount, 250) - 250 >= abs(-50)", [False, False, True, True]),
        ("amount % 200 == 0 and -amount < 0", [False, False, False, True]),
        ("new_country", [False, True, False, False]),
        ("score >= 0.5", [True, False, False, False]),
        ("score < 0.5", [False, True, False, False]),
        ("score != 0.5", [False, True, False, False]),
        ("score and amount", [True, True, False, False]),
        ("not score_known", [False, False, True, True]),
        ("True", [True] * 4),
    ],
)
def test_expressions_over_columns(when: str, expected: list[bool]) -> None:
    found = vectors(
        amount=[100, 150, 300, 400], cn1=[1, 2, 3, 4], customer_id=[1, 2, 3, 4], tf7=[0, 0, 1, 0], tn7=[0, 5, 2, 9],
        new_country=[0, 1, 0, 0],
    )  # fmt: skip
    assert hits(when, found, [0.5, 0.1, np.nan, np.nan]) == expected


@pytest.mark.parametrize(
    "when",
    [
        "__import__('os').system('true')", "amount.__class__", "amount.dtype", "(1).real", "[x for x in (1, 2)]",
        "lambda: 1", "amount ** 9", "amount << 2", "'a' * 9", "amount[0]", "abs(amount, out=amount)", "abs()", "rand()",
        "amount if cn1 else 2", "nothing > 1", "amount > 1; cn1", "x = 1", "", "amount >", "amount in cn1",
        "1e400 < amount", "(amount, 1)", "abs", "open in (1, 2)", "f'{amount}'", "amount := 3", "1_0" * 500,
        "(" * 300 + "amount" + ")" * 300, "+".join(["amount"] * 150) + " > 1", "9007199254740993 > amount",
    ],
)  # fmt: skip
def test_expressions_that_are_refused(when: str) -> None:
    with pytest.raises(RuleError, match="rule r: "):
        rule_set(rule(when))


@pytest.mark.parametrize(
    "document",
    [
        "{", "[]", "{}", '{"review_at": 1, "block_at": 2, "more": 1}', '{"review_at": 3, "block_at": 2}',
        '{"review_at": 0, "block_at": 2}', '{"review_at": 1.5, "block_at": 2}',
        '{"review_at": 1, "block_at": 2, "rules": {}}',
        '{"review_at": 1, "block_at": 2, "rules": [{"id": "A", "when": "True", "action": "block"}]}',
        '{"review_at": 1, "block_at": 2, "rules": [{"id": "a", "when": "True", "action": "approve"}]}',
        '{"review_at": 1, "block_at": 2, "rules": [{"id": "a", "when": "True", "action": "block", "mode": "x"}]}',
        '{"review_at": 1, "block_at": 2, "rules": [{"id": "a", "when": 1, "action": "block"}]}',
        json.dumps({"review_at": 1, "block_at": 2, "rules": [rule("True"), rule("True")]}),
        json.dumps({"review_at": 1, "block_at": 2, "rules": [rule("True", name=f"r{n}") for n in range(41)]}),
    ],
)  # fmt: skip
def test_documents_that_are_refused(document: str) -> None:
    with pytest.raises(RuleError):
        RuleSet.parse(document, 1)


def test_score_rules_and_shadow_make_the_decision() -> None:
    rules = rule_set(
        rule("amount > 500", name="large"),
        rule("amount > 900", "block", name="huge"),
        rule("amount > 0", "block", name="trial", mode="shadow"),
    )
    found = decided(
        vectors(amount=[100, 600, 950, 100, 0], count=5),
        Scores(
            np.array([0.1, 0.1, 0.4, 0.9, 0.3]), 7, challenger=np.array([0.5, 0, 1, 0.25, 0.1]), challenger_version=8
        ),
        rules,
    )
    assert [(one["decision"], one["reason_codes"], one["rules_hit"], one["shadow_rules_hit"]) for one in found] == [
        ("approve", "", "", "trial"),
        ("review", "rule_large", "large", "trial"),
        ("block", "score_review rule_large rule_huge", "large huge", "trial"),
        ("block", "score_block", "", "trial"),
        ("review", "score_review", "", ""),
    ]
    assert [one["score"] for one in found] == [100_000, 100_000, 400_000, 900_000, 300_000]
    assert [one["challenger_score"] for one in found] == [500_000, 0, 1_000_000, 250_000, 100_000]
    assert {
        (one["model"], one["model_version"], one["challenger_version"], one["rule_set_version"]) for one in found
    } == {("fraud", 7, 8, 3)}
    assert {(one["unknown_reason"], one["rescored"]) for one in found} == {("none", False)}


def test_unknown_follows_the_policy_and_rules_still_count() -> None:
    rules = rule_set(rule("cn1 > 5", "block", name="burst"))
    found = decided(
        vectors(amount=[100, 101, 50, 200], cn1=[1, 1, 9, 1]),
        Scores(None, reason=UnknownReason.timeout),
        rules,
        policy=UnknownPolicy(Decision.review, 100),
        rescored=True,
    )
    assert [one["decision"] for one in found] == ["approve", "review", "block", "review"]
    assert {(one["score"], one["unknown_reason"], one["model_version"], one["rescored"]) for one in found} == {
        (None, "timeout", 0, True)
    }
    assert found[2]["reason_codes"] == "unknown_timeout rule_burst"


def test_duplicates_get_no_decision_and_too_late_no_score() -> None:
    found = decided(
        vectors(status=[0, 1, 2, 0], amount=20_000),
        Scores(np.array([0.1, 0.99, 0.99, 0.95]), 7, challenger=np.ones(4), challenger_version=8),
    )
    assert [(int(one["transaction_id"]), one["decision"], one["score"], one["unknown_reason"]) for one in found] == [
        (1, "approve", 100_000, "none"),
        (3, "review", None, "too_late"),
        (4, "block", 950_000, "none"),
    ]
    assert [one["challenger_score"] for one in found] == [1_000_000, None, 1_000_000]
    assert found[1]["model_version"] == 0
