"""`streambank dlq`: look at dead letters, replay them, drop them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobs.dead_letter_queue import DeadLetterQueue, LetterFilter
    from jobs.dead_letters import LetterPlace

group = typer.Typer(help="Dead letters: look, replay, drop.", no_args_is_help=True)

Reason = Annotated[str | None, typer.Option(help="Only this reason code.", envvar="STREAMBANK_DLQ_REASON")]
ConsumerName = Annotated[
    str | None, typer.Option(help="Only letters of this job or sink.", envvar="STREAMBANK_DLQ_CONSUMER")
]
FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
Since = Annotated[
    datetime | None, typer.Option(formats=FORMATS, help="Set aside at or after (UTC).", envvar="STREAMBANK_DLQ_SINCE")
]
Until = Annotated[
    datetime | None, typer.Option(formats=FORMATS, help="Set aside before (UTC).", envvar="STREAMBANK_DLQ_UNTIL")
]
Ids = Annotated[list[str] | None, typer.Argument(help="Letters by id, as `ls` shows them.")]
Everything = Annotated[bool, typer.Option("--all", help="Every open letter.", envvar="STREAMBANK_DLQ_ALL")]
DryRun = Annotated[bool, typer.Option(help="Say what would be done, do nothing.", envvar="STREAMBANK_DRY_RUN")]


@group.command()
def ls(
    reason: Reason = None,
    consumer: ConsumerName = None,
    since: Since = None,
    until: Until = None,
    handled: Annotated[
        bool, typer.Option(help="Replayed and dropped ones too.", envvar="STREAMBANK_DLQ_HANDLED")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=0, help="Rows shown; the counts are of all.", envvar="STREAMBANK_DLQ_LIMIT")
    ] = 50,
) -> None:
    """Letters, and how many there are by consumer and reason."""
    from collections import Counter

    import psycopg
    from rich.console import Console
    from rich.table import Table

    from infra.settings import settings
    from jobs.dead_letter_queue import DeadLetterQueue

    console = Console()
    queue = DeadLetterQueue(settings())
    try:
        marks = queue.handled()
    except psycopg.OperationalError as error:
        marks = {}
        console.print(f"[yellow]Postgres is away, so handled letters cannot be told from open ones: {error}[/]")
    counts: Counter[tuple[str, str, str]] = Counter()
    table = Table("id", "time (UTC)", "consumer", "reason", "from", "event", "state", "detail")
    for place in queue.letters(_filter(None, reason, consumer, since, until)):
        state = marks.get(place.id, "open")
        if state != "open" and not handled:
            continue
        letter = place.letter
        counts[letter.consumer, letter.reason, state] += 1
        if counts.total() <= limit:
            table.add_row(
                place.id,
                _time(place.produced_at),
                letter.consumer,
                letter.reason,
                f"{letter.topic} {letter.partition}-{letter.offset}",
                "all" if letter.event_index < 0 else str(letter.event_index),
                state,
                letter.detail.split("\n", 1)[0][:80],
            )
    if not counts:
        console.print("no dead letters")
        return
    console.print(table)
    summary = Table("consumer", "reason", "state", "letters")
    for (name, code, state), count in sorted(counts.items()):
        summary.add_row(name, code, state, f"{count:,}")
    console.print(summary)


@group.command()
def show(identity: Annotated[str, typer.Argument(metavar="ID", help="Letter by id, as `ls` shows it.")]) -> None:
    """One letter in full: why, the record's bytes, and its events as far as they can be read."""
    import json

    from rich.console import Console

    from infra.settings import settings
    from jobs.dead_letter_queue import DeadLetterQueue, ReplayRefused
    from pipelines.codec import codec_of
    from pipelines.errors import FrameError
    from pipelines.event_json import render_events

    console = Console(highlight=False, soft_wrap=True)
    queue = DeadLetterQueue(settings())
    place = _one(queue.letters(_filter([identity])), identity)
    letter = place.letter
    for name, value in (
        ("id", place.id),
        ("set aside", f"{_time(place.produced_at)} UTC by {letter.consumer}"),
        ("record", f"{letter.topic} partition {letter.partition} offset {letter.offset}, schema id {letter.schema_id}"),
        ("event", "the whole record" if letter.event_index < 0 else f"number {letter.event_index} of its frame"),
        ("trace", place.trace or "none"),
        ("reason", letter.reason),
        ("detail", letter.detail),
    ):
        console.print(f"{name:>10}  {value}", markup=False)
    try:
        payload = letter.payload or queue.original(place)
    except ReplayRefused as error:
        console.print(f"   payload  {error}", markup=False)
        return
    console.print(f"   payload  {len(payload)} bytes" + (", the first 512" if len(payload) > 512 else ""))
    console.print(_hex_dump(payload[:512]), markup=False)
    try:
        frame = queue.decode(place)
    except FrameError as error:
        console.print(f"The record cannot be read as a frame: {error}", markup=False)
        return
    events = render_events(codec_of(letter.topic), frame.events)
    chosen = events if letter.event_index < 0 else events[letter.event_index : letter.event_index + 1]
    console.print(f"Frame of shard {frame.shard}, sequence {frame.sequence}, {len(events)} event(s):", markup=False)
    for event in chosen:
        console.print(json.dumps(event), markup=False)


@group.command()
def replay(
    ids: Ids = None,
    reason: Reason = None,
    consumer: ConsumerName = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    dry_run: DryRun = False,
) -> None:
    """Process letters again: a sink's through the sink, a command by producing it again. Safe to repeat."""
    from rich.console import Console

    from infra.settings import settings
    from jobs.dead_letter_queue import DeadLetterQueue, ReplayRefused

    console = Console(highlight=False, soft_wrap=True)
    queue = DeadLetterQueue(settings())
    refused = 0
    for place in _chosen(queue, ids, reason, consumer, since, until, everything):
        if dry_run:
            console.print(f"{place.id}: would replay {_what(place)}", markup=False)
            continue
        try:
            console.print(f"{place.id}: {queue.replay(place)}", markup=False)
        except ReplayRefused as error:
            refused += 1
            console.print(f"refused {error}", markup=False, style="red")
    if refused:
        raise typer.Exit(1)


@group.command()
def drop(
    ids: Ids = None,
    reason: Reason = None,
    consumer: ConsumerName = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    dry_run: DryRun = False,
) -> None:
    """Mark letters as done. They stay in their topic until its retention ends, and in `ls --handled`."""
    from rich.console import Console

    from infra.settings import settings
    from jobs.dead_letter_queue import DeadLetterQueue

    console = Console(highlight=False, soft_wrap=True)
    queue = DeadLetterQueue(settings())
    places = _chosen(queue, ids, reason, consumer, since, until, everything)
    if not dry_run:
        queue.drop(places)
    for place in places:
        console.print(f"{place.id}: {'would drop' if dry_run else 'dropped'} {_what(place)}", markup=False)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="dlq")


def _chosen(
    queue: DeadLetterQueue,
    ids: list[str] | None,
    reason: str | None,
    consumer: str | None,
    since: datetime | None,
    until: datetime | None,
    everything: bool,
) -> list[LetterPlace]:
    """The open letters meant; without a choice nothing is, unless ``everything``."""
    wanted = _filter(ids, reason, consumer, since, until)
    if wanted.is_everything and not everything:
        raise typer.BadParameter("name letters by id, filter them, or say --all")
    marks = queue.handled()
    places = [place for place in queue.letters(wanted) if place.id not in marks]
    if missing := wanted.ids - {place.id for place in places}:
        done = sorted(f"{identity} ({marks[identity]})" for identity in missing & marks.keys())
        unknown = sorted(missing - marks.keys())
        raise typer.BadParameter(
            "; ".join(
                part
                for part in (
                    f"already handled: {', '.join(done)}" if done else "",
                    f"no such letter: {', '.join(unknown)}" if unknown else "",
                )
                if part
            )
        )
    return places


def _filter(
    ids: list[str] | None = None,
    reason: str | None = None,
    consumer: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> LetterFilter:
    from jobs.dead_letter_queue import LetterFilter

    def micros(time: datetime | None) -> int | None:
        return None if time is None else int(time.replace(tzinfo=UTC).timestamp() * 1_000_000)

    return LetterFilter(frozenset(ids or ()), reason, consumer, micros(since), micros(until))


def _one(places: Iterable[LetterPlace], identity: str) -> LetterPlace:
    for place in places:
        return place
    raise typer.BadParameter(f"no such letter: {identity}")


def _what(place: LetterPlace) -> str:
    letter = place.letter
    event = "" if letter.event_index < 0 else f", event {letter.event_index}"
    return f"{letter.consumer}, {letter.reason}: {letter.topic} {letter.partition}-{letter.offset}{event}"


def _time(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _hex_dump(data: bytes) -> str:
    lines = []
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"            {start:04x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines)
