"""Fixtures of the real servers; a server starts when the first test asks for it.

``environment`` gives a test its own names (topics, database, keyspace, Valkey database) on the servers among its
arguments: ``def test_x(kafka, postgres, environment)``. A module that wants to share names among its tests defines its
own: ``@pytest.fixture(scope="module") def environment(stack): return stack.environment("kafka", "postgres")``.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from infra.settings import Settings
from infra.stack.cassandra import Cassandra
from infra.stack.flink import Flink
from infra.stack.kafka import Kafka
from infra.stack.postgres import Postgres
from infra.stack.registry import Registry
from infra.stack.valkey import Valkey
from tests.support.stack import SERVER_TYPES, PrivateStack

# No deadline per example: the first one pays for compiling, and machines are noisy. In CI a run repeats exactly.
hypothesis.settings.register_profile("streambank", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("streambank")

STACK = pytest.StashKey[PrivateStack]()


# A run in the background of a script inherits "ignore" for Ctrl-C and would pass it on to the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[PrivateStack]:
    """Not below pytest's own directory: another pytest that starts takes its permissions back, and Postgres, which
    never runs as root, then loses its data. The logs of a session with failures are kept."""
    directory = Path(tempfile.mkdtemp(prefix="streambank-"))
    private = PrivateStack(directory)
    request.session.stash[STACK] = private
    try:
        yield private
    finally:
        private.stop()
        if not request.session.testsfailed:
            shutil.rmtree(directory, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """After the last test of a file, and the end of its fixtures, its topics go."""
    yield
    if nextitem is not None and nextitem.path != item.path and STACK in item.session.stash:
        item.session.stash[STACK].delete_topics()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for a server is a stack test, marked or not. Stack tests come first: their files are long, and
    the many short ones without servers then keep both workers busy to the end."""
    servers = {kind.name for kind in SERVER_TYPES} | {"stack"}
    for item in items:
        if servers & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.stack)
    items.sort(key=lambda item: item.get_closest_marker("stack") is None)
    shared = [name for name, times in Counter(item.nodeid for item in items).items() if times > 1]
    if shared:
        raise pytest.UsageError(f"of tests that share an id only one would run side by side with others: {shared}")


@pytest.fixture
def asked_servers(stack: PrivateStack, request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Names of the servers among the test's arguments, started together."""
    names = tuple(kind.name for kind in SERVER_TYPES if kind.name in request.fixturenames)
    stack.start(*names)
    return names


@pytest.fixture
def kafka(stack: PrivateStack, asked_servers: tuple[str, ...]) -> Kafka:
    return stack.get(Kafka)


@pytest.fixture
def registry(stack: PrivateStack, asked_servers: tuple[str, ...]) -> Registry:
    return stack.get(Registry)


@pytest.fixture
def postgres(stack: PrivateStack, asked_servers: tuple[str, ...]) -> Postgres:
    return stack.get(Postgres)


@pytest.fixture
def cassandra(stack: PrivateStack, asked_servers: tuple[str, ...]) -> Cassandra:
    return stack.get(Cassandra)


@pytest.fixture
def valkey(stack: PrivateStack, asked_servers: tuple[str, ...]) -> Valkey:
    return stack.get(Valkey)


@pytest.fixture
def flink(stack: PrivateStack, asked_servers: tuple[str, ...]) -> Flink:
    return stack.get(Flink)


@pytest.fixture
def environment(stack: PrivateStack, asked_servers: tuple[str, ...]) -> Settings:
    return stack.environment(*asked_servers)
