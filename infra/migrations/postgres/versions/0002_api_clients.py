"""OAuth2 clients of the api."""

from alembic import op

revision = "0002_api_clients"
down_revision = "0001_ledger"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE api_clients (
    client_id   text        PRIMARY KEY CHECK (length(client_id) BETWEEN 1 AND 128),
    secret_hash text        NOT NULL CHECK (secret_hash LIKE '$argon2id$%'),
    scopes      text[]      NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz
);
COMMENT ON TABLE api_clients IS 'Clients that may ask for tokens; the secret is kept as an argon2id hash only.';
GRANT SELECT ON api_clients TO streambank_api;
"""


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute("DROP TABLE api_clients")
