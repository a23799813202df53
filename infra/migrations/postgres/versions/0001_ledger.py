"""Ledger projections (accounts, transfers), the sinks' positions and the dead letters already handled."""

from alembic import op

revision = "0001_ledger"
down_revision = None
branch_labels = None
depends_on = None

# No foreign keys between transfers and accounts: one sink writes both, in the ledger's order, in one transaction per
# batch, and checks that each balance change met its account; a key would cost two look-ups per row to say the same.
UPGRADE = """
CREATE TABLE accounts (
    shard             integer        NOT NULL,
    id                numeric(39, 0) NOT NULL,
    ledger            bigint         NOT NULL,
    code              integer        NOT NULL,
    flags             integer        NOT NULL,
    user_data_128     numeric(39, 0) NOT NULL,
    user_data_64      numeric(20, 0) NOT NULL,
    user_data_32      bigint         NOT NULL,
    debits_pending    numeric(39, 0) NOT NULL DEFAULT 0,
    debits_posted     numeric(39, 0) NOT NULL DEFAULT 0,
    credits_pending   numeric(39, 0) NOT NULL DEFAULT 0,
    credits_posted    numeric(39, 0) NOT NULL DEFAULT 0,
    closed            boolean        GENERATED ALWAYS AS ((flags & 32) <> 0) STORED,
    timestamp         bigint         NOT NULL,
    sequence          bigint         NOT NULL,
    event_index       integer        NOT NULL,
    PRIMARY KEY (shard, id),
    CHECK (debits_pending >= 0 AND debits_posted >= 0 AND credits_pending >= 0 AND credits_posted >= 0)
) WITH (fillfactor = 80);
COMMENT ON TABLE accounts IS 'Accounts with their balances after the last transfer applied.';
COMMENT ON COLUMN accounts.id IS 'u128, unique within the shard.';
COMMENT ON COLUMN accounts.flags IS
    'Bits: 1 linked, 2 debits_must_not_exceed_credits, 4 credits_must_not_exceed_debits, 8 history, 16 '
    'imported, 32 closed.';
COMMENT ON COLUMN accounts.timestamp IS 'Creation, nanoseconds since the epoch.';
COMMENT ON COLUMN accounts.sequence IS 'Sequence of the ledger.events frame that last changed the row.';
COMMENT ON COLUMN accounts.event_index IS 'Position in that frame of the event that last changed the row.';

CREATE TABLE transfers (
    shard             integer        NOT NULL,
    id                numeric(39, 0) NOT NULL,
    debit_account_id  numeric(39, 0) NOT NULL,
    credit_account_id numeric(39, 0) NOT NULL,
    amount            numeric(39, 0) NOT NULL,
    pending_id        numeric(39, 0) NOT NULL,
    user_data_128     numeric(39, 0) NOT NULL,
    user_data_64      numeric(20, 0) NOT NULL,
    user_data_32      bigint         NOT NULL,
    timeout           bigint         NOT NULL,
    ledger            bigint         NOT NULL,
    code              integer        NOT NULL,
    flags             integer        NOT NULL,
    timestamp         bigint         NOT NULL,
    sequence          bigint         NOT NULL,
    PRIMARY KEY (shard, id)
);
COMMENT ON TABLE transfers IS 'Every transfer applied, append-only.';
COMMENT ON COLUMN transfers.flags IS
    'Bits: 1 linked, 2 pending, 4 post_pending_transfer, 8 void_pending_transfer, 16 balancing_debit, '
    '32 balancing_credit, 64 closing_debit, 128 closing_credit, 256 imported.';
COMMENT ON COLUMN transfers.timestamp IS 'Nanoseconds since the epoch; unique and increasing within the shard.';
COMMENT ON COLUMN transfers.sequence IS 'Sequence of the ledger.events frame that brought the row.';
CREATE INDEX transfers_by_debit_account ON transfers (shard, debit_account_id, timestamp);
CREATE INDEX transfers_by_credit_account ON transfers (shard, credit_account_id, timestamp);
-- Rows arrive in the order of their timestamps, so a block range index finds a time span at almost no cost.
CREATE INDEX transfers_by_timestamp ON transfers USING brin (timestamp) WITH (autosummarize = on);

CREATE TABLE transfer_expiries (
    shard             integer        NOT NULL,
    pending_id        numeric(39, 0) NOT NULL,
    debit_account_id  numeric(39, 0) NOT NULL,
    credit_account_id numeric(39, 0) NOT NULL,
    amount            numeric(39, 0) NOT NULL,
    ledger            bigint         NOT NULL,
    code              integer        NOT NULL,
    timestamp         bigint         NOT NULL,
    sequence          bigint         NOT NULL,
    PRIMARY KEY (shard, pending_id)
);
COMMENT ON TABLE transfer_expiries IS 'Pending transfers that reached their timeout, append-only.';
COMMENT ON COLUMN transfer_expiries.amount IS 'Amount released from the pending balances.';

CREATE TABLE sink_offsets (
    sink               text        NOT NULL,
    topic              text        NOT NULL,
    partition          integer     NOT NULL,
    next_offset        bigint      NOT NULL DEFAULT 0,
    sequence           bigint      NOT NULL DEFAULT 0,
    unreadable_records bigint      NOT NULL DEFAULT 0,
    updated_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, topic, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE sink_offsets IS
    'How far each sink has applied each partition; written in the transaction of the effects.';
COMMENT ON COLUMN sink_offsets.next_offset IS 'Offset of the next record to apply.';
COMMENT ON COLUMN sink_offsets.sequence IS 'Sequence of the last readable frame applied or set aside.';
COMMENT ON COLUMN sink_offsets.unreadable_records IS
    'Records set aside as unreadable since that frame: each may hide one sequence.';

CREATE TABLE dead_letters_handled (
    topic      text        NOT NULL,
    partition  integer     NOT NULL,
    "offset"   bigint      NOT NULL,
    index      integer     NOT NULL,
    action     text        NOT NULL CHECK (action IN ('replayed', 'dropped')),
    handled_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition, "offset", index)
);
COMMENT ON TABLE dead_letters_handled IS
    'Dead letters that an operator replayed or dropped, by their place in the dead-letter topic.';

GRANT USAGE ON SCHEMA public TO streambank_sink, streambank_api;
GRANT SELECT, INSERT, UPDATE ON accounts, sink_offsets TO streambank_sink;
GRANT SELECT, INSERT ON transfers, transfer_expiries TO streambank_sink;
GRANT SELECT ON accounts, transfers, transfer_expiries, sink_offsets TO streambank_api;
GRANT SELECT, INSERT ON dead_letters_handled TO streambank_sink;
"""

DOWNGRADE = "DROP TABLE dead_letters_handled, sink_offsets, transfer_expiries, transfers, accounts;"


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
