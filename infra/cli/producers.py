"""`streambank producers`: the keys with which producers sign their records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.catalogue import Topic

group = typer.Typer(help="Keys of the producers that sign their records.", no_args_is_help=True)

TopicName = Annotated[str, typer.Option("--topic", help="Topic of the catalogue.", envvar="STREAMBANK_PRODUCER_TOPIC")]
_TOPIC = "matching.commands"


@group.command("list")
def list_producers() -> None:
    """All keys, without their secrets."""
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    from infra.producer_keys import ProducerKeys
    from infra.settings import settings

    table = Table("topic", "producer", "key", "signs from", "good up to offsets")
    for topic, entry in ProducerKeys(settings()).read().items():
        for key_id, key in entry["keys"].items():
            since = (
                datetime.fromtimestamp(key["signs_from"], UTC).isoformat(" ", "seconds") if key["signs_from"] else ""
            )
            table.add_row(topic, key["producer"], key_id, since, "" if key["until"] is None else str(key["until"]))
    Console().print(table)


@group.command()
def add(
    producer: Annotated[str, typer.Argument(help="Its name: letters, digits, hyphens.")], topic: TopicName = _TOPIC
) -> None:
    """Give a producer its first key. From a topic's first key on, all its records must be signed."""
    from rich.console import Console

    from infra import topics
    from infra.producer_keys import ProducerKeys
    from infra.settings import settings

    wanted = _topic(topic)
    made = ProducerKeys(settings()).require(wanted, [producer], topics.ends(wanted))
    Console().print(f"{producer} signs what it sends to {topic}" if made else f"{producer} has a key for {topic}")


@group.command()
def rotate(
    producer: Annotated[str, typer.Argument(help="Its name.")],
    topic: TopicName = _TOPIC,
    starts_in: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds until the producer signs with the new key; longer than the file takes to reach the job.",
            envvar="STREAMBANK_PRODUCER_KEY_STARTS_IN",
        ),
    ] = 5.0,
) -> None:
    """Give a producer a new key. The old one stays good until it is retired."""
    from rich.console import Console

    from infra.producer_keys import ProducerKeys
    from infra.settings import settings

    key_id = ProducerKeys(settings()).rotate(_topic(topic), producer, starts_in)
    Console().print(f"{producer} signs with key {key_id} in {starts_in:g} s; then retire the old one")


@group.command()
def retire(
    key_id: Annotated[str, typer.Argument(help="The key, as `list` shows it.")], topic: TopicName = _TOPIC
) -> None:
    """Refuse a key from now on. What it signed up to the topic's present end stays valid."""
    from rich.console import Console

    from infra import topics
    from infra.producer_keys import ProducerKeys
    from infra.settings import settings

    wanted = _topic(topic)
    ends = topics.ends(wanted)
    ProducerKeys(settings()).retire(wanted, key_id, ends)
    Console().print(f"key {key_id} is good up to offsets {ends} of {topic}")


def _topic(name: str) -> Topic:
    from infra.producer_keys import ProducerKeyError
    from pipelines.catalogue import TOPICS

    if name not in TOPICS or TOPICS[name].writers != "many producers":
        raise ProducerKeyError(f"{name} is not a topic of many producers; see `streambank topics list`")
    return TOPICS[name]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="producers")
