"""A day's report on fraud scoring: drift, UNKNOWN rate, alert precision, calibration; as JSON, plots and metrics.

- **Drift**: population stability index (PSI) of each model input and of the score, the day against the reference days
  before it, in the deciles of the reference. Below 0.1 little has changed, above 0.25 much has.
- **UNKNOWN rate**: share of the day's first decisions without a score, by reason.
- **Alert precision and calibration** need labels, which are late: they are about the newest days whose labels had
  `LABEL_DELAY_DAYS` to come, as known at the end of the day. Precision is the share of frauds among reviewed and
  blocked transactions; calibration compares mean scores with the share of frauds in ten bins.

Everything is read from Cassandra, as the sinks wrote it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infra.settings import Settings
from infra.stores import cassandra_session
from models.fraud_dataset import INPUTS, FraudDataset, model_inputs
from models.fraud_history import BUCKETS, read_partitions, read_training_set
from pipelines.catalogue import FRAUD_SHARDS
from pipelines.errors import StreambankError
from pipelines.fraud.alerts import MICROS_PER_DAY

__all__ = ["NothingToReportError", "Report", "make_report", "psi", "write_report"]

LABEL_DELAY_DAYS: Final = 7
LABELLED_DAYS: Final = 7
REFERENCE_DAYS: Final = 28
BINS: Final = 10
FLOOR: Final = 1e-4
"""Least share of a bin, so that an empty one does not make the index infinite."""

_DECISIONS: Final = (
    "SELECT transaction_id, rescored, decision, unknown_reason, score FROM fraud_decisions"
    " WHERE shard = ? AND day = ? AND bucket = ?"
)


class NothingToReportError(StreambankError):
    """A day without transactions, or no reference days."""


@dataclass(frozen=True, slots=True)
class Report:
    """``calibration`` rows are (mean score, share of frauds, transactions); None where there was nothing to measure."""

    day: str
    transactions: int
    reference_transactions: int
    drift: dict[str, float]
    score_drift: float | None
    decisions: dict[str, int]
    unknown_rate: float | None
    unknown_reasons: dict[str, int]
    alerts: int
    alert_precision: float | None
    calibration: list[tuple[float, float, int]]


def psi(reference: NDArray[np.float64], current: NDArray[np.float64]) -> float:
    """Population stability index: sum over bins of (q - p) ln(q / p), p and q the shares of reference and current."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:-1]))
    shares = [
        np.maximum(np.bincount(np.searchsorted(edges, one, side="left"), minlength=len(edges) + 1) / len(one), FLOOR)
        for one in (reference, current)
    ]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


@dataclass(frozen=True, slots=True)
class _Decided:
    """First decisions of some days: by (shard, id) the decision, the reason and the score in parts per million, -1
    if unknown."""

    rows: dict[tuple[int, int], tuple[str, str, int]]

    def scores(self) -> NDArray[np.float64]:
        return np.array([score for *_, score in self.rows.values() if score >= 0], np.float64)


def make_report(
    settings: Settings, day: int, reference_days: int = REFERENCE_DAYS, shards: Sequence[int] = range(FRAUD_SHARDS)
) -> Report:
    """The report of a UTC day (days since 1970). Raises `NothingToReportError`."""
    as_of = (day + 1) * MICROS_PER_DAY
    today = read_training_set(settings, day, day, as_of, shards)
    reference = read_training_set(settings, day - reference_days, day - 1, as_of, shards)
    if not len(today) or not len(reference):
        raise NothingToReportError(
            f"day {day} has {len(today)} transactions in Cassandra and the {reference_days} before it {len(reference)};"
            " do the sinks run?"
        )
    last = day - LABEL_DELAY_DAYS
    labelled = {  # ids are unique within a shard
        shard: read_training_set(settings, last - LABELLED_DAYS + 1, last, as_of, [shard]) for shard in shards
    }
    decided = _decided(settings, day, day, shards)
    before = _decided(settings, day - reference_days, day - 1, shards).scores()
    now = decided.scores()
    unknown = Counter(reason for _, reason, score in decided.rows.values() if score < 0)
    alerts, precision, calibration = _against_labels(
        labelled, _decided(settings, last - LABELLED_DAYS + 1, last, shards)
    )
    inputs = [model_inputs(one.vectors, INPUTS) for one in (reference, today)]
    return Report(
        day=datetime.fromtimestamp(day * MICROS_PER_DAY / 1e6, UTC).date().isoformat(),
        transactions=len(today),
        reference_transactions=len(reference),
        drift={name: psi(inputs[0][:, column], inputs[1][:, column]) for column, name in enumerate(INPUTS)},
        score_drift=psi(before, now) if len(before) and len(now) else None,
        decisions=dict(Counter(decision for decision, *_ in decided.rows.values())),
        unknown_rate=sum(unknown.values()) / len(decided.rows) if decided.rows else None,
        unknown_reasons=dict(unknown),
        alerts=alerts,
        alert_precision=precision,
        calibration=calibration,
    )


def _decided(settings: Settings, first_day: int, last_day: int, shards: Sequence[int]) -> _Decided:
    partitions = [
        (shard, day, bucket) for shard in shards for day in range(first_day, last_day + 1) for bucket in range(BUCKETS)
    ]
    rows: dict[tuple[int, int], tuple[str, str, int]] = {}
    with cassandra_session(settings) as session:
        for (shard, _, _), row in read_partitions(session, _DECISIONS, partitions):
            if not row.rescored:
                rows[shard, row.transaction_id] = (row.decision, row.unknown_reason, row.score)
    return _Decided(rows)


def _against_labels(
    labelled: dict[int, FraudDataset], decided: _Decided
) -> tuple[int, float | None, list[tuple[float, float, int]]]:
    """(alerts, their precision, calibration) of the labelled transactions of each shard."""
    alerts = frauds = 0
    scores, outcomes = [], []
    for shard, data in labelled.items():
        ids = zip(data.vectors["transaction_id_lo"].tolist(), data.vectors["transaction_id_hi"].tolist(), strict=True)
        for (low, high), fraud in zip(ids, data.fraud.tolist(), strict=True):
            found = decided.rows.get((shard, high << 64 | low))
            if found is None:
                continue
            decision, _, score = found
            if decision != "approve":
                alerts += 1
                frauds += fraud
            if score >= 0:
                scores.append(score / 1e6)
                outcomes.append(fraud)
    bins = np.minimum((np.array(scores) * BINS).astype(np.int64), BINS - 1)
    calibration = [
        (float(np.mean(np.array(scores)[bins == one])), float(np.mean(np.array(outcomes)[bins == one])), int(count))
        for one, count in enumerate(np.bincount(bins, minlength=BINS))
        if count
    ]
    return alerts, frauds / alerts if alerts else None, calibration


def write_report(report: Report, folder: Path) -> list[Path]:
    """Store ``report.json``, ``drift.png``, ``calibration.png`` and ``metrics.prom`` (for Prometheus' textfile
    collector) in a folder of the day's name below ``folder``; returns the files."""
    at = folder / report.day
    at.mkdir(parents=True, exist_ok=True)
    (at / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    _plot(report, at)
    _metrics(report, at / "metrics.prom")
    return sorted(at.iterdir())


def _plot(report: Report, folder: Path) -> None:
    from matplotlib.figure import Figure

    drift = dict(sorted(report.drift.items(), key=lambda item: item[1]))
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(drift), list(drift.values()))
    for limit in (0.1, 0.25):
        axes.axvline(limit, color="grey", linestyle="--", linewidth=0.8)
    axes.set_xlabel("PSI against the reference days")
    axes.set_title(f"Drift of the inputs, {report.day}")
    figure.savefig(folder / "drift.png")

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=0.8)
    if report.calibration:
        means, shares, _ = zip(*report.calibration, strict=True)
        axes.plot(means, shares, marker="o")
    axes.set_xlabel("mean score")
    axes.set_ylabel("share of frauds")
    axes.set_title(f"Calibration, labels known on {report.day}")
    figure.savefig(folder / "calibration.png")


def _metrics(report: Report, path: Path) -> None:
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()

    def gauge(name: str, doc: str, values: dict[str, float], label: str = "") -> None:
        made = Gauge(f"streambank_fraud_{name}", doc, [label] if label else [], registry=registry)
        for key, value in values.items():
            (made.labels(key) if label else made).set(value)

    gauge("input_psi", "Drift of a model input.", report.drift, "input")
    single: dict[str, tuple[str, Any]] = {
        "score_psi": ("Drift of the score.", report.score_drift),
        "unknown_rate": ("Share of decisions without a score.", report.unknown_rate),
        "alert_precision": ("Share of frauds among labelled alerts.", report.alert_precision),
    }
    for name, (doc, value) in single.items():
        if value is not None:
            gauge(name, doc, {"": value})
    error = [abs(mean - share) * count for mean, share, count in report.calibration]
    if error:
        total = sum(count for *_, count in report.calibration)
        gauge("calibration_error", "Mean distance of score and share of frauds.", {"": sum(error) / total})
    write_to_textfile(str(path), registry)
