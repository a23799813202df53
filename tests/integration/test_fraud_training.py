"""The published table from the stream's features, and the folds' rules."""

from __future__ import annotations

import numpy as np
import pytest

from models.fraud_dataset import FraudDataset, load_dataset
from models.fraud_evaluation import card_precision, evaluate, fold, threshold_by_capacity, threshold_by_cost
from models.fraud_training import BASELINES, fit, scores_of

TABLE = {
    "logistic regression": (0.871, 0.606, 0.291),
    "decision tree, depth 2": (0.763, 0.496, 0.241),
    "decision tree": (0.788, 0.309, 0.243),
    "xgboost": (0.862, 0.639, 0.273),
}
"""AUC ROC, average precision and Card Precision@100 as published; the forest's vary by more from seed to seed."""
TREE_TIES = 0.007
"""A tree gives many equal scores, and the published order of ties is not known."""


@pytest.fixture(scope="module")
def data() -> FraudDataset:
    return load_dataset()


def test_fold_is_the_published_one(data: FraudDataset) -> None:
    found = fold(data, 115)
    assert (len(found.train), int(found.train.fraud.sum())) == (67_240, 598)
    assert (len(found.test), int(found.test.fraud.sum())) == (58_264, 385)
    assert (found.test.vectors["transaction_id_lo"] == fold(data, 115, 98).test.vectors["transaction_id_lo"]).all()
    assert found.train.day.max() + 8 == found.test.day.min()


@pytest.mark.parametrize("name", TABLE)
def test_published_table(name: str, data: FraudDataset) -> None:
    step = fold(data, 115)
    recipe = BASELINES[name]
    found = evaluate(step.test, scores_of(fit(recipe, step.train), recipe, step.test))
    auc, average_precision, cards = TABLE[name]
    assert found.auc_roc == pytest.approx(auc, abs=0.0006)
    assert found.average_precision == pytest.approx(average_precision, abs=0.0006)
    assert found.card_precision_100 == pytest.approx(cards, abs=TREE_TIES if "tree" in name else 0.0006)


def test_no_model_can_beat_the_oracle(data: FraudDataset) -> None:
    """More than this on the single week means that labels leaked into the inputs."""
    test = fold(data, 115).test
    assert card_precision(test, test.fraud.astype(np.float64)) == pytest.approx(0.397, abs=0.0005)


def test_thresholds(data: FraudDataset) -> None:
    test = fold(data, 115).test
    rng = np.random.default_rng(1)
    scores = np.where(test.fraud, 0.5, 0.0) + rng.uniform(0, 0.6, len(test))
    threshold = threshold_by_capacity(test, scores)
    reached = test.select(scores >= threshold)
    cards = {(day, card) for day, card in zip(reached.day, reached.vectors["customer_id"], strict=True)}
    assert len(cards) == 7 * 100
    by_cost, cost = threshold_by_cost(test, scores, review_cost=1.0)
    for other in rng.uniform(0, 1.2, 200):
        missed = test.fraud & (scores < other)
        assert cost <= np.count_nonzero(scores >= other) + test.vectors["amount"][missed].sum() / 100 + 1e-6
    missed = test.fraud & (scores < by_cost)
    assert cost == pytest.approx(np.count_nonzero(scores >= by_cost) + test.vectors["amount"][missed].sum() / 100)
    assert threshold_by_cost(test, scores, review_cost=1e9)[0] == np.inf
