"""`streambank graph`: the flow of events as a Mermaid diagram, from the topic catalogue and the sinks that exist.

Exit codes: 0 done; 1 no such pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipelines.catalogue import Pipeline, Service, Topic


class SinkTopics(NamedTuple):
    """What a sink reads, and, if it is a relay, which topics it writes."""

    topic: Topic
    targets: tuple[Topic, ...] = ()


def graph(
    pipeline: Annotated[
        str | None, typer.Argument(help="Show this pipeline alone; without it all.", show_default=False)
    ] = None,
) -> None:
    """Print the flow from writers over topics and jobs to the sinks as Mermaid; paste it into any Markdown."""
    from pipelines.catalogue import PIPELINES, SERVICES
    from pipelines.errors import StreambankError

    if pipeline is not None and pipeline not in PIPELINES:
        raise StreambankError(f"no pipeline {pipeline!r}; there are: {', '.join(PIPELINES)}")
    shown = [PIPELINES[pipeline]] if pipeline is not None else list(PIPELINES.values())
    typer.echo(mermaid(shown, sink_topics(), SERVICES.values() if pipeline is None else ()))


def mermaid(pipelines: Iterable[Pipeline], sinks: Mapping[str, SinkTopics], services: Iterable[Service] = ()) -> str:
    """The diagram's text. ``sinks``: what each sink reads and writes, by the sink's name. Topics of a system that no
    job reads or writes are shown with it."""
    from pipelines.catalogue import PIPELINES, TOPICS

    topics: dict[str, Topic] = {}
    nodes: list[str] = []
    edges: dict[str, None] = {}
    jobs = list(pipelines)
    for pipeline in jobs:
        nodes.append(f'    job_{_id(pipeline.name)}[["{pipeline.name}<br/>Flink job, {pipeline.shards} shards"]]')
        for topic in pipeline.inputs:
            topics[topic.name] = topic
            edges[f"    {_topic(topic)} --> job_{_id(pipeline.name)}"] = None
        for topic in pipeline.outputs:
            topics[topic.name] = topic
            edges[f"    job_{_id(pipeline.name)} --> {_topic(topic)}"] = None
        topics[pipeline.dead_letters.name] = pipeline.dead_letters
        edges[f"    job_{_id(pipeline.name)} -. unreadable .-> {_topic(pipeline.dead_letters)}"] = None
    systems = {pipeline.dead_letters.name.split(".", 1)[0] for pipeline in jobs}
    topics |= {
        name: topic
        for name, topic in TOPICS.items()
        if name.split(".", 1)[0] in systems and not any(topic in _around(found) for found in PIPELINES.values())
    }
    running = list(services)
    for service in running:
        nodes.append(f'    service_{_id(service.name)}[["{service.name}<br/>{service.runs_as}"]]')
        edges |= dict.fromkeys(f"    {_topic(topic)} --> service_{_id(service.name)}" for topic in service.inputs)
        edges |= dict.fromkeys(f"    service_{_id(service.name)} --> {_topic(topic)}" for topic in service.outputs)
        edges[f"    service_{_id(service.name)} -. unreadable .-> {_topic(service.dead_letters)}"] = None
        topics |= {topic.name: topic for topic in (*service.inputs, *service.outputs, service.dead_letters)}
    writers: list[Pipeline | Service] = [*jobs, *running]
    written = {topic.name for node in writers for topic in (*node.outputs, node.dead_letters)}
    for name, topic in sorted(topics.items()):
        nodes.append(f'    {_topic(topic)}[("{name}<br/>{topic.partitions} partitions")]')
        if name not in written:
            nodes.append(f'    writer_{_id(topic.owner)}(["{topic.owner}"])')
            edges[f"    writer_{_id(topic.owner)} --> {_topic(topic)}"] = None
    letters = {topic.name: pipeline.dead_letters for pipeline in jobs for topic in pipeline.outputs}
    for sink, (topic, targets) in sorted(sinks.items()):
        if topic.name in topics:
            nodes.append(f'    sink_{_id(sink)}[/"{sink}<br/>Faust {"relay" if targets else "sink"}"/]')
            edges[f"    {_topic(topic)} --> sink_{_id(sink)}"] = None
            for target in targets:
                if target.name not in topics:
                    nodes.append(f'    {_topic(target)}[("{target.name}<br/>{target.partitions} partitions")]')
                edges[f"    sink_{_id(sink)} --> {_topic(target)}"] = None
            if topic.name in letters:
                edges[f"    sink_{_id(sink)} -. unreadable .-> {_topic(letters[topic.name])}"] = None
    return "\n".join(["flowchart LR", *dict.fromkeys(nodes), *edges])


def _around(pipeline: Pipeline) -> tuple[Topic, ...]:
    return (*pipeline.inputs, *pipeline.outputs, pipeline.dead_letters)


def sink_topics() -> dict[str, SinkTopics]:
    """Every sink and relay, by its name."""
    from jobs.sinks import SINKS, load_sink
    from jobs.sinks.fraud_scoring import FraudScoringSink

    kinds = {name: load_sink(name) for name in SINKS} | {FraudScoringSink.name: FraudScoringSink}
    return {name: SinkTopics(kind.topic, getattr(kind, "targets", ())) for name, kind in kinds.items()}


def register(app: typer.Typer) -> None:
    app.command()(graph)


def _topic(topic: Topic) -> str:
    return f"topic_{_id(topic.name)}"


def _id(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)
