"""`streambank graph`: the flow of events as a Mermaid diagram, from the topic catalogue and the sinks that exist.

Exit codes: 0 done; 1 no such pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipelines.catalogue import Pipeline, Topic


def graph(
    pipeline: Annotated[
        str | None, typer.Argument(help="Show this pipeline alone; without it all.", show_default=False)
    ] = None,
) -> None:
    """Print the flow from writers over topics and jobs to the sinks as Mermaid; paste it into any Markdown."""
    from pipelines.catalogue import PIPELINES
    from pipelines.errors import StreambankError

    if pipeline is not None and pipeline not in PIPELINES:
        raise StreambankError(f"no pipeline {pipeline!r}; there are: {', '.join(PIPELINES)}")
    shown = [PIPELINES[pipeline]] if pipeline is not None else list(PIPELINES.values())
    typer.echo(mermaid(shown, sink_topics()))


def mermaid(pipelines: Iterable[Pipeline], sinks: dict[str, Topic]) -> str:
    """The diagram's text. ``sinks``: the topic that each sink reads, by the sink's name."""
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
    written = {topic.name for pipeline in jobs for topic in (*pipeline.outputs, pipeline.dead_letters)}
    for name, topic in sorted(topics.items()):
        nodes.append(f'    {_topic(topic)}[("{name}<br/>{topic.partitions} partitions")]')
        if name not in written:
            nodes.append(f'    writer_{_id(topic.owner)}(["{topic.owner}"])')
            edges[f"    writer_{_id(topic.owner)} --> {_topic(topic)}"] = None
    letters = {topic.name: pipeline.dead_letters for pipeline in jobs for topic in pipeline.outputs}
    for sink, topic in sorted(sinks.items()):
        if topic.name in topics:
            nodes.append(f'    sink_{_id(sink)}[/"{sink}<br/>Faust sink"/]')
            edges[f"    {_topic(topic)} --> sink_{_id(sink)}"] = None
            if topic.name in letters:
                edges[f"    sink_{_id(sink)} -. unreadable .-> {_topic(letters[topic.name])}"] = None
    return "\n".join(["flowchart LR", *dict.fromkeys(nodes), *edges])


def sink_topics() -> dict[str, Topic]:
    """The topic of every sink in jobs/sinks, by the sink's name."""
    from importlib import import_module
    from inspect import isabstract
    from pkgutil import iter_modules

    import jobs.sinks
    from jobs.sinks.base import Sink

    found: dict[str, Topic] = {}
    for module in iter_modules(jobs.sinks.__path__):
        for kind in vars(import_module(f"jobs.sinks.{module.name}")).values():
            if isinstance(kind, type) and issubclass(kind, Sink) and not isabstract(kind):
                found[kind.name] = kind.topic
    return found


def register(app: typer.Typer) -> None:
    app.command()(graph)


def _topic(topic: Topic) -> str:
    return f"topic_{_id(topic.name)}"


def _id(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)
