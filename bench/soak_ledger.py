"""A soak of the ledger: transfers flow at full speed while every process is killed, and at the end all must be right.

Frames with all kinds of transfers go straight to Kafka (`bench.soak_ledger_load`), card payments through the API beside
them. While they flow, processes are killed with SIGKILL (`bench.soak`), all of them in turn, in an order, at moments
and for times away that follow from the seed; each is started again as an operator would. Then nothing is sent, and

- every transfer that Kafka or the API acknowledged has its results, one for each time it was sent;
- the outputs of the job equal a replay of the log, without a gap or a frame too many, and so does every row of Postgres
  and Cassandra (`jobs.verify`);
- per ledger debits equal credits, and no event left an account beyond its limit;
- the hash chain of ledger.events is whole.

The rate is that of the slowest part, since the load waits for job and sinks; how long a kill takes is part of it.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from api.clients import ClientStore
from bench.deployment import Deployment, Process, sinks
from bench.soak import Disturbance, Moments, Report, Say, Servers, SoakError, part_faults
from bench.soak_ledger_load import FRAME_TRANSFERS, MARK, FrameLoad, Gate
from infra.settings import Settings
from jobs.ledger_chain import verify_topic
from jobs.topic_reader import TopicReader
from jobs.verify import BacklogReader, verify, wait_drained
from models.load import ApiTarget, LoadProgress, Pace, load_api
from models.load_plan import LoadPlan, plan_load
from models.simulator import load_transactions
from pipelines.catalogue import LEDGER_RESULTS, LEDGER_SHARDS
from pipelines.codec import codec_of
from pipelines.wire import unwrap

__all__ = ["LedgerSoak", "SoakOptions", "ledger_deployment", "plan_kills"]

FIRST_KILL_AT: Final = 0.03
LAST_KILL_AT: Final = 0.97
"""Kills happen between these shares of the load."""
LOOK_SECONDS: Final = 0.25
SET_UP_SECONDS: Final = 600.0
DRAIN_SECONDS: Final = 240.0
"""The load never runs far ahead, so what takes longer has stopped."""
API_BATCH: Final = 50
API_CONNECTIONS: Final = 8
CUSTOMERS_SHORT: Final = 0.1
WANTED_RESULTS: Final = (
    "created", "exists", "exceeds_credits", "exceeds_debits", "linked_event_failed", "id_already_failed",
    "pending_transfer_not_found",
)  # fmt: skip
"""A soak that does not meet these has not sent what it should."""


def ledger_deployment(
    settings: Settings,
    directory: Path,
    *,
    api_workers: int = 2,
    parallelism: int = 1,
    more: Mapping[str, object] | None = None,
    say: Say = lambda what: None,
) -> Deployment:
    """The ledger as an operator runs it: job, API and both sinks."""
    processes = [Process("api", ("api", "--workers", str(api_workers))), *sinks(("postgres", "cassandra"))]
    return Deployment(settings, directory, processes, ["ledger"], parallelism=parallelism, more=more, say=say)


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """``transfers`` go as frames of 500 to Kafka; ``payments_per_second`` through the API beside them, for as long as
    those take. ``outage_seconds``: the longest time that a killed process stays away before it is started again."""

    transfers: int = 20_000_000
    kills: int = 60
    seed: int = 1
    outage_seconds: float = 5.0
    payments_per_second: float = 100.0
    parallelism: int = 1
    only: tuple[str, ...] = ()
    """Names of the targets to kill; all if empty."""

    @property
    def ahead_frames(self) -> int:
        """How far the load may run ahead of job and sinks: a quarter of it at most, so that it lasts through the kills,
        and some 200,000 transfers."""
        return max(16, min(400, self.transfers // FRAME_TRANSFERS // 4))

    @property
    def payments(self) -> int:
        """How many are planned at most."""
        return max(20_000, min(1_000_000, self.transfers // 20))


@dataclass(frozen=True, slots=True)
class PlannedKill:
    """Kill ``target`` when ``at`` transfers are acknowledged; start it again after ``outage_seconds``."""

    at: int
    target: str
    outage_seconds: float


def plan_kills(options: SoakOptions, targets: Sequence[str]) -> list[PlannedKill]:
    """Who is killed when: every target in turn, each turn in another order; a function of the seed."""
    chance = random.Random(options.seed)
    span = options.transfers * FIRST_KILL_AT, options.transfers * LAST_KILL_AT
    moments = sorted(int(chance.uniform(*span)) for _ in range(options.kills))
    order: list[str] = []
    while len(order) < options.kills:
        order += chance.sample(sorted(targets), len(targets))
    return [
        PlannedKill(at, target, chance.uniform(0, options.outage_seconds))
        for at, target in zip(moments, order, strict=False)
    ]


def plan_payments(most: int) -> LoadPlan:
    """The payments of this run; it ends when the transfers do."""
    return plan_load(load_transactions()[:most], time.time_ns() // 1000, CUSTOMERS_SHORT)


class _Payments(threading.Thread):
    """Card payments through the API, on schedule, until told to stop."""

    def __init__(self, plan: LoadPlan, target: ApiTarget, rate: float) -> None:
        super().__init__(name="payments", daemon=True)
        self.plan = plan
        self.progress = LoadProgress(len(plan.payments))
        self.error: BaseException | None = None
        self._target = target
        self._pace = Pace(rate=rate, batch=API_BATCH)

    def run(self) -> None:
        try:
            asyncio.run(load_api(self.plan, self._target, self._pace, self.progress))
        except BaseException as error:
            self.error = error

    def require_no_error(self) -> None:
        if self.error is not None:
            raise self.error


class _Watch(threading.Thread):
    """Looks how far job and sinks are, and opens the gate accordingly; while a store is away, it knows what it knew."""

    def __init__(self, config: Settings, load: FrameLoad, gate: Gate) -> None:
        super().__init__(name="watch", daemon=True)
        self.waiting_frames = 0
        self._config, self._load, self._gate = config, load, gate
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                with BacklogReader(self._config) as reader:
                    while not self._stopping.wait(LOOK_SECONDS):
                        sent = self._load.all_frames
                        backlog = reader.read()
                        self.waiting_frames = max(0, backlog.job) + max(backlog.sinks.values())
                        self._gate.seen(sent, self.waiting_frames)
            except Exception:  # whatever is away: it will be back
                self._stopping.wait(LOOK_SECONDS)

    def stop(self) -> None:
        self._stopping.set()
        if self.ident is not None:
            self.join(60)


@dataclass(slots=True)
class _Both:
    """The load as the engine sees it: it is over when the frames are; the payments then stop."""

    frames: FrameLoad
    payments: _Payments

    @property
    def progress(self) -> int:
        return self.frames.acknowledged_transfers

    @property
    def is_over(self) -> bool:
        return not self.frames.is_alive()

    def require_no_error(self) -> None:
        self.frames.require_no_error()
        self.payments.require_no_error()


class LedgerSoak:
    """One soak in an environment of its own (topics, database, keyspace), whose ``servers`` run. `run` it once."""

    def __init__(
        self, config: Settings, servers: Servers, options: SoakOptions, directory: Path, say: Say = lambda what: None
    ) -> None:
        self.config = config
        self.options = options
        self.report = Report()
        self.load: FrameLoad | None = None
        self.payments: _Payments | None = None
        self.watch: _Watch | None = None
        self.disturbance: Disturbance | None = None
        self._servers = servers
        self._directory = directory
        self._say = say

    def run(self) -> Report:
        """Start job, API and sinks, load, kill, wait, check. Raises `SoakError` and others when it could not go on."""
        begin = time.monotonic()
        with (
            ThreadPoolExecutor(1) as pool,
            ledger_deployment(self.config, self._directory, parallelism=self.options.parallelism, say=self._say)
            as deployment,
        ):  # fmt: skip
            plan = pool.submit(plan_payments, self.options.payments)
            self._disturb(deployment, plan.result())
            self._drain(deployment)
        self._check()
        self.report.figures["seconds, all"] = round(time.monotonic() - begin, 1)
        return self.report

    def _disturb(self, deployment: Deployment, plan: LoadPlan) -> None:
        settings = deployment.settings
        client, secret = ClientStore(settings.secrets_dir / "clients.json").add("soak", ["ledger:write"])
        target = ApiTarget(settings.api_url, client.client_id, secret, connections=API_CONNECTIONS)
        gate = Gate(self.options.ahead_frames)
        load = FrameLoad(self.config, self.options.transfers, self.options.seed, gate)
        payments = self.payments = _Payments(plan, target, self.options.payments_per_second)
        watch = self.watch = _Watch(self.config, load, gate)
        disturbance = self.disturbance = Disturbance(deployment, self._say)
        faults = part_faults(deployment, self._servers)
        if unknown := set(self.options.only) - set(faults):
            raise SoakError(f"nothing is called {', '.join(sorted(unknown))}; there are {', '.join(faults)}")
        kills = [
            (kill.at, replace(faults[kill.target], outage_seconds=kill.outage_seconds))
            for kill in plan_kills(self.options, self.options.only or list(faults))
        ]
        payments.start()
        try:
            self._await_set_up(payments)
            begin = time.monotonic()
            load.start()
            watch.start()
            self.load = load
            disturbance.run(_Both(load, payments), Moments(kills))
            seconds = time.monotonic() - begin
            payments.progress.stopping = True
            payments.join(300)
            if payments.is_alive():
                raise SoakError(f"the payments did not end: {payments.progress.as_json()}")
            payments.require_no_error()
        finally:
            load.stopping = payments.progress.stopping = True
            watch.stop()
        self.report.faults = disturbance.happened
        self.report.check("kills", self.options.kills, len(disturbance.happened))
        self.report.figures |= {
            "transfers": load.acknowledged_transfers,
            "payments through the API": payments.progress.acknowledged_events,
            "frames repeated": load.repeated_frames,
            "kills": len(disturbance.happened),
            "seconds of load": round(seconds, 1),
            "transfers/s": round(load.acknowledged_transfers / seconds),
        }

    def _await_set_up(self, payments: _Payments) -> None:
        """Until the payments' accounts are there and funded."""
        deadline = time.monotonic() + SET_UP_SECONDS
        while not payments.progress.started:
            payments.require_no_error()
            if time.monotonic() > deadline:
                raise SoakError(f"the payments' accounts are not there after {SET_UP_SECONDS:.0f} s: {self._directory}")
            time.sleep(0.05)

    def _drain(self, deployment: Deployment) -> None:
        begin = time.monotonic()
        backlog = wait_drained(self.config, DRAIN_SECONDS, lambda _: deployment.supervise())
        deployment.require_alive()
        self.report.figures["started again by the supervisor"] = deployment.restarts
        self.report.figures["seconds until all was applied"] = round(time.monotonic() - begin, 1)
        waiting = {"job": backlog.job, **backlog.sinks}
        self.report.check("frames still on their way", dict.fromkeys(waiting, 0), waiting)
        self._say(f"everything is applied {time.monotonic() - begin:.0f} s after the last frame")

    # --- what must be true now

    def _check(self) -> None:
        load, payments, result = self.load, self.payments, self.report
        assert load is not None
        assert payments is not None
        begin = time.monotonic()
        sent = load.frames * FRAME_TRANSFERS
        result.check("transfers acknowledged by Kafka", sent, load.acknowledged_transfers)
        self._say("reading the answers")
        answers = read_answers(self.config, load.frames, int(payments.plan.payments.run), len(payments.plan.payments))
        result.answers = answers.counts
        result.check("transfers without an answer", 0, int((answers.times == 0).sum()))
        again = load.repeated_frames * FRAME_TRANSFERS
        result.check("answers to transfers, repeats included", sent + again, int(answers.times.sum()))
        result.check(
            "kinds of answers", sorted(WANTED_RESULTS), sorted(set(WANTED_RESULTS) & set(answers.counts)),
            ", ".join(f"{name} {count:,}" for name, count in answers.counts.items()),
        )  # fmt: skip
        self._check_payments(payments.progress, answers)
        self._say("walking the hash chain")
        chains = verify_topic(self.config)
        result.check("hash chain: breaks", [], [str(chain.broken) for chain in chains if chain.broken is not None])
        result.figures["frames in the hash chain"] = sum(chain.frames for chain in chains)
        audit = verify(self.config, report=self._say)
        result.checks += audit.checks
        result.check("records that are no frames: set aside", load.bad_records, audit.figures["frames set aside"])
        result.figures |= {name: count for name, count in audit.figures.items() if name != "frames set aside"}
        result.figures["seconds of checking"] = round(time.monotonic() - begin, 1)

    def _check_payments(self, progress: LoadProgress, answers: Answers) -> None:
        """A client may give up while a server is away; then its payment was not acknowledged, and may or may not
        exist."""
        found = self.report
        sent, acknowledged = progress.sent_events, progress.acknowledged_events
        found.check("payments: acknowledged or given up", sent, acknowledged + progress.failed_events)
        given_up = acknowledged <= 0.9 * sent
        found.check("payments: a tenth or more given up", False, given_up, f"{progress.failed_events:,} of {sent:,}")
        strange = [why for why in progress.failures if not any(word in why for word in ("503", "409", "Connect"))]
        found.check("payments: refused for another reason than a kill", [], strange)
        first = answers.payments[progress.acknowledged]
        found.check("payments acknowledged, but without an answer", 0, int((first < 0).sum()))
        names = answers.symbols
        created, refused = (int((first == names.index(name)).sum()) for name in ("created", "exceeds_credits"))
        found.check("payments: created or not covered", acknowledged, created + refused)
        found.check("payments: some are not covered, most are", True, 0 < refused < acknowledged / 2, f"{refused:,}")


@dataclass(frozen=True, slots=True)
class Answers:
    """What ledger.results holds; repeated frames of it are read once."""

    symbols: Sequence[str]
    counts: dict[str, int]
    times: NDArray[np.int32]
    """How often each transfer of the load was answered; by shard, in the order of their ids."""
    payments: NDArray[np.int16]
    """Index of the first answer to each planned payment; -1 for none."""


def read_answers(config: Settings, frames: int, run: int, payments: int) -> Answers:
    """Reads the whole topic; ``frames`` were sent by the load, ``run`` and ``payments`` are those of the API's plan."""
    codec = codec_of(LEDGER_RESULTS.name)
    kind = codec.event_type("TransferResult")
    symbols = kind.field("result").symbols
    counts = np.zeros(len(symbols), np.int64)
    first = np.full(payments, -1, np.int16)
    times = []
    with TopicReader(config) as reader:
        for shard in range(LEDGER_SHARDS):
            answered = np.zeros(len(range(shard, frames, LEDGER_SHARDS)) * FRAME_TRANSFERS, np.int32)
            last = 0
            for record in reader.read(LEDGER_RESULTS, shard):
                frame = codec.decode(unwrap(record.value)[1])
                if frame.sequence <= last:
                    continue
                last = frame.sequence
                rows = frame.events.view(kind.dtype)
                rows = rows[rows["kind"] == kind.kind]
                counts += np.bincount(rows["result"], minlength=len(symbols))
                ours = rows["id_lo"][rows["id_hi"] == MARK].astype(np.int64) - 1
                np.add.at(answered, ours, 1)
                paid = rows[rows["id_hi"] == run]
                numbers = paid["id_lo"].astype(np.int64) - 1
                planned = numbers < payments  # the others are fundings
                # the first answer counts: a repeated command is answered again, with `exists`
                for number, result in zip(numbers[planned].tolist(), paid["result"][planned].tolist(), strict=True):
                    if first[number] < 0:
                        first[number] = result
            times.append(answered)
    named = {name: int(count) for name, count in zip(symbols, counts, strict=True) if count}
    return Answers(symbols, named, np.concatenate(times), first)
