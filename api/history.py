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

__all__ = ["BALANCE_AT", "SEARCH", "STATEMENT", "TIMESTAMP_MAX", "balance_of", "parse_time"]

TIMESTAMP_MAX: Final = 2**63 - 1

_EFFECTS: Final[LiteralString] = """
        -- flags: 2 pending, 4 post_pending_transfer, 8 void_pending_transfer
        SELECT t.debit, 'transfer' AS entry, t.id AS transfer_id, t.timestamp, t.amount, t.code, t.flags, t.pending_id,
               t.user_data_128, t.user_data_64, t.user_data_32, t.sequence,
               CASE WHEN t.debit THEN t.credit_account_id ELSE t.debit_account_id END AS counterparty_account_id,
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
        SELECT side.debit, 'expiry', x.pending_id, x.timestamp, x.amount, x.code, 0, x.pending_id, 0, 0, 0, x.sequence,
               CASE WHEN side.debit THEN x.credit_account_id ELSE x.debit_account_id END, -x.amount, 0
        FROM (SELECT true AS debit, d.id FROM transfers d
              WHERE d.shard = a.shard AND d.debit_account_id = a.id AND d.timestamp <= %(at)s AND d.flags & 2 <> 0
                AND d.timeout <> 0
              UNION ALL
              SELECT false, c.id FROM transfers c
              WHERE c.shard = a.shard AND c.credit_account_id = a.id AND c.timestamp <= %(at)s AND c.flags & 2 <> 0
                AND c.timeout <> 0) AS side
        JOIN transfer_expiries x ON x.shard = a.shard AND x.pending_id = side.id AND x.timestamp <= %(at)s
"""
"""What each entry of account ``a`` up to ``at`` does to its balances."""

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
           count(*) AS entries, max(timestamp) AS last_entry_at
    FROM (:effects) AS effects
) AS e
WHERE a.id = %(id)s AND a.shard = ANY(%(shards)s) AND (%(ledger)s::bigint IS NULL OR a.ledger = %(ledger)s)
  AND a.timestamp <= %(at)s
ORDER BY a.ledger
""".replace(":effects", _EFFECTS)
"""Parameters: sink, topic, id, shards, ledger (or null), at. No row for an account that did not exist at the time."""

STATEMENT: Final[LiteralString] = """
SELECT e.* FROM accounts a
CROSS JOIN LATERAL (
    SELECT timestamp, entry, transfer_id, CASE WHEN debit THEN 'debit' ELSE 'credit' END AS direction,
           counterparty_account_id, amount, code, flags, pending_id, user_data_128, user_data_64, user_data_32,
           coalesce(sum(pending) FILTER (WHERE debit) OVER running, 0) AS debits_pending,
           coalesce(sum(posted) FILTER (WHERE debit) OVER running, 0) AS debits_posted,
           coalesce(sum(pending) FILTER (WHERE NOT debit) OVER running, 0) AS credits_pending,
           coalesce(sum(posted) FILTER (WHERE NOT debit) OVER running, 0) AS credits_posted,
           sequence
    FROM (:effects) AS effects
    WINDOW running AS (ORDER BY timestamp, entry DESC, transfer_id ROWS UNBOUNDED PRECEDING)
) AS e
WHERE a.id = %(id)s AND a.shard = ANY(%(shards)s) AND (%(ledger)s::bigint IS NULL OR a.ledger = %(ledger)s)
  AND e.timestamp >= %(since)s
ORDER BY e.timestamp, e.entry DESC, e.transfer_id
""".replace(":effects", _EFFECTS)
"""The entries from ``since`` to ``at``, oldest first, each with the running balances after it, which begin with the
account. Parameters as of `BALANCE_AT`, and since; the account must be in one ledger only, or ledger be given."""

SEARCH: Final[LiteralString] = """
SELECT * FROM transfers
WHERE shard = %(shard)s AND ledger = %(ledger)s
  AND (%(code)s::integer IS NULL OR code = %(code)s)
  AND (%(user_data_128)s::numeric IS NULL OR (user_data_128 = %(user_data_128)s AND user_data_128 <> 0))
  AND (%(user_data_64)s::numeric IS NULL OR (user_data_64 = %(user_data_64)s AND user_data_64 <> 0))
  AND (%(user_data_32)s::bigint IS NULL OR (user_data_32 = %(user_data_32)s AND user_data_32 <> 0))
  AND timestamp BETWEEN %(since)s AND %(until)s
ORDER BY timestamp DESC
LIMIT %(limit)s
"""
"""Transfers of a ledger by code and user data, newest first. Timestamps are unique in a shard: the next page ends
before the last one's last. Executed unprepared, so that only the conditions given are planned for."""

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
