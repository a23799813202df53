"""Brings the stores' schemas to their newest version; applying twice changes nothing.

Postgres is versioned by alembic (``postgres/versions``), one transaction per migration. Cassandra has numbered CQL
files (``cassandra/NNNN_name.cql``), each recorded in ``schema_migrations`` with a checksum: a file that changed after
it was applied is refused. Both run as the stores' owner; sinks and api have lesser roles (`infra.stores`).
"""

from infra.migrations.cassandra_migrations import migrate_cassandra, pending_cassandra
from infra.migrations.postgres_migrations import downgrade_postgres, migrate_postgres, pending_postgres

__all__ = [
    "downgrade_postgres",
    "migrate_cassandra",
    "migrate_postgres",
    "pending_cassandra",
    "pending_postgres",
]
