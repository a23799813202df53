"""How to reach the stores, and as whom.

Roles have least privilege: `SINK_ROLE` writes the projections, `API_ROLE` reads them, `VAULT_ROLE` adds and reads
encrypted cards, `VAULT_KEEPER_ROLE` changes their keys; the owner (``STREAMBANK_POSTGRES_USER``) only migrates. The
local stack trusts connections on loopback. Elsewhere passwords come from the environment (see
`ROLE_PASSWORD_VARIABLES`; for the owner ``PGPASSWORD``; ``STREAMBANK_CASSANDRA_USER`` and
``STREAMBANK_CASSANDRA_PASSWORD``; ``STREAMBANK_VALKEY_USER`` and ``STREAMBANK_VALKEY_PASSWORD``) and never from a file
of the project; they are put in no log. TLS to Postgres is libpq's own business: ``PGSSLMODE``, ``PGSSLROOTCERT``.
"""

from __future__ import annotations

import os
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode, urlsplit

from psycopg.conninfo import make_conninfo

from infra.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "API_ROLE",
    "NOTIFIER_ROLE",
    "ROLE_PASSWORD_VARIABLES",
    "SINK_ROLE",
    "VAULT_KEEPER_ROLE",
    "VAULT_ROLE",
    "cassandra_cluster",
    "cassandra_session",
    "postgres_conninfo",
    "valkey_conninfo",
]

SINK_ROLE: Final = "streambank_sink"
API_ROLE: Final = "streambank_api"
VAULT_ROLE: Final = "streambank_vault"
VAULT_KEEPER_ROLE: Final = "streambank_vault_keeper"
NOTIFIER_ROLE: Final = "streambank_notifier"
ROLE_PASSWORD_VARIABLES: Final = {
    SINK_ROLE: "STREAMBANK_POSTGRES_SINK_PASSWORD",
    API_ROLE: "STREAMBANK_POSTGRES_API_PASSWORD",
    NOTIFIER_ROLE: "STREAMBANK_POSTGRES_NOTIFIER_PASSWORD",
    VAULT_ROLE: "STREAMBANK_POSTGRES_VAULT_PASSWORD",
    VAULT_KEEPER_ROLE: "STREAMBANK_POSTGRES_VAULT_KEEPER_PASSWORD",
}
CONNECT_TIMEOUT_S: Final = 5


def postgres_conninfo(
    settings: Settings, role: str | None = None, database: str | None = None, *, replica: bool = False
) -> str:
    """libpq connection string for ``role`` (default: the owner), with the role's password if the environment has one.

    Holds a secret where passwords are used: pass it to psycopg, never to a log.
    """
    password = os.environ.get(ROLE_PASSWORD_VARIABLES.get(role or "", ""), "")
    return make_conninfo(
        host=(settings.postgres_replica_host if replica else settings.postgres_host) or settings.host,
        port=settings.postgres_replica_port if replica else settings.postgres_port,
        dbname=database or settings.postgres_database,
        user=role or settings.postgres_user,
        connect_timeout=CONNECT_TIMEOUT_S,
        # A dead server must be noticed within seconds, not after TCP's minutes.
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=10_000,
        **({"password": password} if password else {}),
    )


def valkey_conninfo(settings: Settings) -> str:
    """URL for the Redis clients, with user and password if the environment has them: for clients, never for a log."""
    user, password = (os.environ.get(f"STREAMBANK_VALKEY_{name}", "") for name in ("USER", "PASSWORD"))
    secret = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
    where = urlsplit(settings.valkey_url)
    trusted = "" if settings.valkey_ca_file is None else urlencode({"ssl_ca_certs": settings.valkey_ca_file})
    return where._replace(netloc=f"{secret}{where.netloc}", query=trusted).geturl()


def cassandra_cluster(settings: Settings) -> Any:
    """A `cassandra.cluster.Cluster`, token-aware within the first data centre met, not yet connected."""
    from cassandra.auth import PlainTextAuthProvider
    from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
    from cassandra.policies import (
        DCAwareRoundRobinPolicy,
        ExponentialReconnectionPolicy,
        TokenAwarePolicy,
    )
    from cassandra.query import ConsistencyLevel

    user = os.environ.get("STREAMBANK_CASSANDRA_USER", "")
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy()),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
        request_timeout=10.0,
    )
    authority = settings.cassandra_ca_file
    return Cluster(
        [host.strip() for host in (settings.cassandra_hosts or settings.host).split(",")],
        port=settings.cassandra_port,
        ssl_context=None if authority is None else ssl.create_default_context(cafile=str(authority)),
        auth_provider=(
            PlainTextAuthProvider(user, os.environ.get("STREAMBANK_CASSANDRA_PASSWORD", "")) if user else None
        ),
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        protocol_version=5,
        connect_timeout=CONNECT_TIMEOUT_S,
        control_connection_timeout=10.0,  # the default of 2 s is short for a busy server
        reconnection_policy=ExponentialReconnectionPolicy(base_delay=0.5, max_delay=10.0),
    )


@contextmanager
def cassandra_session(settings: Settings, *, keyspace: bool = True) -> Iterator[Any]:
    """A connected session, closed with its cluster on exit. Raises `cassandra.cluster.NoHostAvailable`."""
    cluster = cassandra_cluster(settings)
    try:
        yield cluster.connect(settings.cassandra_keyspace if keyspace else None)
    finally:
        cluster.shutdown()
