"""How a sink's consumer fetches, against a fetcher that has its answers ready."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from jobs.sinks.fetching import thread_that_gathers


class Fetcher:
    """Hands out what the test gave, and notes how each of these was asked for."""

    def __init__(self, *answers: dict[str, list[int]] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, bool, float]] = []
        self._fetch_min_bytes, self._fetch_max_wait_ms = 1, 1500
        self._closed = False
        self._subscriptions = SimpleNamespace(fetch_context=nullcontext)

    async def fetched_records(self, _partitions: Any, timeout: float, max_records: Any) -> dict[str, list[int]]:  # noqa: ASYNC109
        self.asked.append((self._fetch_min_bytes, self._fetch_max_wait_ms > 1000, timeout))
        await asyncio.sleep(0)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def thread_of(seconds: float) -> Any:
    made: Any = object.__new__(thread_that_gathers(seconds))  # without a broker
    made.consumer = SimpleNamespace(flow_active=True)
    return made


async def handed_over(thread: Any, fetcher: Fetcher) -> dict[str, list[int]]:
    consumer = SimpleNamespace(_fetcher=fetcher, _closed=False)
    found: dict[str, list[int]] = await thread._fetch_records(consumer, None, timeout=1.0, max_records=None)
    return found


async def test_what_comes_after_a_pause_is_handed_over_at_once_and_then_together() -> None:
    thread, fetcher = thread_of(60.0), Fetcher({"a": [1]}, {"a": [2], "b": [1]}, {"a": [3, 4], "c": [1]}, {})
    assert await handed_over(thread, fetcher) == {"a": [1]}
    assert await handed_over(thread, fetcher) == {"a": [2, 3, 4], "b": [1], "c": [1]}
    assert await handed_over(thread, fetcher) == {}, "nothing came: nothing to gather"
    at_once, gathering = (1, True, 1.0), fetcher.asked.pop(2)
    assert fetcher.asked == [at_once, at_once, at_once], "an idle sink fetches no more often than others"
    assert gathering[0] > 1000
    assert 1.0 < gathering[2] < 61.0


async def test_a_sink_that_does_not_gather_hands_over_what_comes() -> None:
    thread, fetcher = thread_of(0.0), Fetcher({"a": [1]}, {"a": [2]})
    assert [await handed_over(thread, fetcher) for _ in range(2)] == [{"a": [1]}, {"a": [2]}]


async def test_what_was_found_is_handed_over_when_gathering_fails() -> None:
    thread, fetcher = thread_of(60.0), Fetcher({"a": [1]}, {"a": [2]}, ConnectionError("away"), {"a": [3]}, {})
    assert await handed_over(thread, fetcher) == {"a": [1]}
    assert await handed_over(thread, fetcher) == {"a": [2]}
    assert await handed_over(thread, fetcher) == {"a": [3]}
