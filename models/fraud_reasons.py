"""Why a transaction got its score: Shapley values of the model's inputs, off the decision path.

For a case with a score, the contributions say how far each input moved the score from the average of ordinary
transactions of the same day (the background): they add up to the score less that average. They are made by SHAP's
permutation explainer over the exported model itself, with a fixed seed, so that the same case gets the same reasons.

`explain_cases` fills in the reasons of cases that have none: the feature vectors come from Cassandra, the version that
gave the score from the registry, the result goes to the case (`fraud_cases.reasons`). `reasons_of_case` reads them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import numpy as np
import psycopg
import structlog
from numpy.typing import NDArray
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from infra.settings import Settings
from infra.stores import SINK_ROLE, postgres_conninfo
from models.fraud_dataset import model_inputs
from models.fraud_history import read_training_set
from models.fraud_registry import NotPromotedError, Registry
from models.scoring import BadModelError, OnnxModel

__all__ = ["explain_cases", "reasons", "reasons_of_case"]

BACKGROUND_ROWS: Final = 50
PERMUTATIONS: Final = 10
SEED: Final = 0
MILLION: Final = 1_000_000

log = structlog.get_logger(__name__)


def reasons(model: OnnxModel, vectors: NDArray[np.void], background: NDArray[np.void]) -> list[dict[str, Any]]:
    """For each of ``vectors`` the score of an average of ``background`` and each input's contribution, the strongest
    first, in parts per million of the score: ``{"average", "inputs": [{"input", "value", "contribution"}, …]}``."""
    from shap import maskers
    from shap.explainers import PermutationExplainer

    inputs = model_inputs(vectors, model.inputs)
    masker = maskers.Independent(model_inputs(background, model.inputs), max_samples=BACKGROUND_ROWS)
    explainer = PermutationExplainer(model.score, masker, seed=SEED)
    evaluations = 2 * PERMUTATIONS * len(model.inputs) + 1
    found = explainer(inputs, max_evals=evaluations, silent=True)
    explained = []
    averages = np.broadcast_to(found.base_values, len(inputs))
    for row, contributions, average in zip(inputs, found.values, averages, strict=True):
        strongest = np.argsort(-np.abs(contributions), kind="stable").tolist()
        explained.append(
            {
                "average": round(float(average) * MILLION),
                "inputs": [
                    {
                        "input": model.inputs[position],
                        "value": float(row[position]),
                        "contribution": round(float(contributions[position]) * MILLION),
                    }
                    for position in strongest
                ],
            }
        )
    return explained


def explain_cases(settings: Settings, registry: Registry, limit: int = 100, case_id: int | None = None) -> list[int]:
    """Give the newest ``limit`` cases without reasons theirs, or ``case_id`` alone; the ids of those that got them.

    A case stays without when its score is unknown, its version is gone, or its features are not in Cassandra (yet).
    """
    with psycopg.connect(postgres_conninfo(settings, SINK_ROLE), row_factory=dict_row) as connection:
        cases = connection.execute(
            "SELECT case_id, shard, (day - '1970-01-01'::date) AS day, transaction_id, model_version FROM fraud_cases"
            " WHERE reasons IS NULL AND score IS NOT NULL"
            " AND (%(case)s::numeric IS NULL OR case_id = %(case)s::numeric)"
            " ORDER BY raised_at DESC LIMIT %(limit)s",
            {"case": case_id, "limit": limit},
        ).fetchall()
        together: defaultdict[tuple[int, int, int], list[dict[str, Any]]] = defaultdict(list)
        for case in cases:
            together[case["shard"], case["day"], case["model_version"]].append(case)
        explained: list[int] = []
        for (shard, day, version), some in together.items():
            try:
                model = OnnxModel(registry.exported(registry.version(version)))
            except (NotPromotedError, BadModelError) as error:
                log.warning("no reasons", model_version=version, error=str(error))
                continue
            explained += _explain(connection, settings, model, shard, day, some)
        return explained


def reasons_of_case(settings: Settings, case_id: int) -> dict[str, Any] | None:
    """The reasons that a case has, as `reasons` makes them; None for a case without, or none of that id."""
    with psycopg.connect(postgres_conninfo(settings, SINK_ROLE)) as connection:
        row = connection.execute("SELECT reasons FROM fraud_cases WHERE case_id = %s::numeric", [case_id]).fetchone()
    return row[0] if row is not None else None


def _explain(
    connection: psycopg.Connection[dict[str, Any]],
    settings: Settings,
    model: OnnxModel,
    shard: int,
    day: int,
    cases: list[dict[str, Any]],
) -> list[int]:
    vectors = read_training_set(settings, day, day, 0, [shard]).vectors
    ids = vectors["transaction_id_hi"].astype(object) * 2**64 + vectors["transaction_id_lo"].astype(object)
    place = {int(identity): position for position, identity in enumerate(ids)}
    there = [case for case in cases if int(case["transaction_id"]) in place]
    if not there:
        return []
    rng = np.random.default_rng(SEED)
    background = vectors[rng.permutation(len(vectors))[:BACKGROUND_ROWS]]
    chosen = vectors[[place[int(case["transaction_id"])] for case in there]]
    for case, found in zip(there, reasons(model, chosen, background), strict=True):
        connection.execute("UPDATE fraud_cases SET reasons = %s WHERE case_id = %s", [Jsonb(found), case["case_id"]])
    connection.commit()
    return [int(case["case_id"]) for case in there]
