"""Fraud models: how they are made, tuned, calibrated and turned into ONNX.

Every algorithm is a scikit-learn pipeline with all settings that move its results given explicitly (XGBoost's defaults
have changed before). An exported model is one ONNX graph, with its inputs, calibration and thresholds as metadata; it
is accepted only if its scores equal the trained pipeline's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

from models.fraud_dataset import BASE_INPUTS, INPUTS, FraudDataset
from models.fraud_evaluation import FOLD_STARTS, Fold, Metrics, evaluate, fold
from models.scoring import PARITY
from pipelines.errors import StreambankError

__all__ = [
    "ALGORITHMS", "BASELINES", "Algorithm", "Calibration", "ParityError", "Recipe", "Trial", "calibrate", "export",
    "fit", "prequential", "scores_of", "search",
]  # fmt: skip

Algorithm = Literal["xgboost", "random-forest", "logistic-regression", "decision-tree"]
ALGORITHMS: Final[tuple[Algorithm, ...]] = ("xgboost", "random-forest", "logistic-regression", "decision-tree")


class ParityError(StreambankError):
    """An exported model scores otherwise than the trained one, and is refused."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model is made of. ``fraud_weight`` multiplies the weight of frauds in training."""

    algorithm: Algorithm = "xgboost"
    inputs: tuple[str, ...] = INPUTS
    train_days: int = 98
    fraud_weight: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the algorithm beyond this module's."""
    seed: int = 0
    scale: bool = False
    """Whether inputs are standardised; a logistic regression's always are. Trees do not need it, and ONNX rounds the
    standardised inputs to single precision, which moves some of them over a split."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"settings": dict(self.settings), "inputs": list(self.inputs)}


_BOOK_XGBOOST: Final = {
    "tree_method": "exact", "n_estimators": 100, "max_depth": 6, "learning_rate": 0.3, "subsample": 1.0,
    "colsample_bytree": 1.0, "min_child_weight": 1.0,
}  # fmt: skip
BASELINES: Final[dict[str, Recipe]] = {
    "logistic regression": Recipe("logistic-regression", BASE_INPUTS, 7, scale=True),
    "decision tree, depth 2": Recipe("decision-tree", BASE_INPUTS, 7, settings={"max_depth": 2}, scale=True),
    "decision tree": Recipe("decision-tree", BASE_INPUTS, 7, scale=True),
    "random forest": Recipe("random-forest", BASE_INPUTS, 7, scale=True),
    "xgboost": Recipe("xgboost", BASE_INPUTS, 7, settings=_BOOK_XGBOOST, scale=True),
}
"""The published table's models, with its settings."""


def _classifier(recipe: Recipe) -> Any:
    given = dict(recipe.settings)
    match recipe.algorithm:
        case "xgboost":
            chosen = {
                "n_estimators": 400, "max_depth": 5, "learning_rate": 0.035, "tree_method": "hist", "base_score": 0.5,
                "subsample": 0.8, "colsample_bytree": 0.7, "min_child_weight": 5.0, "reg_lambda": 1.0,
                "scale_pos_weight": recipe.fraud_weight, "n_jobs": 2, "random_state": recipe.seed,
            } | given  # fmt: skip
            return XGBClassifier(**chosen)
        case "random-forest":
            weight = None if recipe.fraud_weight == 1 else {False: 1.0, True: recipe.fraud_weight}
            return RandomForestClassifier(
                **{"n_estimators": 100, "n_jobs": 2, "random_state": recipe.seed, "class_weight": weight} | given
            )
        case "logistic-regression":
            weight = None if recipe.fraud_weight == 1 else {False: 1.0, True: recipe.fraud_weight}
            return LogisticRegression(
                **{"tol": 1e-6, "max_iter": 1_000, "random_state": recipe.seed, "class_weight": weight} | given
            )
        case "decision-tree":
            weight = None if recipe.fraud_weight == 1 else {False: 1.0, True: recipe.fraud_weight}
            return DecisionTreeClassifier(**{"random_state": recipe.seed, "class_weight": weight} | given)


def fit(recipe: Recipe, train: FraudDataset) -> Pipeline:
    """Train on all rows of ``train``."""
    scaled = recipe.scale or recipe.algorithm == "logistic-regression"
    scaler = [("scale", StandardScaler())] if scaled else []
    pipeline = Pipeline([*scaler, ("classify", _classifier(recipe))])
    return pipeline.fit(train.inputs(recipe.inputs), train.fraud)


def scores_of(pipeline: Pipeline, recipe: Recipe, data: FraudDataset) -> NDArray[np.float64]:
    """Uncalibrated probabilities of fraud, shape (n,)."""
    return np.asarray(pipeline.predict_proba(data.inputs(recipe.inputs))[:, 1], np.float64)


def prequential(
    recipe: Recipe,
    data: FraudDataset,
    starts: tuple[int, ...] = FOLD_STARTS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Metrics]:
    """One set of measures per fold, in the order of ``starts``."""
    found = []
    for number, start in enumerate(starts):
        step: Fold = fold(data, start, recipe.train_days)
        found.append(evaluate(step.test, scores_of(fit(recipe, step.train), recipe, step.test)))
        if progress is not None:
            progress(number + 1, len(starts))
    return found


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt scaling: probability = 1 / (1 + exp(-(slope * logit(score) + offset))). Keeps the order of scores."""

    slope: float = 1.0
    offset: float = 0.0

    def apply(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(1.0 / (1.0 + np.exp(-(self.slope * _logit(scores) + self.offset))))


def _logit(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    return np.asarray(np.log(clipped / (1 - clipped)))


def calibrate(scores: NDArray[np.float64], fraud: NDArray[np.bool_]) -> Calibration:
    """Fit Platt scaling on scores of data that the model was not trained on."""
    fitted = LogisticRegression(C=1e6, tol=1e-8, max_iter=1_000).fit(_logit(scores)[:, None], fraud)
    return Calibration(float(fitted.coef_[0, 0]), float(fitted.intercept_[0]))


@dataclass(frozen=True, slots=True)
class Trial:
    """What one try of a search found: ``number`` from 1, the mean average precision of the folds, and the ``best`` so
    far."""

    number: int
    recipe: Recipe
    average_precision: float
    best: float


def search(
    base: Recipe,
    data: FraudDataset,
    trials: int,
    starts: tuple[int, ...] = FOLD_STARTS,
    progress: Callable[[Trial], None] | None = None,
) -> tuple[Recipe, float]:
    """The best of ``trials`` settings by mean average precision over the folds, with that figure.

    ``progress`` is called after each trial. The same seed gives the same trials.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    steps = [fold(data, start, base.train_days) for start in starts]

    def recipe_of(trial: Any) -> Recipe:
        match base.algorithm:
            case "xgboost":
                chosen = {
                    "n_estimators": trial.suggest_int("n_estimators", 100, 500, step=50),
                    "max_depth": trial.suggest_int("max_depth", 3, 8),
                    "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
                    "min_child_weight": trial.suggest_float("min_child_weight", 1, 20, log=True),
                    "subsample": trial.suggest_float("subsample", 0.5, 1.0),
                    "colsample_bytree": trial.suggest_float("colsample_bytree", 0.5, 1.0),
                }
            case "random-forest":
                chosen = {
                    "n_estimators": trial.suggest_int("n_estimators", 50, 300, step=50),
                    "max_depth": trial.suggest_int("max_depth", 6, 24),
                    "min_samples_leaf": trial.suggest_int("min_samples_leaf", 1, 20),
                }
            case "decision-tree":
                chosen = {"max_depth": trial.suggest_int("max_depth", 2, 20)}
            case _:
                chosen = {"C": trial.suggest_float("C", 1e-3, 1e2, log=True)}
        weight = trial.suggest_float("fraud_weight", 1, 20, log=True)
        return Recipe(base.algorithm, base.inputs, base.train_days, weight, dict(base.settings) | chosen, base.seed)

    def objective(trial: Any) -> float:
        recipe = recipe_of(trial)
        found = [
            evaluate(step.test, scores_of(fit(recipe, step.train), recipe, step.test)).average_precision
            for step in steps
        ]
        return float(np.mean(found))

    def report(study: Any, trial: Any) -> None:
        if progress is not None:
            recipe = recipe_of(optuna.trial.FixedTrial(trial.params))
            progress(Trial(trial.number + 1, recipe, float(trial.value), float(study.best_value)))

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=base.seed))
    study.optimize(objective, n_trials=trials, callbacks=[report])
    return recipe_of(optuna.trial.FixedTrial(study.best_params)), float(study.best_value)


def export(pipeline: Pipeline, recipe: Recipe, sample: FraudDataset, metadata: Mapping[str, Any]) -> bytes:
    """The pipeline as ONNX: input ``inputs`` float32 (n, k), output ``probabilities`` float32 (n, 2).

    ``metadata`` is stored with it as JSON, with the recipe's inputs. Raises `ParityError` if on ``sample`` any score
    differs from the pipeline's by more than `PARITY`.
    """
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
    from skl2onnx import convert_sklearn, update_registered_converter
    from skl2onnx.common.data_types import FloatTensorType
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes

    update_registered_converter(
        XGBClassifier, "XGBoostXGBClassifier", calculate_linear_classifier_output_shapes, convert_xgboost,
        options={"nocl": [True, False], "zipmap": [True, False, "columns"]}, overwrite=True,
    )  # fmt: skip
    model = convert_sklearn(
        pipeline,
        initial_types=[("inputs", FloatTensorType([None, len(recipe.inputs)]))],
        options={id(pipeline): {"zipmap": False}},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    entry = model.metadata_props.add()
    entry.key = "streambank"
    entry.value = json.dumps({**metadata, "recipe": recipe.as_json()}, sort_keys=True)
    exported: bytes = model.SerializeToString()
    check_parity(exported, pipeline, recipe, sample)
    return exported


def check_parity(exported: bytes, pipeline: Pipeline, recipe: Recipe, sample: FraudDataset) -> float:
    """Largest difference of the two's scores on ``sample``; raises `ParityError` beyond `PARITY`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    inputs = sample.inputs(recipe.inputs).astype(np.float32)
    found = session.run(["probabilities"], {"inputs": inputs})[0][:, 1].astype(np.float64)
    # single precision input for both: what is compared is the computation, not the rounding of its input
    expected = np.asarray(pipeline.predict_proba(inputs.astype(np.float64))[:, 1], np.float64)
    differs = np.abs(found - expected)
    worst = int(differs.argmax())
    if not differs[worst] <= PARITY:
        raise ParityError(
            f"the exported {recipe.algorithm} scores row {worst} of the sample {found[worst]:.6f}, the trained one "
            f"{expected[worst]:.6f}; {np.count_nonzero(differs > PARITY)} of {len(differs)} rows differ by more than "
            f"{PARITY}"
        )
    return float(differs[worst])
