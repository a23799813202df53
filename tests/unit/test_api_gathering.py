"""Groups of what comes at the same time: every one gets its own result, and only its own failure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from api.gathering import Gatherer


class Work:
    """Doubles numbers, as soon as the test lets a group go; a negative one fails its group."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, group: Sequence[int]) -> list[int]:
        self.groups.append(list(group))
        await self.gate.wait()
        if min(group) < 0:
            raise ValueError("negative")
        return [2 * number for number in group]


async def test_what_comes_while_a_group_is_under_way_is_the_next_group() -> None:
    work = Work()
    gatherer: Gatherer[int, int] = Gatherer(work, seconds=0.0, most=3)
    asked = [asyncio.create_task(gatherer.do(1))]
    while not work.groups:  # noqa: ASYNC110 - until the first group is under way
        await asyncio.sleep(0)
    asked += [asyncio.create_task(gatherer.do(number)) for number in range(2, 7)]
    await asyncio.sleep(0)
    asked.pop(2).cancel()  # 3: whoever hangs up before its group is not worked on
    await asyncio.sleep(0)
    work.gate.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*asked) == [2, 4, 8, 10, 12]
    assert work.groups == [[1], [2, 4, 5], [6]]


async def test_an_error_is_that_of_its_group_and_the_next_group_comes_in_its_time() -> None:
    work = Work()
    work.gate.set()
    gatherer: Gatherer[int, int] = Gatherer(work, seconds=0.05)
    begun = asyncio.get_running_loop().time()
    found = await asyncio.gather(*(gatherer.do(number) for number in (-1, 1)), return_exceptions=True)
    assert [str(error) for error in found] == ["negative", "negative"]
    async with asyncio.timeout(10):
        assert await asyncio.gather(gatherer.do(3), gatherer.do(4)) == [6, 8]
    assert asyncio.get_running_loop().time() - begun >= 0.05
    with pytest.raises(ValueError, match="negative"):
        await gatherer.do(-2)
    assert work.groups == [[-1, 1], [3, 4], [-2]]
