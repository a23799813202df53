"""How fraud models are judged: prequential folds, known cards taken out, and three measures.

The protocol is that of *Reproducible Machine Learning for Credit Card Fraud Detection*: train for some days, wait a
week for labels, test for a week. Cards already known as defrauded are taken out of the test rows, since a bank blocks
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from models.fraud_dataset import FraudDataset

__all__ = [
    "FOLD_STARTS", "Fold", "Metrics", "card_precision", "evaluate", "fold", "threshold_by_capacity",
    "threshold_by_cost",
]  # fmt: skip

FOLD_STARTS: Final = (115, 122, 129, 136)
"""First day of the last training week of the four published folds: 2018-07-25, 08-01, 08-08 and 08-15."""
WEEK: Final = 7
ALERTS_PER_DAY: Final = 100


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """One step of prequential validation; ``start`` is the first day of its last training week."""

    start: int
    train: FraudDataset
    test: FraudDataset


@dataclass(frozen=True, slots=True)
class Metrics:
    auc_roc: float
    average_precision: float
    card_precision_100: float
    brier: float

    def as_dict(self) -> dict[str, float]:
        return {name: float(getattr(self, name)) for name in self.__slots__}


def fold(data: FraudDataset, start: int, train_days: int = WEEK, delay_days: int = WEEK) -> Fold:
    """Train on ``train_days`` up to day ``start`` + 6, test on the week that begins ``delay_days`` later.

    Test rows do not depend on ``train_days``: the cards known as defrauded are those with a fraud in the week from
    ``start`` on and, for test day i, on the days up to ``start`` + 7 + i - 1, whose labels have come by then.
    """
    day = data.day
    end = start + WEEK
    customers = data.vectors["customer_id"]
    known = set(customers[data.fraud & (day >= start) & (day < end)].tolist())
    kept = np.zeros(len(data), np.bool_)
    for i in range(WEEK):
        known |= set(customers[data.fraud & (day == end + i - 1)].tolist())
        rows = np.flatnonzero(day == end + delay_days + i)
        kept[rows] = ~np.isin(customers[rows], np.fromiter(known, np.int64, len(known)))
    return Fold(start, data.select((day >= end - train_days) & (day < end)), data.select(kept))


def card_precision(test: FraudDataset, scores: NDArray[np.float64], alerts: int = ALERTS_PER_DAY) -> float:
    """Mean over the test days of the share of frauds among the ``alerts`` cards with the highest scores.

    A card's score and label are the highest of its day; a card found on an earlier day is not counted again. Ties go
    to the lower customer id.
    """
    day = test.day
    customers = test.vectors["customer_id"]
    found: set[int] = set()
    hits_per_day = []
    for one_day in np.unique(day).tolist():
        rows = np.flatnonzero(day == one_day)
        rows = rows[~np.isin(customers[rows], np.fromiter(found, np.int64, len(found)))]
        cards, card_of_row = np.unique(customers[rows], return_inverse=True)
        highest = np.full(len(cards), -np.inf)
        np.maximum.at(highest, card_of_row, scores[rows])
        defrauded = np.zeros(len(cards), np.bool_)
        np.logical_or.at(defrauded, card_of_row, test.fraud[rows])
        first = np.argsort(-highest, kind="stable")[:alerts]
        hits = cards[first][defrauded[first]]
        hits_per_day.append(len(hits) / alerts)
        found |= set(hits.tolist())
    return float(np.mean(hits_per_day))


def evaluate(test: FraudDataset, scores: NDArray[np.float64]) -> Metrics:
    """All measures of one test set's scores, which are probabilities of fraud."""
    return Metrics(
        float(roc_auc_score(test.fraud, scores)),
        float(average_precision_score(test.fraud, scores)),
        card_precision(test, scores),
        float(brier_score_loss(test.fraud, np.clip(scores, 0, 1))),
    )


def threshold_by_capacity(test: FraudDataset, scores: NDArray[np.float64], alerts: int = ALERTS_PER_DAY) -> float:
    """The lowest score at which, on average over the days, at most ``alerts`` cards a day reach it."""
    day, customers = test.day, test.vectors["customer_id"]
    pair = day * (int(customers.max()) + 1) + customers
    _, place = np.unique(pair, return_inverse=True)
    highest = np.full(place.max() + 1, -np.inf)
    np.maximum.at(highest, place, scores)
    allowed = alerts * len(np.unique(day))
    return float(np.sort(highest)[::-1][min(allowed, len(highest)) - 1])


def threshold_by_cost(
    test: FraudDataset, scores: NDArray[np.float64], review_cost: float, loss_share: float = 1.0
) -> tuple[float, float]:
    """The score from which on reviewing costs least, and that cost: ``review_cost`` currency units for each
    transaction reviewed, and ``loss_share`` of the amount for each fraud below the threshold."""
    order = np.argsort(-scores, kind="stable")
    losses = np.where(test.fraud, test.vectors["amount"] / 100.0, 0.0)[order] * loss_share
    costs = review_cost * np.arange(len(order) + 1) + losses.sum() - np.concatenate([[0.0], np.cumsum(losses)])
    # a threshold cannot part equal scores
    ranked = scores[order]
    possible = np.concatenate([[True], ranked[1:] != ranked[:-1], [True]])
    best = int(np.flatnonzero(possible)[np.argmin(costs[possible])])
    return (float(np.inf) if best == 0 else float(ranked[best - 1])), float(costs[best])
