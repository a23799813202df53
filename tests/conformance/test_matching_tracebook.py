"""An outside judge: ``tracebook-conformance`` qualifies the matching for its profile ``fifo-full-v1``.

Fixed cases and generated traces run in this process, because starting a Python for each would take most of the time;
one trace goes to the same adapter in a process of its own, over the suite's NDJSON protocol on standard input and
output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tracebook.conformance.campaign import run_campaign
from tracebook.conformance.external import ExternalProcessAdapter
from tracebook.conformance.qualification import run_qualification

from tests.support.tracebook_adapter import Adapter

ROOT = Path(__file__).parents[2]


def test_fifo_full_profile_qualifies() -> None:
    result = run_qualification(Adapter, "fifo-full-v1", seed=1337, traces=5, events_per_trace=100)
    assert result.suite_report["conformant"], result.suite_report
    assert result.campaign.conformant, result.campaign.to_dict()
    assert result.qualified


def test_a_trace_over_standard_input_and_output() -> None:
    def start(config: Any) -> ExternalProcessAdapter:
        command = [sys.executable, "-m", "tests.support.tracebook_adapter"]
        return ExternalProcessAdapter(command, config, timeout_seconds=120, cwd=ROOT)

    result = run_campaign(start, profile="fifo-full-v1", seed=7, traces=1, events_per_trace=60, max_minimize_runs=1)
    assert result.conformant, json.dumps(result.to_dict()["failure"], default=str)
