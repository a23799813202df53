"""Indexes to find transfers by what users put into them."""

from alembic import op

revision = "0004_transfer_search"
down_revision = "0003_ledger_totals"
branch_labels = None
depends_on = None

# User data of 0 is "none" and not indexed, so that transfers without it cost nothing.
UPGRADE = """
CREATE INDEX transfers_by_user_data_128 ON transfers (shard, user_data_128, timestamp) WHERE user_data_128 <> 0;
CREATE INDEX transfers_by_user_data_64 ON transfers (shard, user_data_64, timestamp) WHERE user_data_64 <> 0;
CREATE INDEX transfers_by_user_data_32 ON transfers (shard, user_data_32, timestamp) WHERE user_data_32 <> 0;
CREATE INDEX transfers_by_code ON transfers (shard, ledger, code, timestamp);
"""

DOWNGRADE = """
DROP INDEX transfers_by_user_data_128, transfers_by_user_data_64, transfers_by_user_data_32, transfers_by_code;
"""


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
