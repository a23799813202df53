"""The steps from a data set to a registered model, as the command line and the notebooks run them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from importlib.metadata import version as installed
from typing import Any, Final

import numpy as np

from models.fraud_dataset import FraudDataset
from models.fraud_evaluation import FOLD_STARTS, Metrics, evaluate, fold, threshold_by_capacity, threshold_by_cost
from models.fraud_registry import PARITY_METRIC, ModelVersion, Registry, model_card
from models.fraud_training import Recipe, Trial, calibrate, check_parity, export, fit, prequential, scores_of, search
from models.scoring import OnnxModel

__all__ = ["evaluate_version", "mean_metrics", "search_and_log", "train_and_register"]

LIBRARIES: Final = ("numpy", "scikit-learn", "xgboost", "onnx", "onnxruntime", "skl2onnx", "onnxmltools")
PARITY_ROWS: Final = 10_000


def mean_metrics(found: list[Metrics]) -> dict[str, float]:
    """Each measure's mean over the folds."""
    return {name: float(np.mean([one.as_dict()[name] for one in found])) for name in Metrics.__slots__}


def train_and_register(
    recipe: Recipe,
    data: FraudDataset,
    registry: Registry,
    *,
    data_name: str,
    review_cost: float = 5.0,
    starts: tuple[int, ...] = FOLD_STARTS,
    progress: Callable[[int, int], None] | None = None,
) -> ModelVersion:
    """Evaluate ``recipe`` on the folds, train it on the last one's rows, calibrate and export it, and register it as
    the challenger.

    Calibration and thresholds come from the last fold's test week, which the model was not trained on; its figures
    are the folds'. Raises `models.fraud_training.ParityError` for an export that scores otherwise.
    """
    metrics = mean_metrics(prequential(recipe, data, starts, progress))
    last = fold(data, starts[-1], recipe.train_days)
    pipeline = fit(recipe, last.train)
    scores = scores_of(pipeline, recipe, last.test)
    calibration = calibrate(scores, last.test.fraud)
    probabilities = calibration.apply(scores)
    by_cost, cost = threshold_by_cost(last.test, probabilities, review_cost)
    days = last.train.day
    metadata: dict[str, Any] = {
        "data": data_name,
        "data_sha256": hashlib.sha256(np.ascontiguousarray(last.train.vectors).tobytes()).hexdigest(),
        "train_window": [int(days.min()), int(days.max())],
        "train_rows": len(last.train),
        "train_frauds": int(last.train.fraud.sum()),
        "calibration": {"slope": calibration.slope, "offset": calibration.offset},
        "thresholds": {
            "100_cards_a_day": threshold_by_capacity(last.test, probabilities),
            # no finite threshold pays for itself when reviews cost more than frauds
            "least_cost": by_cost if np.isfinite(by_cost) else 1.0,
            "review_cost": review_cost,
            "cost_of_the_week": cost,
        },
        "metrics": metrics,
        "libraries": {"python": platform.python_version()} | {name: installed(name) for name in LIBRARIES},
    }
    sample = last.test.select(np.arange(len(last.test)) < PARITY_ROWS)
    exported = export(pipeline, recipe, sample, metadata)
    logged = metrics | {PARITY_METRIC: check_parity(exported, pipeline, recipe, sample)}
    card = model_card(metadata | {"recipe": recipe.as_json()}, metrics)
    return registry.add(exported, logged, _parameters(recipe, data_name), card)


def search_and_log(
    recipe: Recipe,
    data: FraudDataset,
    registry: Registry,
    trials: int,
    *,
    data_name: str,
    starts: tuple[int, ...] = FOLD_STARTS,
    progress: Callable[[Trial], None] | None = None,
) -> tuple[Recipe, float]:
    """`models.fraud_training.search`, each trial being logged in MLflow as it ends."""

    def log(trial: Trial) -> None:
        measured = {"average_precision": trial.average_precision}
        registry.add_trial(trial.number, measured, _parameters(trial.recipe, data_name))
        if progress is not None:
            progress(trial)

    return search(recipe, data, trials, starts, log)


def _parameters(recipe: Recipe, data_name: str) -> dict[str, Any]:
    return {
        "algorithm": recipe.algorithm, "train_days": recipe.train_days, "fraud_weight": recipe.fraud_weight,
        "inputs": ",".join(recipe.inputs), "data": data_name, **recipe.settings,
    }  # fmt: skip


def evaluate_version(
    registry: Registry, label: str | int, data: FraudDataset, start: int = FOLD_STARTS[-1]
) -> dict[str, float]:
    """Measures of a registered model's own bytes on the test week of the fold that begins at ``start``."""
    model = OnnxModel(registry.exported(registry.version(label)))
    test = fold(data, start).test
    return evaluate(test, model.score_vectors(test.vectors)).as_dict()
