"""Fixtures of the real servers; a server starts when the first test asks for it.

``environment`` gives a test its own names (topics, database, keyspace, Valkey database) on the servers among its
arguments: ``def test_x(kafka, postgres, environment)``. A module that wants to share names among its tests defines its
own: ``@pytest.fixture(scope="module") def environment(stack): return stack.environment("kafka", "postgres")``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.settings import Settings
from infra.stack.cassandra import Cassandra
from infra.stack.flink import Flink
from infra.stack.kafka import Kafka
from infra.stack.postgres import Postgres
from infra.stack.registry import Registry
from infra.stack.valkey import Valkey
from tests.support.stack import SERVER_TYPES, PrivateStack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateStack]:
    private = PrivateStack(tmp_path_factory.mktemp("stack"))
    try:
        yield private
    finally:
        private.stop()


@pytest.fixture
def kafka(stack: PrivateStack) -> Kafka:
    return stack.get(Kafka)


@pytest.fixture
def registry(stack: PrivateStack) -> Registry:
    return stack.get(Registry)


@pytest.fixture
def postgres(stack: PrivateStack) -> Postgres:
    return stack.get(Postgres)


@pytest.fixture
def cassandra(stack: PrivateStack) -> Cassandra:
    return stack.get(Cassandra)


@pytest.fixture
def valkey(stack: PrivateStack) -> Valkey:
    return stack.get(Valkey)


@pytest.fixture
def flink(stack: PrivateStack) -> Flink:
    return stack.get(Flink)


@pytest.fixture
def environment(stack: PrivateStack, request: pytest.FixtureRequest) -> Settings:
    asked = set(request.fixturenames)
    return stack.environment(*(kind.name for kind in SERVER_TYPES if kind.name in asked))
