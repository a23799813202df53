"""Accounts by the IBAN that their metadata names: how payment messages of ISO 20022 call them."""

from alembic import op

revision = "0051_account_ibans"
down_revision = "0050_ledger_metadata"
branch_labels = None
depends_on = None

# Not unique: metadata is what users say, and two who say the same must not keep each other from saying more.
UPGRADE = """
CREATE INDEX account_metadata_by_iban ON account_metadata ((attributes->>'iban'), ledger)
    WHERE attributes->>'iban' IS NOT NULL;
"""

DOWNGRADE = "DROP INDEX account_metadata_by_iban;"


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
