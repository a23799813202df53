"""Notifications: what customers are to be told, where, and how far each delivery is."""

from alembic import op

revision = "0041_notifications"
down_revision = "0040_card_vault"
branch_labels = None
depends_on = None

# The API may write a signing secret and never read one.
UPGRADE = """
CREATE SCHEMA notifications;
REVOKE ALL ON SCHEMA notifications FROM PUBLIC;

CREATE TABLE notifications.messages (
    id          text        PRIMARY KEY,
    customer    text        NOT NULL,
    kind        text        NOT NULL,
    occurred_at timestamptz NOT NULL,
    data        jsonb       NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX messages_by_customer ON notifications.messages (customer, accepted_at);

CREATE TABLE notifications.endpoints (
    id              text        PRIMARY KEY,
    customer        text        NOT NULL,
    channel         text        NOT NULL CHECK (channel IN ('webhook', 'email', 'sms')),
    address         text        NOT NULL,
    kinds           text[]      NOT NULL DEFAULT '{}',
    secret          text,
    disabled_reason text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    deleted_at      timestamptz,
    CHECK ((secret IS NOT NULL) = (channel = 'webhook'))
);
CREATE UNIQUE INDEX one_endpoint ON notifications.endpoints (customer, channel, address) WHERE deleted_at IS NULL;
COMMENT ON COLUMN notifications.endpoints.kinds IS 'Kinds it is for, as in preferences; empty: all.';
COMMENT ON COLUMN notifications.endpoints.disabled_reason IS 'Not used while set.';

CREATE TABLE notifications.preferences (
    customer   text        PRIMARY KEY,
    channels   jsonb       NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN notifications.preferences.channels IS 'Kind, or its beginning with .*, or * -> array of channels.';

CREATE TABLE notifications.deliveries (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id      text        NOT NULL REFERENCES notifications.messages,
    channel         text        NOT NULL CHECK (channel IN ('webhook', 'email', 'sms', 'websocket')),
    endpoint_id     text        NOT NULL DEFAULT '',
    state           text        NOT NULL CHECK (state IN ('waiting', 'sending', 'delivered', 'dead')),
    attempts        integer     NOT NULL DEFAULT 0,
    schedule_step   integer     NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    lease_until     timestamptz,
    last_error      text        NOT NULL DEFAULT '',
    ended_at        timestamptz,
    UNIQUE (message_id, channel, endpoint_id)
);
CREATE INDEX deliveries_due ON notifications.deliveries (channel, next_attempt_at) WHERE state = 'waiting';
CREATE INDEX deliveries_sending ON notifications.deliveries (channel, endpoint_id) WHERE state = 'sending';
CREATE INDEX deliveries_dead ON notifications.deliveries (channel, id) WHERE state = 'dead';
COMMENT ON COLUMN notifications.deliveries.schedule_step IS 'Place in the retry schedule; a replay starts it again.';
COMMENT ON COLUMN notifications.deliveries.lease_until IS 'A delivery being sent is sent again after this.';

CREATE TABLE notifications.stream_heads (
    customer text   PRIMARY KEY,
    sequence bigint NOT NULL
);
CREATE TABLE notifications.stream (
    customer   text   NOT NULL,
    sequence   bigint NOT NULL,
    message_id text   NOT NULL UNIQUE REFERENCES notifications.messages,
    PRIMARY KEY (customer, sequence)
);
COMMENT ON TABLE notifications.stream IS 'What WebSockets show: per customer from 1 without a gap, in commit order.';

CREATE TABLE notifications.status_events (
    id    bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard integer NOT NULL,
    event jsonb   NOT NULL
);
COMMENT ON TABLE notifications.status_events IS 'On their way to the topic notifications.deliveries.';

GRANT USAGE ON SCHEMA notifications TO streambank_notifier, streambank_api;
GRANT SELECT, INSERT ON notifications.messages, notifications.stream TO streambank_notifier;
GRANT SELECT, INSERT, UPDATE ON notifications.deliveries, notifications.stream_heads TO streambank_notifier;
GRANT SELECT, INSERT, UPDATE, DELETE ON notifications.status_events TO streambank_notifier;
GRANT SELECT ON notifications.preferences TO streambank_notifier;
GRANT SELECT, UPDATE (disabled_reason) ON notifications.endpoints TO streambank_notifier;
GRANT SELECT ON notifications.messages, notifications.deliveries, notifications.stream, notifications.stream_heads
    TO streambank_api;
GRANT SELECT, INSERT, UPDATE ON notifications.preferences TO streambank_api;
GRANT SELECT (id, customer, channel, address, kinds, disabled_reason, created_at, deleted_at), INSERT,
    UPDATE (deleted_at) ON notifications.endpoints TO streambank_api;
"""

DOWNGRADE = "DROP SCHEMA notifications CASCADE;"


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
