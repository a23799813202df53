"""The models there are, in MLflow: runs with their figures, versions with their ONNX, aliases that say which serves.

``champion`` decides, ``challenger`` is the newest candidate, ``previous`` is where a rollback goes. A version is
promoted only if it passes `check_promotable`; serving follows the alias.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from infra.settings import settings
from models.scoring import PARITY, BadModelError, OnnxModel
from pipelines.errors import StreambankError

__all__ = ["MODEL_NAME", "ModelVersion", "NotPromotedError", "Registry", "model_card"]

MODEL_NAME: Final = "fraud"
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"
MODEL_FILE: Final = "model.onnx"

PARITY_METRIC: Final = "onnx_largest_difference"
"""Metric of a run: by how much the exported model's scores differ from the trained one's, at most."""
SEARCH: Final = "search"
"""Appended to the model's name: the experiment of the search for settings."""

MAX_LOSS: Final = 0.005
"""Average precision that a new champion may lose against the current one on the same folds."""


class NotPromotedError(StreambankError):
    """A version that must not serve; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version; ``metrics`` as logged by its run, ``aliases`` as they are now."""

    version: int
    run_id: str
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    tags: dict[str, str]


class Registry:
    """The versions of one model name in the MLflow at ``tracking_uri`` (default: the settings'); artifacts lie in
    ``artifacts`` (a folder)."""

    def __init__(self, tracking_uri: str | None = None, artifacts: Path | None = None, name: str = MODEL_NAME) -> None:
        from mlflow import MlflowClient

        self.name = name
        uri = tracking_uri or settings().mlflow_uri
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.tracking_uri = uri
        self._client = MlflowClient(uri, uri)
        self._artifacts = (artifacts or settings().home / "mlflow-artifacts").resolve()

    def add(
        self, exported: bytes, metrics: Mapping[str, float], parameters: Mapping[str, Any], card: str
    ) -> ModelVersion:
        """Log a run with its model and register it as the newest version, the challenger."""
        run = self._run(self.name, metrics, parameters)
        run_id = run.info.run_id
        with TemporaryDirectory() as folder:
            (Path(folder) / MODEL_FILE).write_bytes(exported)
            (Path(folder) / "model-card.md").write_text(card, encoding="utf-8")
            self._client.log_artifacts(run_id, folder)
        if not any(found.name == self.name for found in self._client.search_registered_models()):
            self._client.create_registered_model(self.name)
        version = self._client.create_model_version(
            self.name, run.info.artifact_uri, run_id, tags={"sha256": hashlib.sha256(exported).hexdigest()}
        )
        self._client.set_terminated(run_id)
        self._client.set_registered_model_alias(self.name, CHALLENGER, version.version)
        return self.version(version.version)

    def add_trial(self, number: int, metrics: Mapping[str, float], parameters: Mapping[str, Any]) -> None:
        """Log trial ``number`` of a search, as a run of an experiment of its own; no version comes of it."""
        run = self._run(f"{self.name}-{SEARCH}", metrics, parameters, f"trial {number}")
        self._client.set_terminated(run.info.run_id)

    def _run(self, experiment: str, metrics: Mapping[str, float], parameters: Mapping[str, Any], name: str = "") -> Any:
        """A run that goes on, with its figures."""
        from mlflow.entities import Metric, Param

        known = self._client.get_experiment_by_name(experiment)
        experiment_id = (
            known.experiment_id
            if known is not None
            else self._client.create_experiment(experiment, artifact_location=self._artifacts.as_uri())
        )
        run = self._client.create_run(experiment_id, run_name=name or None)
        now = time.time_ns() // 1_000_000
        self._client.log_batch(
            run.info.run_id,
            [Metric(key, number, now, 0) for key, number in metrics.items()],
            [Param(key, str(value)) for key, value in parameters.items()],
        )
        return run

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        found = self._client.search_model_versions(f"name = '{self.name}'")
        return [self.version(number) for number in sorted(int(one.version) for one in found)]

    def version(self, label: str | int) -> ModelVersion:
        """A version by number or by alias. Raises `NotPromotedError` naming those there are."""
        from mlflow.exceptions import MlflowException

        try:
            if str(label).isdecimal():
                found = self._client.get_model_version(self.name, str(label))
            else:
                found = self._client.get_model_version_by_alias(self.name, str(label))
            aliases = self._client.get_registered_model(self.name).aliases
        except MlflowException as error:
            raise NotPromotedError(f"model {self.name} has no version or alias {label!r}: {error.message}") from error
        number = int(found.version)
        metrics = self._client.get_run(found.run_id).data.metrics
        own = tuple(sorted(alias for alias, at in aliases.items() if int(at) == number))
        return ModelVersion(number, found.run_id, own, dict(metrics), dict(found.tags))

    def exported(self, version: ModelVersion) -> bytes:
        """A version's ONNX bytes. Raises `BadModelError` if they are not those that were registered."""
        with TemporaryDirectory() as folder:
            path = Path(self._client.download_artifacts(version.run_id, MODEL_FILE, folder))
            exported = path.read_bytes()
        if hashlib.sha256(exported).hexdigest() != version.tags.get("sha256"):
            raise BadModelError(f"version {version.version} of {self.name}: its file is not the one registered")
        return exported

    def aliases(self) -> dict[str, int]:
        """Version number by alias; empty before the first model."""
        if not any(found.name == self.name for found in self._client.search_registered_models()):
            return {}
        return {alias: int(at) for alias, at in self._client.get_registered_model(self.name).aliases.items()}

    def check_serves(self, version: ModelVersion) -> None:
        """Raises `NotPromotedError` for a model that does not load, takes inputs that the stream does not make, or
        gives something else than probabilities for a fixed sample."""
        import numpy as np

        from models.fraud_dataset import UnknownInputError
        from pipelines.codec import codec_of

        vectors = np.zeros(4, codec_of("fraud.features").event_type("FeatureVector").dtype)
        try:
            scores = OnnxModel(self.exported(version)).score_vectors(vectors)
        except (BadModelError, UnknownInputError) as error:
            raise NotPromotedError(f"version {version.version} cannot serve: {error}") from error
        if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()):
            raise NotPromotedError(f"version {version.version} gives scores that are no probabilities: {scores}")

    def check_promotable(self, version: ModelVersion) -> None:
        """`check_serves`, and raises `NotPromotedError` too for a model that scores otherwise than the trained one, was
        not evaluated, or is worse than the champion by more than `MAX_LOSS`."""
        self.check_serves(version)
        difference = version.metrics.get(PARITY_METRIC)
        if difference is None or not difference <= PARITY:
            found = "was never compared with" if difference is None else f"differs by {difference:g} from"
            raise NotPromotedError(
                f"version {version.version}: the exported model {found} the trained one, at most {PARITY:g} is "
                "allowed; `streambank model train` makes one that passes"
            )
        precision = version.metrics.get("average_precision")
        if precision is None:
            raise NotPromotedError(f"version {version.version} was never evaluated")
        champion = self.aliases().get(CHAMPION)
        if champion is None:
            return
        current = self.version(champion).metrics["average_precision"]
        if precision < current - MAX_LOSS:
            raise NotPromotedError(
                f"version {version.version} has an average precision of {precision:.4f}, the champion (version "
                f"{champion}) {current:.4f}; more than {MAX_LOSS} less is not promoted"
            )

    def promote(self, label: str | int = CHALLENGER) -> ModelVersion:
        """Make a version the champion; the one before becomes ``previous``."""
        version = self.version(label)
        self.check_promotable(version)
        champion = self.aliases().get(CHAMPION)
        if champion == version.version:
            return version
        if champion is not None:
            self._client.set_registered_model_alias(self.name, PREVIOUS, str(champion))
        self._client.set_registered_model_alias(self.name, CHAMPION, str(version.version))
        return self.version(version.version)

    def rollback(self) -> ModelVersion:
        """Make the previous champion the champion again, and the other way round."""
        aliases = self.aliases()
        if PREVIOUS not in aliases:
            raise NotPromotedError(f"model {self.name} has no previous champion to go back to")
        self._client.set_registered_model_alias(self.name, CHAMPION, str(aliases[PREVIOUS]))
        self._client.set_registered_model_alias(self.name, PREVIOUS, str(aliases[CHAMPION]))
        return self.version(aliases[PREVIOUS])


def model_card(metadata: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """What a reader must know of a model: data, inputs, settings, figures, libraries, limits."""
    recipe = metadata["recipe"]
    lines = [
        f"# Fraud model: {recipe['algorithm']}",
        "",
        f"- Data: {metadata['data']}, training days {metadata['train_window'][0]} to {metadata['train_window'][1]}",
        f"- Rows {metadata['train_rows']:,}, frauds {metadata['train_frauds']:,}",
        f"- Inputs: {', '.join(recipe['inputs'])}",
        f"- Settings: `{json.dumps(recipe['settings'], sort_keys=True)}`, fraud weight {recipe['fraud_weight']}",
        f"- Calibration: {metadata['calibration']}",
        f"- Thresholds: {metadata['thresholds']}",
        f"- Libraries: {metadata['libraries']}",
        "",
        "| measure | mean over the folds |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in metrics.items()),
        "",
        "Trained on simulated transactions: figures on real cards will differ. A score says how a transaction compares "
        "with those frauds, not what happened.",
        "",
    ]
    return "\n".join(lines)
