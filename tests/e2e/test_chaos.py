"""Nothing acknowledged is lost and nothing is applied twice, whatever is killed while money flows: a small soak."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.soak import part_faults
from bench.soak_ledger import LedgerSoak, SoakOptions, ledger_deployment
from tests.support.stack import SERVER_TYPES, PrivateStack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

TRANSFERS = 24_000


def test_every_process_is_killed_under_load(stack: PrivateStack, tmp_path: Path) -> None:
    environment = stack.environment(*(kind.name for kind in SERVER_TYPES))
    servers = {kind.name: stack.get(kind) for kind in SERVER_TYPES}
    # What a lost JobManager takes is shown in test_flink_recovery, a lost store in test_sinks.
    elsewhere = {"jobmanager", "registry", "postgres", "cassandra"}
    targets = set(part_faults(ledger_deployment(environment, tmp_path), servers)) - elsewhere
    options = SoakOptions(
        TRANSFERS, len(targets), seed=1, outage_seconds=2.0, payments_per_second=60, only=tuple(targets)
    )
    report = LedgerSoak(environment, servers, options, tmp_path, print).run()
    assert report.ok, [check for check in report.checks if not check.ok]
    assert set(report.times()) == targets
    assert report.figures["payments through the API"] > 100
    assert report.figures["frames repeated"] > 0
