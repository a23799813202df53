"""The schema registry: which id stands for which schema on the wire.

It speaks the four calls of the Confluent REST API that we need, so that any compatible registry will do. Subjects are
``<topic prefix><topic>-value``. Registration is idempotent; the registry refuses an incompatible schema itself, under
the level of ``avro/compatibility.json``.

Errors: `RegistryError` when the registry is away or answers something unexpected, `SchemaNotRegistered` when it does
not know a schema, `SchemaIncompatible` when it refuses one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from types import TracebackType
from typing import Any, Final, Self

import httpx

from infra.compatibility import compatibility_level
from infra.settings import Settings, settings
from pipelines.catalogue import Topic
from pipelines.errors import StreambankError

__all__ = [
    "RegistryError",
    "SchemaIncompatible",
    "SchemaNotRegistered",
    "SchemaRegistry",
    "register",
    "schema_ids",
    "writer_schema",
]

TIMEOUT_SECONDS: Final = 15.0
CONTENT_TYPE: Final = "application/vnd.schemaregistry.v1+json"


class RegistryError(StreambankError):
    """The registry is away, or answered something that we do not understand."""


class SchemaNotRegistered(RegistryError):  # noqa: N818 - a state, named for what it is
    """The registry does not know this schema or id."""


class SchemaIncompatible(RegistryError):  # noqa: N818 - a state, named for what it is
    """The registry refused a schema because earlier data would not be readable."""


class SchemaRegistry:
    """A connection to one environment's registry. Use as a context manager; not thread-safe."""

    def __init__(self, config: Settings | None = None) -> None:
        self._config = config or settings()
        self._client = httpx.Client(
            base_url=self._config.registry_url,
            timeout=TIMEOUT_SECONDS,
            headers={"Content-Type": CONTENT_TYPE},
            trust_env=False,
            verify=self._config.registry_url.startswith("https:"),  # else the certificates of all CAs are read in vain
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def subject(self, topic: Topic) -> str:
        """The registry's name for the topic's values in this environment."""
        return self._config.kafka_topic(topic.subject)

    def versions(self, topic: Topic) -> list[tuple[int, Any]]:
        """(version, schema as parsed JSON) of every registered version, oldest first; empty for an unknown subject."""
        subject = self.subject(topic)
        numbers = self._call("GET", f"/subjects/{subject}/versions", missing=[])
        found = []
        for number in sorted(numbers):
            body = self._call("GET", f"/subjects/{subject}/versions/{number}")
            found.append((int(number), json.loads(body["schema"])))
        return found

    def check(self, topic: Topic) -> list[str]:
        """What the registry has against the topic's current schema; empty if it would be accepted."""
        subject = self.subject(topic)
        if not self._call("GET", f"/subjects/{subject}/versions", missing=[]):
            return []
        self._set_level(topic)
        body = self._call(
            "POST",
            f"/compatibility/subjects/{subject}/versions",
            params={"verbose": "true"},
            content=_schema_body(topic),
        )
        if body["is_compatible"]:
            return []
        return [str(message) for message in body.get("messages") or ["incompatible with a registered version"]]

    def register(self, topic: Topic) -> int:
        """Register the topic's current schema under its level; returns its id, the same one on every call."""
        subject = self.subject(topic)
        known = bool(self._call("GET", f"/subjects/{subject}/versions", missing=[]))
        if known:
            self._set_level(topic)
        body = self._call("POST", f"/subjects/{subject}/versions", content=_schema_body(topic))
        if not known:
            self._set_level(topic)  # a level can only be given to a subject that exists
        return int(body["id"])

    def schema_id(self, topic: Topic) -> int:
        """The id of the topic's current schema. `SchemaNotRegistered` if it was never registered."""
        subject = self.subject(topic)
        body = self._call("POST", f"/subjects/{subject}", content=_schema_body(topic), missing=None)
        if body is None:
            raise SchemaNotRegistered(
                f"subject {subject} has no version equal to avro/{topic.name}.avsc; run `streambank schemas register`"
            )
        return int(body["id"])

    def schema(self, schema_id: int) -> dict[str, Any]:
        """The schema behind an id, as parsed JSON. `SchemaNotRegistered` for an unknown id."""
        body = self._call("GET", f"/schemas/ids/{schema_id}", missing=None)
        if body is None:
            raise SchemaNotRegistered(
                f"schema id {schema_id} is unknown to the registry at {self._config.registry_url}"
            )
        schema: dict[str, Any] = json.loads(body["schema"])
        return schema

    def _set_level(self, topic: Topic) -> None:
        level = compatibility_level(topic)
        self._call("PUT", f"/config/{self.subject(topic)}", content=json.dumps({"compatibility": level}))

    def _call(self, method: str, path: str, *, missing: Any = ..., **request: Any) -> Any:
        """One request; a 404 returns ``missing`` where given."""
        try:
            response = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise RegistryError(
                f"schema registry at {self._config.registry_url} does not answer ({error or type(error).__name__}); "
                "start it with `streambank up`"
            ) from error
        if response.status_code == httpx.codes.NOT_FOUND and missing is not ...:
            return missing
        if response.status_code == httpx.codes.CONFLICT:
            raise SchemaIncompatible(f"{path}: {_message(response)}")
        if response.is_error:
            raise RegistryError(f"{method} {path}: {response.status_code} {_message(response)}")
        return response.json()


def register(topic: Topic, config: Settings | None = None) -> int:
    """Register one topic's current schema and return its id; idempotent."""
    with SchemaRegistry(config) as registry:
        return registry.register(topic)


def schema_ids(topics: Iterable[Topic], config: Settings | None = None) -> dict[str, int]:
    """The ids of these topics' current schemas, by logical topic name.

    Raises `SchemaNotRegistered` when one is missing: a producer must not write with an id that readers cannot look up.
    """
    with SchemaRegistry(config) as registry:
        return {topic.name: registry.schema_id(topic) for topic in topics}


def writer_schema(schema_id: int, config: Settings | None = None) -> dict[str, Any]:
    """The schema that a record's id stands for; looked up once per process, since an id never changes its meaning."""
    return _writer_schema(schema_id, config or settings())


@cache
def _writer_schema(schema_id: int, config: Settings) -> dict[str, Any]:
    with SchemaRegistry(config) as registry:
        return registry.schema(schema_id)


def _schema_body(topic: Topic) -> str:
    return json.dumps({"schemaType": "AVRO", "schema": json.dumps(topic.schema())})


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
