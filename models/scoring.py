"""An exported fraud model in memory: feature vectors in, probabilities of fraud out.

Used by the model server, by jobs that embed a model and by evaluation, so that all of them read a model the same way.
"""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.fraud_dataset import model_inputs
from models.trees import Ensemble, ensemble_of
from pipelines.errors import StreambankError

__all__ = ["PARITY", "BadInputsError", "BadModelError", "OnnxModel"]

METADATA_KEY: Final = "streambank"
PARITY: Final = 1e-4
"""Largest difference of an exported model's probability from the trained one's; ONNX computes in single precision."""
SAME: Final = 1e-6
"""Largest difference of `models.trees` from ONNX Runtime: the last digit of a probability in single precision."""
SAMPLE_ROWS: Final = 1_000


class BadModelError(StreambankError):
    """Bytes that are not a fraud model: not ONNX, without metadata, or with other inputs or outputs."""


class BadInputsError(StreambankError):
    """Inputs that this model cannot score; the message says which and what is expected."""


class OnnxModel:
    """One loaded model. ``inputs`` are the names of its columns; ``metadata`` what was stored with it.

    Scoring is thread-safe and computes on one thread: a small model is slowed down, not sped up, by more. Boosted trees
    are computed by `models.trees` where they can be, everything else by ONNX Runtime; that both say the same is tried
    out when the model is loaded.
    """

    def __init__(self, exported: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has many errors and no base for them
            raise BadModelError(f"not a model that ONNX Runtime can load: {error}") from error
        stored = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if stored is None:
            raise BadModelError(f"the model has no {METADATA_KEY!r} metadata; export it with `streambank model train`")
        self.metadata: dict[str, Any] = json.loads(stored)
        self.inputs: tuple[str, ...] = tuple(self.metadata["recipe"]["inputs"])
        shapes = {found.name: found.shape for found in self._session.get_inputs()}
        outputs = {found.name for found in self._session.get_outputs()}
        if list(shapes) != ["inputs"] or shapes["inputs"][1] != len(self.inputs) or "probabilities" not in outputs:
            raise BadModelError(
                f"the model takes {shapes} and gives {sorted(outputs)}; a fraud model takes inputs (n, "
                f"{len(self.inputs)}) and gives probabilities"
            )
        calibration = self.metadata.get("calibration", {})
        self._slope = float(calibration.get("slope", 1.0))
        self._offset = float(calibration.get("offset", 0.0))
        self._trees = ensemble_of(exported)
        if self._trees is not None and not self._says_the_same(self._trees):
            self._trees = None

    def score(self, inputs: NDArray[np.generic]) -> NDArray[np.float64]:
        """Calibrated probabilities of fraud, shape (n,), from inputs of shape (n, k) in the order of ``inputs``.

        Raises `BadInputsError` for another shape and for numbers that are not finite.
        """
        columns = np.ascontiguousarray(inputs, np.float32)
        if columns.ndim != 2 or columns.shape[1] != len(self.inputs):
            raise BadInputsError(
                f"inputs have the shape {columns.shape}; expected (rows, {len(self.inputs)}): {', '.join(self.inputs)}"
            )
        if not np.isfinite(columns).all():
            row, column = np.argwhere(~np.isfinite(columns))[0].tolist()
            raise BadInputsError(f"{self.inputs[column]} of row {row} is not a finite number")
        if len(columns) == 0:
            return np.empty(0, np.float64)
        scores = self._run(columns) if self._trees is None else self._trees.probabilities(columns)
        if self._slope == 1 and self._offset == 0:
            return np.asarray(scores)
        clipped = np.clip(scores, 1e-7, 1 - 1e-7)
        logit = np.log(clipped / (1 - clipped))
        return np.asarray(1 / (1 + np.exp(-(self._slope * logit + self._offset))))

    def _run(self, columns: NDArray[np.float32]) -> NDArray[np.float64]:
        found = self._session.run(["probabilities"], {"inputs": columns})[0][:, 1]
        return np.asarray(found, np.float64)

    def _says_the_same(self, trees: Ensemble) -> bool:
        """On rows around the trees' own thresholds, where a comparison that is meant otherwise shows."""
        rows = trees.sample(SAMPLE_ROWS, len(self.inputs))
        return bool(np.abs(trees.probabilities(rows) - self._run(rows)).max() <= SAME)

    def score_vectors(self, vectors: NDArray[np.void]) -> NDArray[np.float64]:
        """Probabilities for feature vectors as the stream makes them, shape (n,)."""
        return self.score(model_inputs(vectors, self.inputs))
