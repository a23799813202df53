"""`streambank load`: play transfers, payments, orders or card transactions on schedule, and measure what became of
them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from infra.settings import Settings
    from models.load import LoadProgress, Pace
    from models.load_plan import LoadPlan


CLIENT_SCOPES = ("ledger:write", "ledger:read", "payments:write", "orders:write")
MOST_EVENTS = 10_000_000
"""Of one load: each has a place in memory."""


class Via(StrEnum):
    API = "api"
    KAFKA = "kafka"


class Profile(StrEnum):
    TRANSFERS = "transfers"
    PAYMENTS = "payments"
    ORDERS = "orders"
    FRAUD = "fraud"


def register(app: typer.Typer) -> None:
    app.command()(load)


def load(
    profile: Annotated[
        Profile,
        typer.Option(
            help="What to send: transfers of simulated card payments; payments or orders to their answer; card "
            "transactions to their decision.",
            envvar="STREAMBANK_LOAD_PROFILE",
        ),
    ] = Profile.TRANSFERS,
    via: Annotated[Via, typer.Option(help="Where to send transfers.", envvar="STREAMBANK_LOAD_VIA")] = Via.API,
    rate: Annotated[
        float,
        typer.Option(
            min=0, help="Events a second, sent on schedule; 0: as fast as possible.", envvar="STREAMBANK_LOAD_RATE"
        ),
    ] = 1000.0,
    seconds: Annotated[
        float,
        typer.Option(min=0, help="How long to send payments; 0: until --count.", envvar="STREAMBANK_LOAD_SECONDS"),
    ] = 60.0,
    count: Annotated[
        int,
        typer.Option(
            min=0, help="How many payments at most; 0: as many as fit the time.", envvar="STREAMBANK_LOAD_COUNT"
        ),
    ] = 0,
    batch: Annotated[
        int,
        typer.Option(
            min=1,
            max=2000,
            help="Transfers per request (1: one JSON object) or at most per frame; other profiles send one by one.",
            envvar="STREAMBANK_LOAD_BATCH",
        ),
    ] = 100,
    connections: Annotated[
        int,
        typer.Option(
            "--clients",
            "--connections",
            min=1,
            max=4096,
            help="Requests under way at once; what no client is free for waits, and the wait is measured.",
            envvar="STREAMBANK_LOAD_CONNECTIONS",
        ),
    ] = 16,
    short_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of customers funded with their first purchase only.",
            envvar="STREAMBANK_LOAD_SHORT_SHARE",
        ),
    ] = 0.1,
    run: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number in the transfers' ids; the same run sends the same ids. 0: a new one.",
            envvar="STREAMBANK_LOAD_RUN",
        ),
    ] = 0,
    client_id: Annotated[
        str, typer.Option(help="OAuth2 client; empty: one of the local stack.", envvar="STREAMBANK_CLIENT_ID")
    ] = "",
    client_secret: Annotated[
        str, typer.Option(help="Its secret; better in the environment.", envvar="STREAMBANK_CLIENT_SECRET")
    ] = "",
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the result there; - for standard output.", envvar="STREAMBANK_LOAD_JSON"),
    ] = None,
) -> None:
    """Send events on schedule and measure them from when each was due.

    Transfers are simulated card payments (customer account to terminal account, in cents), measured to their
    acknowledgement; accounts are created and funded first, and a tenth of the customers cannot pay for more than their
    first purchase, so that refusals happen too. The other profiles measure to the final status, the report or the
    decision. Ends with a table; exit code 1 if anything was not acknowledged.
    """
    from rich.console import Console

    from infra.settings import settings
    from models.load import ApiTarget, LoadProgress, Pace
    from models.load_profiles import SCOPES

    console = Console(stderr=True)
    config = settings()
    run = run or time.time_ns() // 1000
    wanted = events_wanted(rate, seconds, count)
    plan = make_plan(run, wanted, short_share, console) if profile is Profile.TRANSFERS else None
    progress = LoadProgress(len(plan.payments) if plan is not None else wanted)
    # On schedule, the plan ends the load; the time limit is only for a target that cannot keep up.
    pace = Pace(rate=rate, seconds=seconds + 30 if rate and seconds else seconds, batch=batch)
    target = None
    if via is Via.API and profile is not Profile.FRAUD:
        if not client_id:
            client_id, client_secret = local_credentials(config)
        target = ApiTarget(config.api_url, client_id, client_secret, connections, " ".join(SCOPES[profile.value]))
    interrupted = False
    try:
        if plan is not None:
            play(plan, target, config, pace, progress, console)
        else:
            play_profile(profile, target, config, pace, connections, run, progress, console)
    except KeyboardInterrupt:
        progress.finished = time.perf_counter()
        interrupted = True
    console.print(progress_table(progress))
    result = {
        "profile": profile.value, "via": "kafka" if target is None else "api", "run": run, "rate": rate,
        "clients": connections, "batch": batch if plan is not None else 1, **progress.as_json(),
    }  # fmt: skip
    if json_path is not None:
        text = json.dumps(result, indent=2)
        if str(json_path) == "-":
            typer.echo(text)
        else:
            json_path.write_text(text + "\n", encoding="utf-8")
    for why in progress.failures:
        console.print(f"[red]{why}", highlight=False, soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)
    if progress.failed_events:
        raise typer.Exit(1)


def events_wanted(rate: float, seconds: float, count: int) -> int:
    """How many events to plan; the simulated half-year has 1,754,155 transfers."""
    from pipelines.errors import StreambankError

    if not seconds and not count:
        raise StreambankError("give --seconds or --count, else the load has no end")
    by_time = int(rate * seconds) if rate and seconds else MOST_EVENTS
    return min(by_time, count or MOST_EVENTS)


def make_plan(run: int, payments: int, short_share: float, console: Any) -> LoadPlan:
    """The first ``payments`` of the published world; making that takes some 10 s the first time."""
    from rich.progress import Progress

    from models.load_plan import plan_load
    from models.simulator import load_transactions

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("simulating card payments (once)", total=None, visible=False)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        transactions = load_transactions(progress=report)
    return plan_load(transactions[: min(payments, len(transactions))], run, short_share)


def play(plan: LoadPlan, target: Any, config: Settings, pace: Pace, progress: LoadProgress, console: Any) -> None:
    """Run the load to its end under a live display; ``target`` is an `ApiTarget`, or None for Kafka."""
    import asyncio

    from models.load import load_api, load_kafka

    with live(console, lambda: progress_table(progress)):
        if target is not None:
            asyncio.run(load_api(plan, target, pace, progress))
        else:
            load_kafka(plan, config, pace, progress)


def play_profile(
    profile: Profile, target: Any, config: Settings, pace: Pace, clients: int, run: int, progress: LoadProgress,
    console: Any,
) -> None:  # fmt: skip
    """Run a profile other than transfers to its end under a live display; ``target`` is an `ApiTarget`, None for
    fraud."""
    import asyncio

    from models.load_profiles import load_fraud, load_orders, load_payments

    with live(console, lambda: progress_table(progress, profile.value)):
        if profile is Profile.FRAUD:
            asyncio.run(load_fraud(config, pace, clients, run, progress))
        else:
            play = load_payments if profile is Profile.PAYMENTS else load_orders
            asyncio.run(play(target, pace, run, progress))


def live(console: Any, render: Callable[[], Any]) -> Any:
    """A display that redraws itself from ``render`` four times a second, where there is a terminal."""
    from rich.live import Live

    return Live(
        get_renderable=render, console=console, refresh_per_second=4, transient=True, auto_refresh=console.is_terminal
    )


def progress_table(progress: LoadProgress, events: str = "payments") -> Any:
    """The load so far, as a rich table; ``events`` is what they are called."""
    from rich.table import Table

    table = Table("load", "", show_header=False)
    table.add_row("phase", progress.phase)
    if progress.setup_events:
        table.add_row("accounts and fundings", f"{progress.setup_done:,} of {progress.setup_events:,}")
    table.add_row(f"{events} sent", f"{progress.sent_events:,} of {progress.planned_events:,}")
    table.add_row("acknowledged", f"{progress.acknowledged_events:,}")
    table.add_row(
        "failed", f"{progress.failed_events:,}" if not progress.failed_events else f"[red]{progress.failed_events:,}"
    )
    table.add_row("requests, repeated", f"{progress.requests:,}, {progress.retries:,}")
    table.add_row("seconds", f"{progress.seconds:.1f}")
    table.add_row(f"{events}/s", f"{progress.events_per_second:,.0f}")
    if progress.outcomes:
        table.add_row("outcomes", ", ".join(f"{name} {count:,}" for name, count in progress.outcomes.most_common()))
    for name, value in progress.latency_ms().items():
        table.add_row(f"{name} from when due, ms", f"{value:,.1f}")
    return table


def local_credentials(config: Settings) -> tuple[str, str]:
    """Id and secret of a client of the local stack for this command; made when there is none yet.

    They lie in the stack's secrets directory with mode 0600, beside the keys that sign its tokens.
    """
    from api.clients import ClientStore
    from models.load_profiles import TRADERS

    path = config.secrets_dir / "load-client.json"
    store = ClientStore(config.secrets_dir / "clients.json")
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        client = store.active(kept["client_id"])
        if client is not None and set(CLIENT_SCOPES) <= set(client.scopes):
            return kept["client_id"], kept["client_secret"]
    config.secrets_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    client, secret = store.add("load", CLIENT_SCOPES, accounts=[f"load-{number}" for number in range(TRADERS)])
    part = path.with_suffix(f".{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"client_id": client.client_id, "client_secret": secret}, file)
    part.replace(path)
    return client.client_id, secret
