"""What the benchmark makes of exchange-core's program; the program itself runs in ``streambank bench matching``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import matching
from bench.exchange_core import ComparisonUnavailable, parse, prepare
from infra.settings import Settings

PRINTED = (
    '{"cpu_seconds": [0.5, 0.25, 0.2, 0.125, 0.25], "messages": 1000000, "trades": 7, "live_orders": 5, '
    '"sha256": "e9b2"}\n'
)


def test_the_best_pass_counts_and_the_median_is_of_the_later_half() -> None:
    found = parse(PRINTED)
    assert (found.messages, found.trades, found.live_orders, found.sha256) == (1_000_000, 7, 5, "e9b2")
    assert found.best == 8_000_000
    assert found.median == 5_000_000


@pytest.mark.parametrize("printed", ["", "Exception in thread main", '{"messages": 3}', PRINTED.replace("0.125", "0")])
def test_any_other_output_is_no_comparison(printed: str) -> None:
    with pytest.raises(ComparisonUnavailable, match="ExchangeCoreBook printed"):
        parse(printed)


def test_without_maven_the_output_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ComparisonUnavailable, match="mvn is not on the path"):
        prepare(Settings(home=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_other_reports_than_the_kernels_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "prepare", lambda: Path())
    monkeypatch.setattr(matching, "measure_book", lambda *_: parse(PRINTED))
    compare = matching._comparison()
    messages = np.zeros((0, 7), np.int64)
    assert compare(messages, 0, "e9b2")[0] == parse(PRINTED)
    with pytest.raises(AssertionError, match="exchange-core: the reports have the hash e9b2"):
        compare(messages, 0, "ffff")
