"""Trading end to end: Kafka -> PyFlink matching job -> Kafka, and from an order's gRPC message to its report.

Throughput works off a backlog of the interleaved mix (see `bench.matching_streams`), the same in every shard, with
journaled state and checkpoints on, at parallelism 1; the ceiling is a plain librdkafka loop over the same frames, in
the same run. The reports must be those of the kernel in one process.

Order entry is open loop: orders leave on schedule over several OrderStreams, whatever the answers do, and what counts
is the time from when an order was due to its NEW report at the client. A stream sends what came due every
`GATHER_SECONDS`, which the latency contains. API, job, broker and client share the machine: the system's counters tell
what each of them spends on an order, and the topics in how many frames it travels. A minute of traffic comes first, in
which the JVMs compile.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import numpy as np
import psutil
import uvloop

from api.clients import ClientStore
from api.proto import trading_pb2 as pb
from api.proto.trading_pb2_grpc import TradingServiceStub
from bench.flink import (
    BenchError,
    bench_environment,
    plain_loop,
    produce,
    read_topic,
    running_job,
    steady_rate,
    wait_records,
)
from bench.matching_streams import command_rows, interleaved_stream
from bench.report import Measurement
from infra.settings import Settings
from infra.stack.stack import Stack
from jobs.topic_reader import TopicReader
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_MARKET_DATA, MATCHING_REPORTS, MATCHING_SHARDS
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from pipelines.matching.kernel import MatchingKernel
from pipelines.wire import unwrap, wrap

__all__ = ["measure", "order_entry", "throughput"]

FRAME_EVENTS: Final = 500
MESSAGES_PER_SHARD: Final = 2_000_000
ORDERS_PER_SECOND: Final = 2_000
STREAMS: Final = 4
GATHER_SECONDS: Final = 0.005
"""From one message of a stream to its next."""
SYMBOLS: Final = 16
WARM_UP_SECONDS: Final = 60.0
SECONDS: Final = 20.0
START_SECONDS: Final = 90.0
ANSWER_SECONDS: Final = 60.0
UNARY_SECONDS: Final = 10.0

SERVERS: Final = ("kafka", "flink", "valkey")
PASSED: Final = (MATCHING_COMMANDS, MATCHING_REPORTS, MATCHING_MARKET_DATA)

Delays = np.ndarray[Any, np.dtype[np.float64]]


def measure(settings: Settings) -> list[Measurement]:
    """Latency first, then throughput, whose gigabytes would still keep the disk busy."""
    return [*order_entry(settings), *throughput(settings)]


def throughput(
    settings: Settings, *, messages: int = MESSAGES_PER_SHARD, options: Mapping[str, str] | None = None
) -> list[Measurement]:
    """Messages per second of the matching job and of the plain loop."""
    codec = codec_of(MATCHING_COMMANDS.name)
    stream = command_rows(interleaved_stream(messages)[0], accounts=1_000)
    frames = [
        Events(stream.rows[first : first + FRAME_EVENTS], stream.heap)
        for first in range(0, len(stream.rows), FRAME_EVENTS)
    ]
    with bench_environment(settings) as (environment, ids):
        schema_id = ids[MATCHING_COMMANDS.name]
        backlog = [
            (shard, wrap(schema_id, codec.encode(_frame(shard, number, events))))
            for number, events in enumerate(frames)
            for shard in range(MATCHING_SHARDS)
        ]
        produce(environment, backlog, MATCHING_COMMANDS.name)
        with running_job(environment, options or {}, "matching"):
            wait_records(environment, MATCHING_REPORTS.name, len(backlog))
        reports = read_topic(environment, MATCHING_REPORTS.name)
        job_rate = steady_rate(reports) * FRAME_EVENTS
        check = _check([value for _, value in reports], frames)
        loop_rate = plain_loop(environment, len(backlog), MATCHING_COMMANDS.name) * FRAME_EVENTS
    return [
        Measurement(
            "Kafka -> PyFlink matching -> Kafka",
            round(job_rate),
            "messages/s",
            baseline=round(loop_rate),
            baseline_name="librdkafka consume/produce loop on the same frames",
            ratio=round(job_rate / loop_rate, 3),
            goal=">= 1,000,000/s",
            met=job_rate >= 1_000_000,
            check=check,
            detail={
                "messages": len(backlog) * FRAME_EVENTS,
                "frame_events": FRAME_EVENTS,
                "command_frame_bytes": len(backlog[-1][1]),
                "options": dict(options or {}),
            },
        )
    ]


def _frame(shard: int, number: int, events: Events) -> Frame:
    return Frame(
        MATCHING_COMMANDS.name, shard, 0, 1_700_000_000_000_000 + number, f"00-{number:032x}-{1:016x}-01", events
    )


def _check(values: list[bytes], frames: list[Events]) -> str:
    """Every shard's reports are those of the kernel in this process."""
    codec, kernel = codec_of(MATCHING_REPORTS.name), MatchingKernel()
    found: dict[tuple[int, int], np.ndarray[Any, np.dtype[np.int64]]] = {}
    for value in values:
        frame = codec.decode(unwrap(value)[1])
        found.setdefault((frame.shard, frame.sequence), _numbers(frame.events))
    for number, events in enumerate(frames):
        outputs = [output for output in kernel.apply(_frame(0, number, events)) if output.topic == codec.topic]
        if len(outputs) != 1:
            raise BenchError(f"frame {number} has {len(outputs)} frames of reports; use smaller frames")
        wanted = _numbers(outputs[0].events)
        for shard in range(MATCHING_SHARDS):
            if not np.array_equal(found.get((shard, number + 1)), wanted):  # type: ignore[arg-type]
                raise BenchError(f"shard {shard}, report frame {number + 1} is not the kernel's")
    return f"{len(found):,} report frames equal the kernel's in process"


def _numbers(events: Events) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The rows without their texts, whose words depend on the heap."""
    codec = codec_of(MATCHING_REPORTS.name)
    rows = events.rows.copy()
    for kind in codec.event_types:
        for field in kind.fields:
            if field.storage == "string":
                rows[rows[:, 0] == kind.kind, field.word] = 0
    return rows


def order_entry(
    settings: Settings,
    *,
    seconds: float = SECONDS,
    per_second: int = ORDERS_PER_SECOND,
    warm_up: float = WARM_UP_SECONDS,
) -> list[Measurement]:
    """p50, p99 and p99.9 from when an order was due to its NEW report, in milliseconds, and what an order costs; beside
    it, orders by unary calls at a tenth of the rate."""
    streamed, few = int((warm_up + seconds) * per_second), per_second // 10
    with (
        bench_environment(settings) as (environment, _),
        running_job(environment, {}, "matching"),
        _running_api(environment) as (address, token, api),
    ):
        spent = _Spent(settings, environment, api)
        delays = uvloop.run(_streams(address, token, streamed, per_second, warm_up, spent))
        first = int(warm_up * per_second)
        found = _latency(f"Order entry gRPC -> report at {per_second:,} orders/s", delays, first, 30, spent)
        spent.begin()
        single = uvloop.run(_calls(address, token, streamed + 1, int(UNARY_SECONDS * few), few))
        spent.end()
        return found + _latency(f"Order entry by unary calls at {few:,} orders/s", single, 0, None, spent)


class _Spent:
    """CPU time of everything that an order passes, by process, and frames of the topics, from `begin` to `end`."""

    def __init__(self, servers: Settings, environment: Settings, api: int) -> None:
        self._servers = Stack(servers, only=SERVERS).servers
        self._environment = environment
        self._api = psutil.Process(api)
        self._before = self._after = self._read()

    def begin(self) -> None:
        self._before = self._read()

    def end(self) -> None:
        self._after = self._read()

    def figures(self, orders: int) -> dict[str, Any]:
        """What ``orders`` took in that time."""
        (begun, cpu, frames), (ended, cpu_after, frames_after) = self._before, self._after
        used = {name: cpu_after[name] - cpu.get(name, 0.0) for name in cpu_after}
        return {
            "cpu_ms_per_order": {name: round(seconds / orders * 1000, 3) for name, seconds in used.items()},
            "cores": {name: round(seconds / (ended - begun), 2) for name, seconds in used.items()},
            "frames_per_order": {name: round((end - frames[name]) / orders, 3) for name, end in frames_after.items()},
            "load_average": os.getloadavg(),
        }

    def _read(self) -> tuple[float, dict[str, float], dict[str, int]]:
        spent = {one.name: one.cpu_seconds() for server in self._servers for one in server.processes()}
        for name, members in (("api", [self._api, *self._api.children()]), ("client", [psutil.Process()])):
            spent[name] = sum(used.user + used.system for used in (member.cpu_times() for member in members))
        with TopicReader(self._environment) as reader:
            return time.monotonic(), spent, {topic.name: sum(reader.ends(topic)) for topic in PASSED}


def _latency(name: str, delays: Delays, first: int, goal: float | None, spent: _Spent) -> list[Measurement]:
    """Of the orders from ``first`` on, which is when ``spent`` began."""
    if np.isnan(delays).any():
        raise BenchError(f"{name}: {int(np.isnan(delays).sum())} of {len(delays)} orders had no report")
    steady = delays[first:]
    p50, p99, p999 = (round(float(np.quantile(steady, q)) * 1000, 1) for q in (0.5, 0.99, 0.999))
    figures = spent.figures(len(steady))
    detail = {"orders": len(steady), "worst_ms": round(float(steady.max()) * 1000, 1), **figures}
    check = f"{len(delays):,} orders, each with its report"
    goals: dict[str, Any] = {} if goal is None else {"goal": f"<= {goal:.0f} ms", "met": p99 <= goal}
    used = sorted(figures["cpu_ms_per_order"].items(), key=lambda item: -item[1])
    return [
        Measurement(f"{name}, p50", p50, "ms", check=check, detail=detail),
        Measurement(f"{name}, p99", p99, "ms", check=check, detail=detail, **goals),
        Measurement(f"{name}, p99.9", p999, "ms", check=check, detail=detail),
        Measurement(
            f"{name}, CPU of an order", round(sum(amount for _, amount in used), 3), "ms",
            check=", ".join(f"{process} {amount:.3f}" for process, amount in used),
        ),
    ]  # fmt: skip


@contextmanager
def _running_api(environment: Settings) -> Iterator[tuple[str, str, int]]:
    """One API worker with gRPC: its address, a token and the parent's process id."""
    http_port, grpc_port = _free_port(), _free_port()
    with tempfile.TemporaryDirectory() as scratch:
        own = environment.model_copy(
            update={
                "data_dir": Path(scratch),
                "api_port": http_port,
                "producer_keys_file": str(environment.producer_keys_path),
            }
        )
        variables = own.variables()
        limits = {"STREAMBANK_API_TOKEN_SECONDS": "3600", "STREAMBANK_API_WORKERS": "1",
                  "STREAMBANK_API_GRPC_PORT": str(grpc_port)}  # fmt: skip
        client = ClientStore(own.secrets_dir / "clients.json").add("bench", ["orders:write"], accounts=["*"])
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("streambank")), "api"],
            env={**os.environ, **variables, **limits}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_ready(own.api_url)
            answer = httpx.post(
                f"{own.api_url}/oauth/token",
                data={"grant_type": "client_credentials"},
                auth=(client[0].client_id, client[1]),
                timeout=20,
            )
            yield f"{own.host}:{grpc_port}", str(answer.raise_for_status().json()["access_token"]), process.pid
        finally:
            process.terminate()
            process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/ready", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise BenchError(f"the API was not ready within {START_SECONDS:.0f} s")


async def _streams(
    address: str, token: str, orders: int, per_second: int, warm_up: float, spent: _Spent
) -> Delays:  # fmt: skip
    """The delay of each order's first report behind the time when it was due over OrderStreams, in seconds; NaN where
    none came. ``spent`` begins after ``warm_up`` seconds and ends with the last report."""
    delays = np.full(orders, np.nan)
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = TradingServiceStub(channel)  # type: ignore[no-untyped-call]
        # the first order of a job's life pays for compiling; it is not part of the plan
        await stub.PlaceOrder(_order(orders), timeout=START_SECONDS, metadata=metadata)
        start = time.perf_counter() + 1.0

        async def send(first: int, call: Any) -> None:
            number = first
            while number < orders:
                pause = start + number / per_second - time.perf_counter()
                await asyncio.sleep(max(pause, GATHER_SECONDS))
                due = min(orders, int((time.perf_counter() - start) * per_second) + 1)
                numbers = range(number, max(due, number + 1), STREAMS)
                await call.write(
                    pb.OrderRequests(requests=[pb.OrderRequest(request_id=n + 1, place=_order(n)) for n in numbers])
                )
                number = numbers[-1] + STREAMS
            await call.done_writing()

        async def one(first: int) -> None:
            call = stub.OrderStream(metadata=metadata)
            sending = asyncio.create_task(send(first, call))
            async for message in call:
                now = time.perf_counter()
                for event in message.events:
                    number = event.request_id - 1
                    if event.WhichOneof("event") == "refusal":
                        raise BenchError(f"order {number}: {event.refusal.detail}")
                    if number >= 0 and np.isnan(delays[number]):
                        delays[number] = now - (start + number / per_second)
            await sending

        async def mark() -> None:
            await asyncio.sleep(start + warm_up - time.perf_counter())
            await asyncio.to_thread(spent.begin)

        async with asyncio.timeout(orders / per_second + ANSWER_SECONDS):
            await asyncio.gather(mark(), *(one(number) for number in range(STREAMS)))
            await asyncio.to_thread(spent.end)
    return delays


async def _calls(address: str, token: str, first: int, orders: int, per_second: int) -> Delays:
    """The same for one PlaceOrder each; the orders are numbered from ``first``."""
    delays = np.full(orders, np.nan)
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = TradingServiceStub(channel)  # type: ignore[no-untyped-call]
        start = time.perf_counter() + 1.0

        async def one(number: int) -> None:
            due = start + number / per_second
            await asyncio.sleep(due - time.perf_counter())
            response = await stub.PlaceOrder(_order(first + number), timeout=ANSWER_SECONDS, metadata=metadata)
            if response.reports:
                delays[number] = time.perf_counter() - due

        await asyncio.gather(*(one(number) for number in range(orders)))
    return delays


def _order(number: int) -> Any:
    """Each second order of a pair takes the first, so that the book stays small."""
    return pb.PlaceOrderRequest(
        order_id=number + 1, account=f"A{number % STREAMS}", symbol=f"S{number // 2 % SYMBOLS}",
        side=pb.SELL if number % 2 else pb.BUY, price=100, quantity=1,
    )  # fmt: skip
