"""A TaskManager's memory adds up to what was asked for, and too little of it is said before a server starts."""

from __future__ import annotations

import pytest

from infra.settings import Settings
from infra.stack.errors import StackError
from infra.stack.flink import FRAMEWORK_HEAP, FRAMEWORK_OFF_HEAP, METASPACE, Flink, FlinkOptions


@pytest.mark.parametrize(("asked", "mebibytes"), [("2112m", 2112), ("3g", 3072), ("1792MB", 1792), (4096, 4096)])
def test_the_parts_of_a_task_manager_are_the_whole(
    asked: object, mebibytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMBANK_FLINK_TASK_MANAGER_MEMORY", str(asked))
    options = FlinkOptions()
    assert options.task_manager_memory == mebibytes
    parts = Flink(Settings(), options)._configuration()
    sizes = [
        int(str(parts[f"taskmanager.memory.{part}"]).removesuffix("m"))
        for part in (
            "framework.heap.size", "framework.off-heap.size", "task.heap.size", "task.off-heap.size", "managed.size",
            "network.max", "jvm-metaspace.size", "jvm-overhead.max",
        )
    ]  # fmt: skip
    assert sum(sizes) == mebibytes


def test_too_little_memory_says_how_much_is_needed() -> None:
    options = FlinkOptions(task_manager_memory=1024)
    needed = METASPACE + FRAMEWORK_HEAP + FRAMEWORK_OFF_HEAP + 192 + 256 + 512 + 64 + 64
    with pytest.raises(StackError, match=f"STREAMBANK_FLINK_TASK_MANAGER_MEMORY to {needed}m or more"):
        _ = options.task_heap
