"""Transfers across ledgers: how far each has come, and how it ended."""

from alembic import op

revision = "0052_cross_transfers"
down_revision = "0051_account_ibans"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE cross_transfers (
    shard                      integer        NOT NULL,
    id                         numeric(39, 0) NOT NULL,
    phase                      text           NOT NULL,
    reason                     text           NOT NULL,
    debit_account_id           numeric(39, 0) NOT NULL,
    debit_ledger               bigint         NOT NULL,
    credit_account_id          numeric(39, 0) NOT NULL,
    credit_ledger              bigint         NOT NULL,
    debit_clearing_account_id  numeric(39, 0) NOT NULL,
    credit_clearing_account_id numeric(39, 0) NOT NULL,
    amount                     numeric(39, 0) NOT NULL,
    credit_amount              numeric(39, 0) NOT NULL,
    code                       integer        NOT NULL,
    user_data_128              numeric(39, 0) NOT NULL,
    requested_at               bigint         NOT NULL,
    changed_at                 bigint         NOT NULL,
    sequence                   bigint         NOT NULL,
    PRIMARY KEY (shard, id)
) WITH (fillfactor = 80);
CREATE INDEX cross_transfers_unfinished ON cross_transfers (phase, requested_at)
    WHERE phase NOT IN ('completed', 'failed', 'refunded');
COMMENT ON TABLE cross_transfers IS 'Every transfer across ledgers as its last event left it.';
COMMENT ON COLUMN cross_transfers.requested_at IS 'UTC microseconds, as changed_at: the job''s clock then.';
COMMENT ON COLUMN cross_transfers.sequence IS 'Sequence of the ledger.cross-events frame that brought the row.';

GRANT SELECT, INSERT, UPDATE ON cross_transfers TO streambank_sink;
GRANT SELECT ON cross_transfers TO streambank_api;
"""

DOWNGRADE = "DROP TABLE cross_transfers;"


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
