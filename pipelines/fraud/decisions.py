"""From features and scores to decisions: the one function behind served and embedded scoring and the back-test.

`decide` is pure and works on the columns of a frame: one decision per transaction, in the order of the feature
vectors. A vector of a duplicate gets none, its transaction was decided before. The strongest of the score's thresholds,
the rules that hit and, where there is no score, the policy for UNKNOWN decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.codec import HeapBuilder, codec_of
from pipelines.frames import Events
from pipelines.fraud.records import Status
from pipelines.fraud.rules import MILLION, RuleSet

__all__ = ["Decision", "Judgement", "Scores", "UnknownPolicy", "UnknownReason", "decide", "judge"]

_FEATURES: Final = codec_of("fraud.features").event_type("FeatureVector")
_CODEC: Final = codec_of("fraud.decisions")
_DECISION: Final = _CODEC.event_type("Decision").dtype
_COPIED: Final = ("transaction_id_lo", "transaction_id_hi", "event_time", "customer_id", "terminal_id", "amount")


class Decision(IntEnum):
    """Symbols of Decision.decision, in order: the stronger, the higher."""

    approve = 0
    review = 1
    block = 2


class UnknownReason(IntEnum):
    """Why there is no score; symbols of Decision.unknown_reason, in order."""

    none = 0
    timeout = 1
    circuit_open = 2
    unreachable = 3
    server_error = 4
    bad_answer = 5
    refused = 6
    no_model = 7
    too_late = 8


@dataclass(frozen=True, slots=True)
class UnknownPolicy:
    """What becomes of a transaction without a score: ``decision`` where its amount is above ``above`` cents."""

    decision: Decision = Decision.review
    above: int = 10_000


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer to a frame of ``n`` vectors. ``champion`` float64 (n,) of probabilities, or None and the reason why;
    ``challenger`` likewise, or None when there is none or it did not answer in time."""

    champion: NDArray[np.float64] | None
    champion_version: int = 0
    reason: UnknownReason = UnknownReason.none
    challenger: NDArray[np.float64] | None = None
    challenger_version: int = 0

    def rows(self, chosen: NDArray[np.bool_]) -> Scores:
        """The same for the chosen vectors."""
        return Scores(
            None if self.champion is None else self.champion[chosen],
            self.champion_version,
            self.reason,
            None if self.challenger is None else self.challenger[chosen],
            self.challenger_version,
        )


def decide(
    vectors: NDArray[np.void],
    scores: Scores,
    rules: RuleSet,
    policy: UnknownPolicy,
    *,
    model: str,
    scored_at: int,
    rescored: bool = False,
) -> Events:
    """Events of fraud.decisions for feature vectors. ``scored_at`` is UTC microseconds."""
    decided = vectors["status"] != Status.duplicate
    if not decided.all():
        vectors, scores = vectors[decided], scores.rows(decided)
    count = len(vectors)
    rows = _CODEC.new_rows(count)
    out = rows.view(_DECISION)[:, 0]
    for name in _COPIED:
        out[name] = vectors[name]

    too_late = vectors["status"] == Status.too_late
    reason = np.where(too_late, UnknownReason.too_late, scores.reason).astype(np.int64)
    known = reason == UnknownReason.none
    millionths = np.zeros(count, np.int64)
    if scores.champion is not None:
        millionths = np.where(known, np.rint(np.where(known, scores.champion, 0.0) * MILLION), 0).astype(np.int64)
        out["model_version"] = np.where(known, scores.champion_version, 0)
    out["score"], out["score_is_set"] = millionths, known
    out["unknown_reason"] = reason
    if scores.challenger is not None:
        out["challenger_version"] = np.where(too_late, 0, scores.challenger_version)
        out["challenger_score"] = np.where(too_late, 0, np.rint(scores.challenger * MILLION)).astype(np.int64)
        out["challenger_score_is_set"] = ~too_late

    judged = judge(vectors, known, millionths, rules, policy)
    out["decision"] = judged.decision
    out["rule_set_version"] = rules.version
    out["rescored"] = rescored
    out["scored_at"] = scored_at

    heap = HeapBuilder()
    out["model"] = heap.add(model)
    _write_texts(out, heap, rules, judged, reason)
    return Events(rows, heap.array())


@dataclass(frozen=True, slots=True)
class Judgement:
    """Columns of n rows: ``decision`` int64 of `Decision`, ``hits`` bool (rules, n), whether the score reached the
    thresholds."""

    decision: NDArray[np.int64]
    hits: NDArray[np.bool_]
    reviewed: NDArray[np.bool_]
    blocked: NDArray[np.bool_]


def judge(
    vectors: NDArray[np.void],
    known: NDArray[np.bool_],
    millionths: NDArray[np.int64],
    rules: RuleSet,
    policy: UnknownPolicy,
) -> Judgement:
    """What a rule set makes of vectors with scores in parts per million, where they are ``known``."""
    reviewed = known & (millionths >= rules.review_at)
    blocked = known & (millionths >= rules.block_at)
    decision = reviewed.astype(np.int64) + blocked
    decision = np.where(~known & (vectors["amount"] > policy.above), np.int64(policy.decision), decision)
    hits = rules.hits(vectors, np.where(known, millionths / MILLION, np.nan))
    for rule, hit in zip(rules.rules, hits, strict=True):
        if not rule.shadow:
            np.maximum(decision, np.where(hit, 1 + rule.blocks, 0), out=decision)
    return Judgement(decision, hits, reviewed, blocked)


def _write_texts(
    out: NDArray[np.void], heap: HeapBuilder, rules: RuleSet, judged: Judgement, reason: NDArray[np.int64]
) -> None:
    """Texts per combination of what hit, not per row: a frame has few of them."""
    key = reason | judged.reviewed.astype(np.int64) << 4 | judged.blocked.astype(np.int64) << 5
    for number, hit in enumerate(judged.hits):
        key |= hit.astype(np.int64) << (6 + number)
    combinations, which = np.unique(key, return_inverse=True)
    words = np.zeros((len(combinations), 3), np.int64)
    for row, combination in enumerate(combinations.tolist()):
        hit_rules = [rule for number, rule in enumerate(rules.rules) if combination >> (6 + number) & 1]
        enforced = [rule.id for rule in hit_rules if not rule.shadow]
        codes = ["score_block"] if combination & 32 else ["score_review"] if combination & 16 else []
        if combination & 15:
            codes.append(f"unknown_{UnknownReason(combination & 15).name}")
        codes += [f"rule_{name}" for name in enforced]
        texts = (" ".join(codes), " ".join(enforced), " ".join(rule.id for rule in hit_rules if rule.shadow))
        words[row] = [heap.add(text) for text in texts]
    out["reason_codes"], out["rules_hit"], out["shadow_rules_hit"] = words[which].T
