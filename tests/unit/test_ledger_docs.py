"""The reference says of every result what to do, and of none that does not exist."""

from __future__ import annotations

import re

from infra.settings import PROJECT_ROOT
from pipelines.catalogue import LEDGER_CROSS_RESULTS, LEDGER_RESULTS
from pipelines.codec import codec_of

REFERENCE = PROJECT_ROOT / "docs" / "reference"


def named_in_tables(page: str) -> set[str]:
    """What stands between backticks in the first column of the page's tables."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([a-z_0-9]+)`", cell)}


def test_every_result_of_the_ledger_is_explained() -> None:
    codec = codec_of(LEDGER_RESULTS.name)
    results = {name for kind in codec.event_types for name in kind.field("result").symbols}
    assert named_in_tables("ledger-results.md") == results


def test_every_result_of_a_cross_transfer_is_explained() -> None:
    [kind] = codec_of(LEDGER_CROSS_RESULTS.name).event_types
    assert set(kind.field("result").symbols) <= named_in_tables("cross-transfers.md")
