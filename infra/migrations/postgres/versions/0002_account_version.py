"""A version on accounts, for writers that compare and set."""

from alembic import op

revision = "0002_account_version"
down_revision = "0001_ledger"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE accounts ADD COLUMN version bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN accounts.version IS
    'Counts the changes of the row; says nothing about the ledger, only that two writers met.';
"""

DOWNGRADE = "ALTER TABLE accounts DROP COLUMN version;"


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
