"""What ledgers and accounts are called, and which currency a ledger counts."""

from alembic import op

revision = "0050_ledger_metadata"
down_revision = "0010_fraud_cases"
branch_labels = None
depends_on = None

# Not a projection: users write these rows through the API, and no topic has them.
UPGRADE = """
CREATE TABLE ledger_metadata (
    ledger      bigint      PRIMARY KEY CHECK (ledger BETWEEN 0 AND 4294967295),
    name        text        NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    currency    text        CHECK (currency ~ '^[A-Z]{3}$'),
    scale       smallint    NOT NULL CHECK (scale BETWEEN 0 AND 38),
    description text        NOT NULL DEFAULT '' CHECK (length(description) <= 2000),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE ledger_metadata IS 'What ledgers are called and count, as users say.';
COMMENT ON COLUMN ledger_metadata.currency IS 'Alphabetic code of ISO 4217; null for anything else.';
COMMENT ON COLUMN ledger_metadata.scale IS 'Digits after the point: an amount of 1234 is 12.34 at scale 2.';

CREATE TABLE account_metadata (
    ledger     bigint         NOT NULL CHECK (ledger BETWEEN 0 AND 4294967295),
    account_id numeric(39, 0) NOT NULL,
    name       text           NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    attributes jsonb          NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(attributes) = 'object'),
    updated_at timestamptz    NOT NULL DEFAULT now(),
    PRIMARY KEY (ledger, account_id)
);
COMMENT ON TABLE account_metadata IS 'What accounts are called, as users say; the account need not exist yet.';
CREATE INDEX account_metadata_by_name ON account_metadata (ledger, lower(name) text_pattern_ops);

GRANT SELECT, INSERT, UPDATE, DELETE ON ledger_metadata, account_metadata TO streambank_api;
"""

DOWNGRADE = "DROP TABLE account_metadata, ledger_metadata;"


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
