"""Totals per account, ledger and code in hourly and daily windows."""

from alembic import op

revision = "0003_ledger_totals"
down_revision = "0002_account_version"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE ledger_totals (
    shard            integer        NOT NULL,
    total_of         text           NOT NULL CHECK (total_of IN ('account', 'ledger', 'code')),
    window_size      text           NOT NULL CHECK (window_size IN ('hour', 'day')),
    window_start     bigint         NOT NULL,
    account_id       numeric(39, 0) NOT NULL,
    ledger           bigint         NOT NULL,
    code             integer        NOT NULL,
    debits           numeric(39, 0) NOT NULL,
    credits          numeric(39, 0) NOT NULL,
    entry_count          bigint         NOT NULL,
    opening_debits   numeric(39, 0) NOT NULL,
    opening_credits  numeric(39, 0) NOT NULL,
    closing_debits   numeric(39, 0) GENERATED ALWAYS AS (opening_debits + debits) STORED,
    closing_credits  numeric(39, 0) GENERATED ALWAYS AS (opening_credits + credits) STORED,
    sequence         bigint         NOT NULL,
    PRIMARY KEY (shard, total_of, account_id, ledger, code, window_size, window_start)
) WITH (fillfactor = 80);
COMMENT ON TABLE ledger_totals IS
    'What was posted per account, ledger or code in an hour or day (UTC), with the posted debits and credits of all '
    'time before and after; kept current, late entries included.';
COMMENT ON COLUMN ledger_totals.window_start IS 'Nanoseconds since the epoch.';
COMMENT ON COLUMN ledger_totals.account_id IS 'Of totals of an account; else 0.';
COMMENT ON COLUMN ledger_totals.code IS 'Of totals of a code; else 0.';
COMMENT ON COLUMN ledger_totals.entry_count IS 'Transfers that posted in the window.';
COMMENT ON COLUMN ledger_totals.sequence IS 'Sequence of the ledger.totals frame that brought the row.';
GRANT SELECT, INSERT, UPDATE ON ledger_totals TO streambank_sink;
GRANT SELECT ON ledger_totals TO streambank_api;
"""

DOWNGRADE = "DROP TABLE ledger_totals;"


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
