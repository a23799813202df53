"""Payments: current state, timeline, daily totals; the API's requests and its audit log."""

from alembic import op

revision = "0030_payments"
down_revision = "0010_fraud_cases"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE payments (
    shard                integer        NOT NULL,
    payment_id           numeric(39, 0) NOT NULL,
    version              bigint         NOT NULL,
    status               text           NOT NULL,
    reason               text           NOT NULL,
    iso_status           text           NOT NULL,
    iso_reason           text           NOT NULL,
    payer_account_id     numeric(39, 0) NOT NULL,
    payee_account_id     numeric(39, 0) NOT NULL,
    ledger               bigint         NOT NULL,
    currency             text           NOT NULL,
    amount               bigint         NOT NULL,
    held                 bigint         NOT NULL,
    captured             bigint         NOT NULL,
    released             bigint         NOT NULL,
    refunded             bigint         NOT NULL,
    capture              text           NOT NULL,
    requested_at         bigint         NOT NULL,
    execute_at           bigint         NOT NULL,
    original_payment_id  numeric(39, 0) NOT NULL,
    end_to_end_id        text           NOT NULL,
    reference            text           NOT NULL,
    changed_at           bigint         NOT NULL,
    sequence             bigint         NOT NULL,
    PRIMARY KEY (shard, payment_id)
) WITH (fillfactor = 80);
CREATE INDEX payments_by_id ON payments (payment_id);
CREATE INDEX payments_by_payer ON payments (payer_account_id, requested_at DESC, payment_id DESC);
CREATE INDEX payments_by_payee ON payments (payee_account_id, requested_at DESC, payment_id DESC);
COMMENT ON TABLE payments IS 'Every payment as its last event left it.';
COMMENT ON COLUMN payments.requested_at IS 'UTC microseconds, as all times of this table.';
COMMENT ON COLUMN payments.sequence IS 'Sequence of the payments.events frame that brought the row.';

CREATE TABLE payment_events (
    shard            integer        NOT NULL,
    payment_id       numeric(39, 0) NOT NULL,
    version          bigint         NOT NULL,
    at               bigint         NOT NULL,
    cause            text           NOT NULL,
    previous_status  text           NOT NULL,
    status           text           NOT NULL,
    reason           text           NOT NULL,
    iso_status       text           NOT NULL,
    iso_reason       text           NOT NULL,
    action_amount    bigint         NOT NULL,
    sequence         bigint         NOT NULL,
    PRIMARY KEY (shard, payment_id, version)
);
COMMENT ON TABLE payment_events IS 'The timeline of every payment; append-only.';

CREATE TABLE payment_totals (
    day              date    NOT NULL,
    ledger           bigint  NOT NULL,
    currency         text    NOT NULL,
    created          bigint  NOT NULL,
    completed        bigint  NOT NULL,
    ended            bigint  NOT NULL,
    captured_amount  numeric NOT NULL,
    refunded_amount  numeric NOT NULL,
    PRIMARY KEY (day, ledger, currency)
);
COMMENT ON TABLE payment_totals IS 'Payments by the UTC day at which they were requested.';
COMMENT ON COLUMN payment_totals.ended IS 'Final without any money moved.';

CREATE TABLE payment_requests (
    tenant           text        NOT NULL,
    endpoint         text        NOT NULL,
    key              text        NOT NULL,
    fingerprint      text        NOT NULL,
    commands         jsonb       NOT NULL,
    locked_until     timestamptz NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    answer_status    integer,
    answer_body      bytea,
    answer_headers   jsonb,
    PRIMARY KEY (tenant, endpoint, key)
);
COMMENT ON TABLE payment_requests IS
    'Every request that changes payments, by its idempotency key, with the commands it became and its answer.';

CREATE TABLE payment_audit (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    tenant      text        NOT NULL,
    endpoint    text        NOT NULL,
    key         text        NOT NULL,
    payment_ids numeric[]   NOT NULL,
    trace_id    text        NOT NULL,
    remote      text        NOT NULL
);
CREATE INDEX payment_audit_by_tenant ON payment_audit (tenant, at);
COMMENT ON TABLE payment_audit IS 'Who asked for what, written with the request; append-only.';

GRANT SELECT, INSERT, UPDATE ON payments, payment_totals TO streambank_sink;
GRANT SELECT, INSERT ON payment_events TO streambank_sink;
GRANT SELECT ON payments, payment_events, payment_totals TO streambank_api;
GRANT SELECT, INSERT, UPDATE ON payment_requests TO streambank_api;
GRANT SELECT, INSERT ON payment_audit TO streambank_api;
"""

DOWNGRADE = """
DROP TABLE payment_audit;
DROP TABLE payment_requests;
DROP TABLE payment_totals;
DROP TABLE payment_events;
DROP TABLE payments;
"""


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
