"""A shard that lives as under a journaling runtime and can be killed at any moment.

Input records go to a journal before they are applied; now and then the dirty pages are stored and the journal is
cleared. `kill` throws the shard away and makes a new one from the stored pages and the journal, whose outputs are
discarded because they had been sent already.
"""

from __future__ import annotations

from collections.abc import Callable

from pipelines.shard import OutputRecord, Shard


class RestartableShard:
    def __init__(self, topic: str, make_shard: Callable[[], Shard]) -> None:
        self._topic = topic
        self._make_shard = make_shard
        self.pages: dict[str, bytes] = {}
        self.journal: list[bytes] = []
        self.shard = make_shard()

    def apply(self, value: bytes) -> list[OutputRecord]:
        self.journal.append(value)
        return self.shard.apply(self._topic, value)

    def store_pages(self) -> None:
        expected = self.shard.dirty_bytes()
        pages = self.shard.dirty_pages()
        # the shard's own page may have changed its length since it was last written
        assert abs(sum(map(len, pages.values())) - expected) < 256
        self.pages |= pages
        self.journal.clear()

    def kill(self) -> None:
        self.shard = self._make_shard()
        self.shard.restore(self.pages)
        for value in self.journal:
            self.shard.apply(self._topic, value)
