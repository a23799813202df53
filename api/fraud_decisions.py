"""What was decided about a card transaction: its decisions by its id, from Cassandra.

The rows are those of the sinks `cassandra-fraud-decisions` and `cassandra-fraud-rescores`, which follow the decisions
by some milliseconds. A transaction has one decision, and a second one where the first had no score.
"""

from __future__ import annotations

from typing import Any, Final

from api.problems import Problem
from api.queries import Queries, json_integer
from pipelines.catalogue import FRAUD_DECISIONS
from pipelines.codec import codec_of

__all__ = ["DECISIONS_PATH", "READ", "decisions_of"]

READ: Final = "fraud:read"
DECISIONS_PATH: Final = "/v1/fraud-decisions/{id}"

_FIELDS: Final = codec_of(FRAUD_DECISIONS.name).event_type("Decision").fields
_NAMES: Final = tuple(field.name for field in _FIELDS)
_NULLABLE: Final = frozenset(field.name for field in _FIELDS if field.nullable)
"""Scores, which Cassandra has as -1 where there is none."""
_SELECT: Final = f"SELECT shard, {', '.join(_NAMES)} FROM fraud_decisions WHERE transaction_id = ?"  # noqa: S608 - of the schema


async def decisions_of(queries: Queries, portfolio: int, transaction_id: int) -> dict[str, Any]:
    """The transaction's decisions as `Decision` events, the first one first. Raises `Problem` 404 or 503."""
    rows = await queries.history(_SELECT, (transaction_id,))
    found = sorted((row for row in rows if row.shard == portfolio), key=lambda row: row.rescored)
    if not found:
        raise Problem(
            "not-found", f"Portfolio {portfolio} has no decision of {transaction_id}, or it is not visible yet."
        )
    return {
        "transaction_id": json_integer(transaction_id),
        "portfolio": portfolio,
        "decisions": [{"type": "Decision", **_decision(row._asdict())} for row in found],
    }


def _decision(row: dict[str, Any]) -> dict[str, Any]:
    decision = {name: json_integer(row[name]) if isinstance(row[name], int) else row[name] for name in _NAMES}
    decision["rescored"] = bool(row["rescored"])
    return decision | {name: None for name in _NULLABLE if row[name] < 0}
