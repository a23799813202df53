"""`streambank graph` shows every topic, job and sink of the catalogue, joined as they are at run time."""

import re

import typer
from typer.testing import CliRunner

from infra.cli.graph import SinkTopics, mermaid, register
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_EVENTS, PIPELINES, TOPICS
from tests.support.counter_kernel import COUNTER


def edges(text):
    return set(re.findall(r"^    (\w+) (?:-->|-\. unreadable \.->) (\w+)$", text, re.MULTILINE))


def test_every_topic_and_pipeline_is_there():
    text = mermaid(PIPELINES.values(), {})
    assert text.startswith("flowchart LR\n")
    for name in TOPICS:
        assert f'[("{name}<br/>' in text
    for name, pipeline in PIPELINES.items():
        assert f'job_{name}[["{name}<br/>Flink job, {pipeline.shards} shards"]]' in text


def test_edges_follow_the_events():
    assert edges(mermaid([COUNTER], {"postgres": SinkTopics(LEDGER_EVENTS)})) == {
        ("writer_api", "topic_ledger_commands"),
        ("topic_ledger_commands", "job_counter"),
        ("job_counter", "topic_ledger_results"),
        ("job_counter", "topic_ledger_events"),
        ("job_counter", "topic_ledger_dead_letters"),
        ("topic_ledger_events", "sink_postgres"),
        ("sink_postgres", "topic_ledger_dead_letters"),
    }


def test_a_relay_leads_on_to_its_targets():
    sinks = {"again": SinkTopics(LEDGER_EVENTS, (LEDGER_COMMANDS,))}
    assert ("sink_again", "topic_ledger_commands") in edges(mermaid([COUNTER], sinks))


def test_every_node_of_an_edge_is_declared_once():
    text = mermaid(PIPELINES.values(), {"postgres": SinkTopics(LEDGER_EVENTS)})
    declared = re.findall(r"^    (\w+)[\[(]", text, re.MULTILINE)
    assert len(declared) == len(set(declared))
    assert {node for edge in edges(text) for node in edge} == set(declared)


def test_the_command_finds_the_sinks_by_itself():
    app = typer.Typer(callback=lambda: None)
    register(app)
    shown = CliRunner().invoke(app, ["graph", "ledger"])
    assert shown.exit_code == 0, shown.output
    assert ("topic_ledger_events", "sink_postgres") in edges(shown.output)
    assert ("topic_ledger_events", "sink_cassandra") in edges(shown.output)
