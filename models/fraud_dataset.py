"""Training sets of the fraud models: the stream's feature vectors as model inputs, with their labels, by day.

`model_inputs` is the only place where integers of a FeatureVector become a model's numbers: training, the notebooks
and scoring all go through it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infra.settings import settings
from models.fraud_stream import EPOCH_MICROS, Progress, feature_rows
from models.simulator import DIGEST, CardTransactions, load_transactions, simulate
from pipelines.errors import StreambankError

__all__ = ["BASE_INPUTS", "INPUTS", "FraudDataset", "UnknownInputError", "dataset_of", "load_dataset", "model_inputs"]

BASE_INPUTS: Final = (
    "amount", "weekend", "night", "cn1", "avg1", "cn7", "avg7", "cn30", "avg30",
    "tn1", "risk1", "tn7", "risk7", "tn30", "risk30",
)  # fmt: skip
"""The published yardstick's inputs, in its order."""
INPUTS: Final = (*BASE_INPUTS, "amount_to_avg7", "amount_to_avg30", "avg1_to_avg30", "avg7_to_avg30")
"""What models are trained on unless told otherwise."""

MICROS_PER_DAY: Final = 86_400_000_000


class UnknownInputError(StreambankError):
    """A model asks for an input that feature vectors do not give."""


def model_inputs(vectors: NDArray[np.void], names: tuple[str, ...] = INPUTS) -> NDArray[np.float64]:
    """A model's inputs from feature vectors (records of FeatureVector, or of any type with its fields), shape (n, k).

    ``amount`` is in currency units, ``avgN`` the customer's average amount of N days in currency units, ``riskN`` the
    share of frauds in the terminal's delayed window of N days (0 for an empty one), ``amount_to_avgN`` the amount as a
    multiple of avgN and ``avgM_to_avgN`` avgM as one (1 where avgN is 0). Other names are fields as they are. Raises
    `UnknownInputError`.
    """
    return np.stack([_column(vectors, name) for name in names], axis=1)


def _column(vectors: NDArray[np.void], name: str) -> NDArray[np.float64]:
    fields = vectors.dtype.names or ()
    if name == "amount":
        return np.asarray(vectors["amount"] / 100.0)
    if name.startswith("avg") and f"cs{name[3:]}" in fields:
        return np.asarray(vectors[f"cs{name[3:]}"] / np.maximum(vectors[f"cn{name[3:]}"], 1) / 100.0)
    if name.startswith("risk") and f"tf{name[4:]}" in fields:
        return np.asarray(vectors[f"tf{name[4:]}"] / np.maximum(vectors[f"tn{name[4:]}"], 1))
    dividend, found, average = name.partition("_to_avg")
    if found and (dividend == "amount" or dividend.startswith("avg")) and f"cs{average}" in fields:
        usual = _column(vectors, f"avg{average}")
        return np.asarray(np.where(usual > 0, _column(vectors, dividend) / np.where(usual > 0, usual, 1), 1.0))
    if name in fields and vectors.dtype[name].kind in "iu":
        return np.asarray(vectors[name].astype(np.float64))
    raise UnknownInputError(
        f"{name!r} is not a field of feature vectors, nor avgN, riskN, amount_to_avgN or avgM_to_avgN of them"
    )


@dataclass(frozen=True, slots=True, eq=False)
class FraudDataset:
    """Feature vectors with their labels, in time order, as columns of equal length."""

    vectors: NDArray[np.void]
    fraud: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.fraud)

    @property
    def day(self) -> NDArray[np.int64]:
        """Days since the simulated epoch."""
        return (self.vectors["event_time"] - EPOCH_MICROS) // MICROS_PER_DAY

    def select(self, rows: NDArray[np.bool_]) -> FraudDataset:
        return FraudDataset(self.vectors[rows], self.fraud[rows])

    def inputs(self, names: tuple[str, ...] = INPUTS) -> NDArray[np.float64]:
        return model_inputs(self.vectors, names)


def dataset_of(world: CardTransactions, progress: Progress | None = None) -> FraudDataset:
    """A world's transactions with the features that the stream makes of them."""
    return FraudDataset(feature_rows(world, progress=progress), world.fraud)


def load_dataset(customers: int | None = None, progress: Progress | None = None) -> FraudDataset:
    """The published world's data set, or that of its first ``customers``; made once and kept in ``<home>/datasets``."""
    if customers is not None:
        return dataset_of(simulate(customers=customers, terminals=2 * customers), progress)
    world = load_transactions()
    path = settings().home / "datasets" / f"fraud-features-1-{DIGEST[:16]}.npy"
    if path.exists():
        return FraudDataset(np.load(path, allow_pickle=False), world.fraud)
    made = dataset_of(world, progress)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.save(file, made.vectors, allow_pickle=False)
    Path(part).replace(path)
    return made
