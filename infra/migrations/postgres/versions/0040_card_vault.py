"""The card vault: encrypted card numbers, their keys (wrapped), and who asked for a number."""

from alembic import op

revision = "0040_card_vault"
down_revision = "0030_payments"
branch_labels = None
depends_on = None

# A schema of its own, which no other role can look into. The API's vault role adds cards and audit entries and changes
# neither; only the keeper (the command line) may move a card to another key.
UPGRADE = """
CREATE SCHEMA card_vault;
REVOKE ALL ON SCHEMA card_vault FROM PUBLIC;

CREATE TABLE card_vault.data_keys (
    id            text        PRIMARY KEY,
    purpose       text        NOT NULL CHECK (purpose IN ('encryption', 'fingerprint')),
    state         text        NOT NULL CHECK (state IN ('active', 'retired', 'destroyed')),
    master_key_id text        NOT NULL,
    wrapped       bytea,
    created_at    timestamptz NOT NULL DEFAULT now(),
    retired_at    timestamptz,
    destroyed_at  timestamptz,
    CHECK ((wrapped IS NULL) = (state = 'destroyed'))
);
CREATE UNIQUE INDEX one_active_key ON card_vault.data_keys (purpose) WHERE state = 'active';
COMMENT ON COLUMN card_vault.data_keys.wrapped IS 'AES-256-GCM under the master key; null once destroyed.';

CREATE TABLE card_vault.cards (
    token              text        PRIMARY KEY CHECK (token ~ '^card_[a-z2-7]{26}$'),
    brand              text        NOT NULL,
    last_four          char(4)     NOT NULL,
    expiry_year        smallint    NOT NULL,
    expiry_month       smallint    NOT NULL CHECK (expiry_month BETWEEN 1 AND 12),
    data_key_id        text        NOT NULL REFERENCES card_vault.data_keys,
    nonce              bytea       NOT NULL CHECK (length(nonce) = 12),
    ciphertext         bytea       NOT NULL,
    fingerprint_key_id text        NOT NULL REFERENCES card_vault.data_keys,
    fingerprint        bytea       NOT NULL CHECK (length(fingerprint) = 32),
    created_at         timestamptz NOT NULL DEFAULT now(),
    encrypted_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (fingerprint, expiry_year, expiry_month)
);
CREATE INDEX cards_by_data_key ON card_vault.cards (data_key_id, token);
CREATE INDEX cards_by_fingerprint_key ON card_vault.cards (fingerprint_key_id, token);
COMMENT ON COLUMN card_vault.cards.fingerprint IS 'HMAC-SHA-256 of the number; never leaves the vault.';

CREATE TABLE card_vault.audit (
    id        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    action    text        NOT NULL,
    outcome   text        NOT NULL,
    token     text,
    client_id text        NOT NULL,
    purpose   text        NOT NULL DEFAULT '',
    trace_id  text        NOT NULL DEFAULT ''
);
CREATE INDEX audit_by_token ON card_vault.audit (token, id);
CREATE FUNCTION card_vault.refuse_change() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'card_vault.audit is append-only'; END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON card_vault.audit
    FOR EACH STATEMENT EXECUTE FUNCTION card_vault.refuse_change();

GRANT USAGE ON SCHEMA card_vault TO streambank_vault, streambank_vault_keeper;
GRANT SELECT, INSERT ON card_vault.data_keys TO streambank_vault, streambank_vault_keeper;
GRANT UPDATE ON card_vault.data_keys TO streambank_vault_keeper;
GRANT SELECT, INSERT ON card_vault.cards TO streambank_vault;
GRANT SELECT, UPDATE (data_key_id, nonce, ciphertext, fingerprint_key_id, fingerprint, encrypted_at)
    ON card_vault.cards TO streambank_vault_keeper;
GRANT INSERT ON card_vault.audit TO streambank_vault, streambank_vault_keeper;
GRANT SELECT ON card_vault.audit TO streambank_vault_keeper;
"""

DOWNGRADE = "DROP SCHEMA card_vault CASCADE;"


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
