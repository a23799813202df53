"""Work that is done for many at little more than the cost of one: what comes one by one is done in groups.

A lone item is worked on at once. What comes while the last group is under way, and until ``seconds`` after it began, is
the next group: so under load each call has more to do instead of there being more calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

__all__ = ["Gatherer"]

MOST: Final = 256
Item = TypeVar("Item")
Result = TypeVar("Result")


class Gatherer(Generic[Item, Result]):
    """Calls ``work`` with a group of items, one group after another. It returns a result for each, in their order; what
    it raises, all of them get. Use from one event loop."""

    def __init__(
        self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], *, seconds: float, most: int = MOST
    ) -> None:
        self._work = work
        self._seconds = seconds
        self._most = most
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def do(self, item: Item) -> Result:
        """The item's result. Whoever is cancelled leaves the others alone; an item whose group has begun is done."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        if self._working is None:
            self._working = asyncio.create_task(self._groups())
        return await result

    async def _groups(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                following = loop.time() + self._seconds
                await self._group()
                await asyncio.sleep(max(0.0, following - loop.time()))
        finally:
            self._working = None

    async def _group(self) -> None:
        group: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(group) < self._most:
            item, result = self._waiting.popleft()
            if not result.done():
                group.append((item, result))
        if not group:
            return
        try:
            results = await self._work([item for item, _ in group])
        except Exception as error:
            for _, result in group:
                if not result.done():
                    result.set_exception(error)
            return
        for (_, asked), found in zip(group, results, strict=True):
            if not asked.done():
                asked.set_result(found)
