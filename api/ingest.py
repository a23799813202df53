"""Writes: events from a body to Kafka, and the answer once Kafka has acknowledged all of them.

`Ingest` is what all systems' write routes share; `LedgerIngest` knows the ledger's events. A system says which shard an
event goes to, what cannot be routed, how its events are listed in an answer, and what its replies look like.

- One JSON event or an array is all or nothing: anything wrong is a 422 that lists every bad field.
- NDJSON and Avro are taken event by event: good ones are accepted, bad ones are listed. 202 when all were accepted,
  207 when some were, 422 when none was.
- Nothing is acknowledged before Kafka did, with all in-sync replicas. A 503 means that events may or may not be in
  the log: sending the same events again is safe, because the system applies an id once.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, Final

import msgspec
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from api.auth import Principal
from api.avro_files import container, ledger_answer_codec
from api.batching import Batcher, BufferFull, ChainTooLong, DeliveryError, Placed, Run, flag_bits, flags_words
from api.bodies import (
    BadEvent,
    BodyFormat,
    BodyReader,
    Limits,
    Parsed,
    accepts_avro,
    body_format,
    parse_json,
    read_avro,
    read_ndjson,
)
from api.chains import Chains, NoChains
from api.config import ApiSettings
from api.idempotency import IdempotencyStore, Reservation, StoredAnswer, parse_key
from api.metrics import count
from api.problems import Problem, problem_response
from api.rate_limit import Allowance, RateLimiter
from api.results import ResultReader, Waiter
from pipelines.catalogue import ALL_SHARDS, LEDGER_SHARDS
from pipelines.codec import FrameCodec
from pipelines.event_json import render_events
from pipelines.frames import Events, Rows

__all__ = ["Ingest", "LedgerIngest", "SentRun", "WriteRoute", "preferred_wait", "without"]

LISTED_EVENTS: Final = 100
LISTED_FRAMES: Final = 100
LOGGED_FRAMES: Final = 10
WAITED_EVENTS: Final = 5000
"""Most events of a request whose results `Prefer: wait` returns."""
REQUEST_EVENTS_IN_FLIGHT: Final = 20_000
"""Unacknowledged events of one bulk request; more of its body is read when some are acknowledged."""
BULK_PATIENCE_SECONDS: Final = 30.0
"""How long a bulk request waits for its rate limit or for room before it is answered 429 or 503."""
KEPT_STATUSES: Final = frozenset({200, 201, 202, 207, 422})
"""Answers that a repeat under the same Idempotency-Key gets again; others let the work be tried again."""


_Answers = list[tuple[int, Events]]
"""Per run that is waited for, in the order of `_Sent.waiting`: the sequence of the replies' frame, and its replies."""


@dataclass(frozen=True, slots=True)
class WriteRoute:
    """A route's path and its event types; ``implied`` when it takes one only. With ``implied_fields``, which the path
    gives, the body is one JSON object without them."""

    path: str
    event_types: tuple[str, ...]
    implied_fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def implied(self) -> str | None:
        return self.event_types[0] if len(self.event_types) == 1 else None


@dataclass(slots=True)
class SentRun:
    """A run on its way, where its events were in the body, and who waits for its results.

    ``counted`` tells which of its events count for the answer: one that goes to every shard counts once.
    """

    run: Run
    positions: list[int]
    waiter: Waiter | None
    counted: list[bool]


@dataclass(slots=True)
class _Sent:
    """What became of a request's events so far. ``waits`` while the results of all of them are wanted; ``wants_file``:
    as an Avro file, where the system has such."""

    position_name: str
    waits: bool
    wants_file: bool = False
    pending: deque[SentRun] = field(default_factory=deque)
    pending_events: int = 0
    waiting: list[SentRun] = field(default_factory=list)
    accepted: int = 0
    refused: int = 0
    frames: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""

    def summary(self) -> dict[str, Any]:
        document: dict[str, Any] = {"accepted": self.accepted, "refused": self.refused, "frames": self.frames}
        if self.accepted == len(self.events):
            document["events"] = self.events
        if self.refused:
            document["errors"] = self.errors
        return document


class Ingest(ABC):
    """The write routes of one system in one worker."""

    def __init__(
        self,
        config: ApiSettings,
        codec: FrameCodec,
        results_codec: FrameCodec,
        batcher: Batcher,
        results: ResultReader,
        limiter: RateLimiter,
        keys: IdempotencyStore,
    ) -> None:
        self._config = config
        self._codec = codec
        self._results_codec = results_codec
        self._batcher = batcher
        self._results = results
        self._limiter = limiter
        self._keys = keys
        self._limits = Limits(
            body_bytes=config.max_body_bytes,
            bulk_bytes=config.max_bulk_bytes,
            bulk_events=config.max_bulk_events,
            line_bytes=config.max_line_bytes,
            idle_seconds=config.idle_seconds,
        )

    @abstractmethod
    def _shards(self, events: Events) -> NDArray[np.int64]:
        """The shard of each event, or `ALL_SHARDS`; shape (n,)."""

    @abstractmethod
    def _described(self, events: Events) -> list[dict[str, Any]]:
        """What the answer says of each event besides its position and shard."""

    @abstractmethod
    def _results_of(self, entry: SentRun, sequence: int, replies: Events) -> list[dict[str, Any]]:
        """The replies to a run, each with its position in the body."""

    @abstractmethod
    def _verdict(self, results: list[dict[str, Any]], sent: _Sent, is_array: bool) -> tuple[int, dict[str, str]]:
        """Status (200 or 201) and headers of an answer with these results."""

    def _results_file(self, sent: _Sent, answers: _Answers) -> tuple[int, bytes] | None:
        """Status (200 or 201) and Avro object container file of the replies; None where a system has no such file."""
        return None

    def _routable(self, parsed: Parsed) -> Parsed:
        """Refuse what does not say where it goes."""
        return parsed

    async def _admit(self, parsed: Parsed) -> None:  # noqa: B027 - most systems limit nothing else
        """Charge what a system limits besides the client's events; raises `Problem` 429."""

    async def handle(self, request: web.Request, route: WriteRoute, principal: Principal) -> web.Response:
        """Answer a write of ``principal``, once per Idempotency-Key."""
        kind = body_format(request.headers.get("Content-Type", ""), request.headers.get("Content-Encoding"))
        if route.implied_fields and kind != "json":
            raise Problem("unsupported-media-type", "This route takes one JSON object.", supported=["application/json"])
        key = parse_key(request.headers.get("Idempotency-Key"))
        wait = preferred_wait(request.headers.getall("Prefer", []), self._config.wait_seconds)
        fingerprint = hashlib.sha256(request.query_string.encode())
        body = BodyReader(
            request.content,
            limit=self._limits.body_bytes if kind == "json" else self._limits.bulk_bytes,
            idle_seconds=self._limits.idle_seconds,
            seen=fingerprint.update,
        )
        reservation = await self._keys.reserve(principal.client_id, request.path, key)
        if reservation.answer is not None:
            await body.skip()
            return self._replayed(reservation.answer, fingerprint.hexdigest())
        response: web.Response | None = None
        try:
            try:
                response = await self._accept(body, kind, route, principal, request, wait)
            except Problem as problem:
                response = problem_response(problem, request["trace_id"])
            await self._finish(reservation, response, fingerprint.hexdigest())
        finally:
            if response is None:
                await asyncio.shield(reservation.release())
        if not reservation.stored:
            response.headers["Idempotency-Stored"] = "false"
        return response

    def put(self, events: Events) -> _Sent:
        """Put events that came another way than as a body on their lanes, all or none; `results_of` awaits them. Raises
        `Problem`. The caller has charged for them."""
        parsed = Parsed(events, list(range(len(events))), [])
        parsed = self._chains().feed(self._routable(parsed), last=True)
        if parsed.bad:
            bad = parsed.bad[0]
            errors = [{**error, "pointer": f"/{bad.position}{error['pointer']}"} for error in bad.errors]
            raise Problem("invalid-event", f"Event {bad.position}: {errors[0]['detail']}.", errors=errors)
        sent = _Sent("index", waits=self._results.ready)
        self._submit(parsed, sent)
        return sent

    async def results_of(self, sent: _Sent, deadline: float) -> list[dict[str, Any]] | None:
        """The results in order; None when they did not come by ``deadline`` (the event loop's time). Raises `Problem`
        when Kafka did not acknowledge."""
        try:
            await self._settle(sent)
            if sent.failure:
                raise _unavailable(sent)
            answers = await self._await_answers(sent, deadline) if sent.waits else None
            return None if answers is None else self._results_in_order(sent, answers)
        finally:
            for waiting in sent.waiting:
                if waiting.waiter is not None:
                    self._results.forget(waiting.waiter)

    async def _finish(self, reservation: Reservation, response: web.Response, fingerprint: str) -> None:
        if response.status not in KEPT_STATUSES:
            await reservation.release()
            return
        assert isinstance(response.body, bytes)
        kept = {name: value for name, value in response.headers.items() if name in ("Location", "Preference-Applied")}
        await reservation.keep(StoredAnswer(fingerprint, response.status, response.content_type, response.body, kept))

    @staticmethod
    def _replayed(answer: StoredAnswer, fingerprint: str) -> web.Response:
        if answer.fingerprint != fingerprint:
            raise Problem(
                "idempotency-key-reused",
                "This Idempotency-Key was used with another body; use a new key for a new request.",
            )
        count("streambank_api_idempotency_replayed")
        return web.Response(
            status=answer.status,
            body=answer.body,
            content_type=answer.content_type,
            headers={**answer.headers, "Idempotency-Replayed": "true"},
        )

    async def _accept(
        self,
        body: BodyReader,
        kind: BodyFormat,
        route: WriteRoute,
        principal: Principal,
        request: web.Request,
        wait: float,
    ) -> web.Response:
        sent = _Sent(
            {"json": "index", "ndjson": "line", "avro": "record"}[kind], waits=wait > 0 and self._results.ready,
            wants_file=accepts_avro(request.headers.getall("Accept", [])),
        )  # fmt: skip
        deadline = asyncio.get_running_loop().time() + wait
        try:
            if kind == "json":
                allowance, is_array = await self._accept_json(body, route, principal, sent)
            else:
                allowance, is_array = await self._accept_bulk(body, kind, route, principal, sent), True
            return await self._answer(sent, allowance, is_array, wait, deadline)
        finally:
            request["logged"] = {
                "accepted": sent.accepted,
                "refused": sent.refused,
                "frames": [frame["trace"] for frame in sent.frames[:LOGGED_FRAMES]],
            }
            for waiting in sent.waiting:
                if waiting.waiter is not None:
                    self._results.forget(waiting.waiter)

    async def _answer(
        self, sent: _Sent, allowance: Allowance, is_array: bool, wait: float, deadline: float
    ) -> web.Response:
        headers = allowance.headers()
        if sent.accepted == 0:
            raise Problem("invalid-event", "No event of the body was accepted.", headers=headers,
                          errors=sent.errors, accepted=0, refused=sent.refused)  # fmt: skip
        document = sent.summary()
        status = 207 if sent.refused else 202
        if sent.waits:
            answers = await self._await_answers(sent, deadline)
            count("streambank_api_waits", "late" if answers is None else "answered")
            if answers is not None:
                headers["Preference-Applied"] = f"wait={wait:g}"
                if sent.wants_file and is_array and not sent.refused and (file := self._results_file(sent, answers)):
                    return web.Response(status=file[0], body=file[1], content_type="application/avro", headers=headers)
                results = document["results"] = self._results_in_order(sent, answers)
                status_of_results, more = self._verdict(results, sent, is_array)
                headers |= more
                if not sent.refused:
                    status = status_of_results
        return web.Response(
            status=status, body=msgspec.json.encode(document), content_type="application/json", headers=headers
        )

    async def _accept_json(
        self, body: BodyReader, route: WriteRoute, principal: Principal, sent: _Sent
    ) -> tuple[Allowance, bool]:
        parsed, is_array = parse_json(
            await body.whole(), self._codec, route.implied, self._limits.bulk_events, route.implied_fields
        )
        parsed = self._chains().feed(self._routable(parsed), last=True)
        if parsed.bad:
            count("streambank_api_events_refused", by=len(parsed.bad))
            listed = parsed.bad[: self._config.max_reported_errors]
            raise Problem(
                "invalid-event",
                f"{len(parsed.bad)} of {len(parsed.bad) + len(parsed.positions)} events do not fit; none was accepted.",
                errors=[
                    {**error, "pointer": f"/{bad.position}{error['pointer']}" if is_array else error["pointer"]}
                    for bad in listed
                    for error in bad.errors
                ],
            )
        allowance = await self._charge(principal, parsed)
        self._submit(parsed, sent)
        await self._settle(sent)
        if sent.failure:
            raise _unavailable(sent)
        return allowance, is_array

    async def _accept_bulk(
        self, body: BodyReader, kind: BodyFormat, route: WriteRoute, principal: Principal, sent: _Sent
    ) -> Allowance:
        allowance: Allowance | None = None
        try:
            async for parsed in self._chunks(body, kind, route):
                self._report(sent, parsed.bad)
                if not parsed.positions:
                    continue
                allowance = await self._charge_patiently(principal, parsed)
                try:
                    await self._batcher.room(BULK_PATIENCE_SECONDS)
                except BufferFull as error:
                    raise _overloaded(error) from error
                self._submit(parsed, sent)
                await self._settle(sent, REQUEST_EVENTS_IN_FLIGHT)
                if sent.failure:
                    break
        except Problem as problem:
            await self._settle(sent)
            problem.members = {**sent.summary(), **problem.members}
            raise
        await self._settle(sent)
        if sent.failure:
            raise _unavailable(sent)
        return allowance or await self._limiter.charge(principal.client_id, 1)

    async def _chunks(self, body: BodyReader, kind: BodyFormat, route: WriteRoute) -> AsyncIterator[Parsed]:
        chains = self._chains()
        if kind == "ndjson":
            source = read_ndjson(body, self._codec, route.implied, self._limits)
        else:
            source = read_avro(body, self._codec, route.event_types, self._limits)
        empty = True
        async for parsed in source:
            empty = False
            yield chains.feed(self._routable(parsed))
            if chains.held_events > self._batcher.frame_events:
                raise Problem("chain-too-long", f"A linked chain has more than {self._batcher.frame_events} events.")
        if empty:
            raise Problem("empty-body", "The body holds no event.")
        rest = chains.finish()
        if rest.positions or rest.bad:
            yield rest

    def _chains(self) -> Chains | NoChains:
        return Chains(self._codec, self._batcher.linked, self._shards)

    def _submit(self, parsed: Parsed, sent: _Sent) -> None:
        """Put a chunk's events on their lanes, all or none; `_settle` awaits them."""
        shards = self._shards(parsed.events)
        everywhere = shards == ALL_SHARDS
        targets = range(self._batcher.shards) if everywhere.any() else np.unique(shards).tolist()
        positions = np.array(parsed.positions, np.int64)
        sent.waits = sent.waits and sent.accepted + sent.pending_events + len(positions) <= WAITED_EVENTS
        planned: list[SentRun] = []
        for shard in targets:
            here = (shards == shard) | everywhere
            counted = (~everywhere[here] | (shard == 0)).tolist()
            if not counted:
                continue
            mine = parsed.events if here.all() else Events(parsed.events.rows[here], parsed.events.heap)
            try:
                runs = self._batcher.runs(shard, mine)
            except ChainTooLong as error:
                raise Problem("chain-too-long", f"{error}.") from error
            at = positions[here].tolist()
            start = 0
            for run in runs:
                stop = start + len(run.events)
                waiter = None
                if sent.waits:
                    waiter = self._results.waiter()
                    run.expect = partial(self._results.expect, waiter)
                planned.append(SentRun(run, at[start:stop], waiter, counted[start:stop]))
                start = stop
        try:
            self._batcher.submit([entry.run for entry in planned])
        except BufferFull as error:
            raise _overloaded(error) from error
        sent.pending += planned
        sent.pending_events += sum(len(entry.positions) for entry in planned)
        sent.waiting += [entry for entry in planned if entry.waiter is not None]

    async def _settle(self, sent: _Sent, events: int = 0) -> None:
        """Await Kafka's acknowledgements until at most ``events`` events are without one."""
        while sent.pending_events > events:
            entry = sent.pending[0]
            try:
                placed = await asyncio.shield(entry.run.placed)
            except DeliveryError as error:
                sent.failure = str(error)
            else:
                self._enter(sent, entry, placed)
            sent.pending.popleft()
            sent.pending_events -= len(entry.positions)

    def _enter(self, sent: _Sent, entry: SentRun, placed: Placed) -> None:
        sent.accepted += sum(entry.counted)
        if len(sent.frames) < LISTED_FRAMES:
            sent.frames.append(
                {"shard": placed.shard, "offset": placed.offset, "events": len(entry.positions), "trace": placed.trace}
            )
        if sent.accepted <= LISTED_EVENTS:
            described = self._described(entry.run.events)
            for position, description, counted in zip(entry.positions, described, entry.counted, strict=True):
                if counted:
                    sent.events.append({sent.position_name: position, **description, "shard": placed.shard})
            sent.events.sort(key=lambda event: int(event[sent.position_name]))

    async def _await_answers(self, sent: _Sent, deadline: float) -> _Answers | None:
        """The replies to all runs, or None when not all came in time."""
        try:
            async with asyncio.timeout_at(deadline):
                return [await entry.waiter.answer for entry in sent.waiting if entry.waiter is not None]
        except TimeoutError:
            return None

    def _results_in_order(self, sent: _Sent, answers: _Answers) -> list[dict[str, Any]]:
        """The results of all events in the body's order."""
        results: list[dict[str, Any]] = []
        for entry, (sequence, events) in zip(sent.waiting, answers, strict=True):
            results += self._results_of(entry, sequence, events)
        for result in results:
            result[sent.position_name] = result.pop("position")
        if len(answers) > 1:
            results.sort(key=itemgetter(sent.position_name))
        return results

    async def _charge(self, principal: Principal, parsed: Parsed) -> Allowance:
        allowance = await self._limiter.charge(principal.client_id, len(parsed.positions))
        await self._admit(parsed)
        return allowance

    async def _charge_patiently(self, principal: Principal, parsed: Parsed) -> Allowance:
        """Charge a chunk; a body that is ahead of its limit is read more slowly rather than refused half-way."""
        patience = BULK_PATIENCE_SECONDS
        while True:
            try:
                return await self._charge(principal, parsed)
            except Problem as problem:
                wait = float(problem.headers.get("Retry-After", "60"))
                if wait > patience:
                    raise
                patience -= wait
                await asyncio.sleep(wait)

    def _report(self, sent: _Sent, bad: list[BadEvent]) -> None:
        if not bad:
            return
        count("streambank_api_events_refused", by=len(bad))
        sent.refused += len(bad)
        for event in bad:
            if len(sent.errors) >= self._config.max_reported_errors:
                break
            sent.errors.append({sent.position_name: event.position, "errors": list(event.errors)})


class LedgerIngest(Ingest):
    """Accounts and transfers. An event's shard is its ledger's; a linked chain stays together."""

    def __init__(
        self,
        config: ApiSettings,
        codec: FrameCodec,
        results_codec: FrameCodec,
        batcher: Batcher,
        results: ResultReader,
        limiter: RateLimiter,
        keys: IdempotencyStore,
    ) -> None:
        super().__init__(config, codec, results_codec, batcher, results, limiter, keys)
        self._ledger_words = {event_type.kind: event_type.field("ledger").word for event_type in codec.event_types}
        self._id_words = {event_type.kind: event_type.field("id").word for event_type in codec.event_types}
        self._flags_words = flags_words(codec)
        self._closes_pending = {
            kind: bit | flag_bits(codec, "void_pending_transfer")[kind]
            for kind, bit in flag_bits(codec, "post_pending_transfer").items()
        }

    def _routable(self, parsed: Parsed) -> Parsed:
        """A post or void may leave the ledger out where there is one shard; here the ledger says which shard."""
        rows = parsed.events.rows
        lost = np.zeros(len(rows), np.bool_)
        for kind, bits in self._closes_pending.items():
            lost |= (
                (rows[:, 0] == kind)
                & ((rows[:, self._flags_words[kind]] & bits) != 0)
                & (rows[:, self._ledger_words[kind]] == 0)
            )
        return without(
            parsed, lost, self._batcher.linked,
            {"pointer": "/ledger", "detail": "must name the pending transfer's ledger, which finds its shard"},
        )  # fmt: skip

    def _ledgers(self, rows: Rows) -> NDArray[np.int64]:
        ledgers = np.zeros(len(rows), np.int64)
        for kind, word in self._ledger_words.items():
            of_kind = rows[:, 0] == kind
            ledgers[of_kind] = rows[of_kind, word]
        return ledgers

    def _shards(self, events: Events) -> NDArray[np.int64]:
        shards: NDArray[np.int64] = self._ledgers(events.rows) % LEDGER_SHARDS
        return shards

    def _described(self, events: Events) -> list[dict[str, Any]]:
        ledgers = self._ledgers(events.rows).tolist()
        return [
            {"id": record, "ledger": ledger} for record, ledger in zip(self._ids(events.rows), ledgers, strict=True)
        ]

    def _ids(self, rows: Rows) -> list[int | str]:
        ids: list[int | str] = []
        for row in rows.tolist():
            word = self._id_words[row[0]]
            value = (row[word] & 2**64 - 1) | (row[word + 1] & 2**64 - 1) << 64
            ids.append(value if value <= 2**53 else str(value))
        return ids

    def _results_of(self, entry: SentRun, sequence: int, replies: Events) -> list[dict[str, Any]]:
        return [
            {"position": position, **record, "shard": entry.run.shard, "sequence": sequence}
            for position, record in zip(entry.positions, render_events(self._results_codec, replies), strict=True)
        ]

    def _results_file(self, sent: _Sent, answers: _Answers) -> tuple[int, bytes]:
        codec = ledger_answer_codec()
        rows = codec.new_rows(sum(len(replies) for _, replies in answers))
        results = rows.view(codec.event_types[0].dtype)[:, 0]  # both kinds have the same fields
        first = 1 if sent.position_name == "line" else 0
        start = 0
        for entry, (sequence, replies) in zip(sent.waiting, answers, strict=True):
            stop = start + len(replies)
            rows[start:stop, : replies.rows.shape[1]] = replies.rows
            results["record"][start:stop] = np.array(entry.positions) - first
            results["shard"][start:stop] = entry.run.shard
            results["sequence"][start:stop] = sequence
            start = stop
        if len(answers) > 1:
            rows = rows[np.argsort(results["record"])]
        status = 200 if results["result"].any() else 201  # 0 is `created`
        return status, container(codec, rows)

    def _verdict(self, results: list[dict[str, Any]], sent: _Sent, is_array: bool) -> tuple[int, dict[str, str]]:
        if not all(result["result"] == "created" for result in results):
            return 200, {}
        if is_array or sent.refused:
            return 201, {}
        what = "accounts" if results[0]["type"] == "AccountResult" else "transfers"
        return 201, {"Location": f"/v1/{what}/{results[0]['id']}?ledger={sent.events[0]['ledger']}"}


def preferred_wait(headers: list[str], limit: int) -> float:
    """Seconds of ``wait`` in Prefer headers (RFC 7240), at most ``limit``; 0 without, or when it is no number."""
    for preference in ",".join(headers).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            text = value.strip().strip('"')
            return float(min(int(text), limit)) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0
    return 0.0


def without(parsed: Parsed, refused: NDArray[np.bool_], linked: Any, error: dict[str, Any]) -> Parsed:
    """A chunk less its ``refused`` events, which are listed as bad with ``error``."""
    if not refused.any():
        return parsed
    is_linked = linked(parsed.events.rows)
    bad = [
        BadEvent(parsed.positions[index], (error,), bool(is_linked[index]))
        for index in np.flatnonzero(refused).tolist()
    ]
    return Parsed(
        Events(parsed.events.rows[~refused], parsed.events.heap),
        [parsed.positions[index] for index in np.flatnonzero(~refused).tolist()],
        sorted([*parsed.bad, *bad], key=lambda event: event.position),
    )


def _overloaded(error: BufferFull) -> Problem:
    return Problem("overloaded", f"{error}.", retry_after=1)


def _unavailable(sent: _Sent) -> Problem:
    members = sent.summary()
    members.pop("events", None)
    return Problem(
        "log-unavailable",
        f"Kafka did not acknowledge in time ({sent.failure}); {sent.accepted} events are known to be accepted.",
        retry_after=2,
        **members,
    )
