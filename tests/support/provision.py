"""Topics and schemas of an environment."""

from __future__ import annotations

from infra import topics
from infra.registry import SchemaRegistry
from infra.settings import Settings
from pipelines.catalogue import TOPICS


def provision(environment: Settings, *systems: str) -> dict[str, int]:
    """Make the topics of these systems (ledger, matching, fraud, payments, notifications; all if none is named) and
    register their schemas; returns the schema ids by topic. A test that names its systems takes a second or two less.
    """
    chosen = [topic for topic in TOPICS.values() if not systems or topic.name.partition(".")[0] in systems]
    assert chosen, f"no topics of {systems}"
    topics.apply(environment, only=chosen)
    with SchemaRegistry(environment) as registry:
        return {topic.name: registry.register(topic) for topic in chosen}
