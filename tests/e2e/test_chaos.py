"""Nothing acknowledged is lost and nothing is applied twice, whatever is killed while money flows: a small soak."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.soak import Soak, SoakOptions
from bench.soak_parts import SERVERS, Parts
from infra.stack.server import is_taken
from tests.support.stack import PrivateStack, free_ports

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

TRANSFERS = 24_000


def test_every_part_is_killed_under_load(stack: PrivateStack, tmp_path: Path) -> None:
    environment = stack.environment(*SERVERS)
    ports = free_ports(20)  # the two sinks' pages have neighbours
    web_port = next(port for port in ports if not is_taken(environment.host, port + 1))
    environment = environment.model_copy(update={"faust_web_port": web_port})
    # what a lost JobManager takes is shown in test_flink_recovery
    targets = {target.name for target in Parts(environment, tmp_path).targets} - {"jobmanager", "registry"}
    options = SoakOptions(
        TRANSFERS, len(targets), seed=1, outage_seconds=2.0, payments_per_second=60, only=tuple(targets)
    )
    result = Soak(environment, options, tmp_path, print).run()
    assert result.ok, [check for check in result.checks if not check.ok]
    assert {kill.target for kill in result.kills} == targets
    assert result.figures["payments through the API"] > 100
    assert result.figures["frames repeated"] > 0
