"""Fraud alerts and the queue of cases that investigators work through."""

from alembic import op

revision = "0010_fraud_cases"
down_revision = "0004_transfer_search"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE fraud_cases (
    case_id            numeric(39, 0) PRIMARY KEY,
    shard              integer        NOT NULL,
    customer_id        bigint         NOT NULL,
    day                date           NOT NULL,
    status             text           NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'assigned', 'closed')),
    assignee           text,
    outcome            text           CHECK (outcome IN ('fraud', 'genuine')),
    raised_at          bigint         NOT NULL,
    closed_at          bigint,
    transaction_id     numeric(39, 0) NOT NULL,
    event_time         bigint         NOT NULL,
    terminal_id        bigint         NOT NULL,
    amount             bigint         NOT NULL,
    decision           text           NOT NULL CHECK (decision IN ('review', 'block')),
    score              integer,
    model_version      bigint         NOT NULL,
    rule_set_version   bigint         NOT NULL,
    reason_codes       text           NOT NULL,
    alert_published_at timestamptz,
    reasons            jsonb,
    CHECK ((status = 'closed') = (outcome IS NOT NULL)),
    UNIQUE (shard, customer_id, day)
);
CREATE INDEX fraud_cases_by_status ON fraud_cases (status, raised_at DESC, case_id DESC);
CREATE INDEX fraud_cases_by_assignee ON fraud_cases (assignee, raised_at DESC, case_id DESC) WHERE status <> 'closed';
CREATE INDEX fraud_cases_unpublished ON fraud_cases (raised_at) WHERE alert_published_at IS NULL;
COMMENT ON TABLE fraud_cases IS
    'One case per card and UTC day; the transaction columns are those of the one that raised the alert.';
COMMENT ON COLUMN fraud_cases.raised_at IS 'UTC microseconds, as event_time and closed_at.';
COMMENT ON COLUMN fraud_cases.amount IS 'Cents.';
COMMENT ON COLUMN fraud_cases.score IS 'Parts per million; null if unknown.';
COMMENT ON COLUMN fraud_cases.alert_published_at IS 'When the alert was on fraud.alerts; null until then.';
COMMENT ON COLUMN fraud_cases.reasons IS 'What the score comes from, by input; made after the decision.';

CREATE TABLE fraud_case_transactions (
    shard            integer        NOT NULL,
    transaction_id   numeric(39, 0) NOT NULL,
    case_id          numeric(39, 0) NOT NULL REFERENCES fraud_cases,
    event_time       bigint         NOT NULL,
    terminal_id      bigint         NOT NULL,
    amount           bigint         NOT NULL,
    decision         text           NOT NULL,
    score            integer,
    model_version    bigint         NOT NULL,
    rule_set_version bigint         NOT NULL,
    reason_codes     text           NOT NULL,
    rescored         boolean        NOT NULL,
    PRIMARY KEY (shard, transaction_id)
);
CREATE INDEX fraud_case_transactions_by_case ON fraud_case_transactions (case_id);
COMMENT ON TABLE fraud_case_transactions IS 'Transactions that were reviewed or blocked, with their newest decision.';

CREATE TABLE fraud_case_notes (
    case_id    numeric(39, 0) NOT NULL REFERENCES fraud_cases,
    key        text           NOT NULL,
    author     text           NOT NULL,
    text       text           NOT NULL,
    written_at timestamptz    NOT NULL DEFAULT now(),
    PRIMARY KEY (case_id, key)
);
COMMENT ON COLUMN fraud_case_notes.key IS 'Idempotency key of the request that wrote it.';

GRANT SELECT, INSERT, UPDATE ON fraud_cases, fraud_case_transactions TO streambank_sink;
GRANT SELECT ON fraud_cases, fraud_case_transactions, fraud_case_notes TO streambank_api;
GRANT UPDATE (status, assignee, outcome, closed_at) ON fraud_cases TO streambank_api;
GRANT INSERT ON fraud_case_notes TO streambank_api;
"""

DOWNGRADE = "DROP TABLE fraud_case_notes, fraud_case_transactions, fraud_cases;"


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
