"""What the ledger was at a point in time, from the entries in Postgres.

A balance at time t is the fold of all entries with a timestamp up to t, as the ledger's invariants say: plain, posting
and voiding transfers at their timestamps, expiries when they fell due. The SQL is one statement, so that it sees one
state of the projection; the API and `streambank ledger balance` use the same.

Times are nanoseconds since the epoch, inclusive. Amounts are integers in the ledger's minor unit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, LiteralString

__all__ = ["BALANCE_AT", "TIMESTAMP_MAX", "balance_of", "parse_time"]

TIMESTAMP_MAX: Final = 2**63 - 1

BALANCE_AT: Final[LiteralString] = """
SELECT a.shard, a.id, a.ledger, a.code, a.timestamp AS opened_at, e.*,
       coalesce((SELECT max(o.sequence) FROM sink_offsets o
                 WHERE o.sink = %(sink)s AND o.topic = %(topic)s AND o.partition = a.shard), 0) AS reflected
FROM accounts a
CROSS JOIN LATERAL (
    SELECT coalesce(sum(pending) FILTER (WHERE debit), 0) AS debits_pending,
           coalesce(sum(posted) FILTER (WHERE debit), 0) AS debits_posted,
           coalesce(sum(pending) FILTER (WHERE NOT debit), 0) AS credits_pending,
           coalesce(sum(posted) FILTER (WHERE NOT debit), 0) AS credits_posted,
           count(*) AS entries, max(last) AS last_entry_at
    FROM (
        -- flags: 2 pending, 4 post_pending_transfer, 8 void_pending_transfer
        SELECT t.debit, t.timestamp AS last,
               CASE WHEN t.flags & 2 <> 0 THEN t.amount
                    WHEN t.flags & 12 <> 0
                    THEN -(SELECT p.amount FROM transfers p WHERE p.shard = t.shard AND p.id = t.pending_id)
                    ELSE 0 END AS pending,
               CASE WHEN t.flags & 10 = 0 THEN t.amount ELSE 0 END AS posted
        FROM (SELECT true AS debit, d.* FROM transfers d
              WHERE d.shard = a.shard AND d.debit_account_id = a.id AND d.timestamp <= %(at)s
              UNION ALL
              SELECT false, c.* FROM transfers c
              WHERE c.shard = a.shard AND c.credit_account_id = a.id AND c.timestamp <= %(at)s) AS t
        UNION ALL
        SELECT side.debit, x.timestamp, -x.amount, 0
        FROM (SELECT true AS debit, d.id FROM transfers d
              WHERE d.shard = a.shard AND d.debit_account_id = a.id AND d.timestamp <= %(at)s AND d.flags & 2 <> 0
                AND d.timeout <> 0
              UNION ALL
              SELECT false, c.id FROM transfers c
              WHERE c.shard = a.shard AND c.credit_account_id = a.id AND c.timestamp <= %(at)s AND c.flags & 2 <> 0
                AND c.timeout <> 0) AS side
        JOIN transfer_expiries x ON x.shard = a.shard AND x.pending_id = side.id AND x.timestamp <= %(at)s
    ) AS effects
) AS e
WHERE a.id = %(id)s AND a.shard = ANY(%(shards)s) AND (%(ledger)s::bigint IS NULL OR a.ledger = %(ledger)s)
  AND a.timestamp <= %(at)s
ORDER BY a.ledger
"""
"""Parameters: sink, topic, id, shards, ledger (or null), at. No row for an account that did not exist at the time."""

_BALANCES: Final = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
_NANOSECONDS: Final = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_FRACTION: Final = re.compile(r"(.*[0-9:])\.([0-9]{1,9})(Z|[+-][0-9]{2}:[0-9]{2})?", re.ASCII)


def balance_of(row: Mapping[str, Any], at: int) -> dict[str, int]:
    """A row of `BALANCE_AT` as plain integers; ``sequence`` is the shard's sequence that the answer reflects."""
    return {
        "account_id": int(row["id"]),
        "ledger": int(row["ledger"]),
        "at": at,
        **{name: int(row[name]) for name in _BALANCES},
        "entries": int(row["entries"]),
        "last_entry_at": int(row["last_entry_at"] or 0),
        "shard": int(row["shard"]),
        "sequence": int(row["reflected"]),
    }


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch from such a number or from RFC 3339, UTC where no zone is given; raises ValueError.

    A date alone is its beginning. Up to nine decimals of a second count.
    """
    if _NANOSECONDS.fullmatch(text):
        value = int(text)
    else:
        nanoseconds = 0
        if found := _FRACTION.fullmatch(text):
            text = found[1] + (found[3] or "")
            nanoseconds = int(found[2].ljust(9, "0"))
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        value = (since.days * 86_400 + since.seconds) * 1_000_000_000 + nanoseconds
    if not 0 <= value <= TIMESTAMP_MAX:
        raise ValueError(f"{text} is not between 1970 and 2262")
    return value
