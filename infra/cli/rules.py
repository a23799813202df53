"""`streambank rules`: check, publish, list and back-test the rules of the fraud decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Argument(help="The rule set, JSON.", exists=True, dir_okay=False)]


def register(app: typer.Typer) -> None:
    rules = typer.Typer(help="Rules of the fraud decisions: check, publish, list, back-test.", no_args_is_help=True)
    for command in (check, publish, ls, backtest):
        rules.command()(command)
    app.add_typer(rules, name="rules")


def check(file: File) -> None:
    """Say whether a rule set can be used; nothing is published."""
    from rich.console import Console

    from pipelines.fraud.rules import RuleSet

    found = RuleSet.parse(file.read_text(encoding="utf-8"), 1)
    shadow = sum(rule.shadow for rule in found.rules)
    Console().print(f"{file}: {len(found.rules)} rules, {shadow} of them in shadow")


def publish(
    file: File,
    author: Annotated[str, typer.Option(envvar=["STREAMBANK_RULES_AUTHOR", "USER"], help="Who publishes it.")],
    note: Annotated[str, typer.Option(envvar="STREAMBANK_RULES_NOTE", help="What changed, and why.")] = "",
) -> None:
    """Put a rule set in force as the next version; running scorers take it up without a restart."""
    from rich.console import Console

    from infra.settings import settings
    from jobs.fraud_rules import publish_rules

    version = publish_rules(settings(), file.read_text(encoding="utf-8"), author=author, note=note)
    Console().print(f"version {version} is in force")


def ls() -> None:
    """All published versions, the one in force last."""
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    from infra.settings import settings
    from jobs.fraud_rules import read_rules

    table = Table("version", "published", "author", "rules", "in shadow", "review at", "block at", "note")
    for one in read_rules(settings()):
        at = datetime.fromtimestamp(one.published_at / 1e6, UTC).isoformat(" ", "seconds")
        rules = one.rules
        table.add_row(
            str(rules.version), at, one.author, str(len(rules.rules)), str(sum(rule.shadow for rule in rules.rules)),
            f"{rules.review_at / 1e6:g}", f"{rules.block_at / 1e6:g}", one.note,
        )  # fmt: skip
    Console().print(table)


def backtest(
    file: File,
    shards: Annotated[
        list[int] | None, typer.Option("--shard", envvar="STREAMBANK_RULES_SHARDS", help="Only these shards.")
    ] = None,
) -> None:
    """What a rule set would have decided over the history in Kafka, and how much fraud each rule would have met."""
    from rich.console import Console
    from rich.table import Table

    from infra.settings import settings
    from jobs.fraud_backtest import backtest as run
    from pipelines.fraud.rules import RuleSet

    found = run(settings(), RuleSet.parse(file.read_text(encoding="utf-8"), 1), shards)
    console = Console()
    decisions = Table("decision", "then", "with these rules")
    for name, (then, now) in found.decisions.items():
        decisions.add_row(name, f"{then:,}", f"{now:,}")
    console.print(decisions)
    rules = Table("rule", "mode", "hits", "frauds", "precision", "recall")
    for rule in found.rules:
        precision, recall = (f"{rule.frauds / of:.3f}" if of else "" for of in (rule.hits, found.frauds))
        mode = "shadow" if rule.shadow else "enforce"
        rules.add_row(rule.id, mode, f"{rule.hits:,}", f"{rule.frauds:,}", precision, recall)
    console.print(rules)
    console.print(f"{found.transactions:,} transactions, {found.frauds:,} of them labelled fraud by now")
