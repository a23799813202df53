"""pgbench's TPC-B-like script on the server of a benchmark: what everybody knows of Postgres, from the same run."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

from infra.settings import Settings
from infra.stack.postgres import binaries
from pipelines.errors import StreambankError

__all__ = ["CLIENTS", "SCALE", "tpc_b"]

CLIENTS: Final = 8
SCALE: Final = 10


class PgbenchError(StreambankError):
    """pgbench failed, or a transaction of it did."""


def tpc_b(environment: Settings, seconds: float) -> float:
    """Transactions per second of `CLIENTS` clients at `SCALE`, prepared; its tables stay in the database."""
    program = str(binaries() / "pgbench")
    place = [
        f"--host={environment.host}", f"--port={environment.postgres_port}", f"--username={environment.postgres_user}",
        environment.postgres_database,
    ]  # fmt: skip
    runs = (
        [program, "--initialize", "--quiet", f"--scale={SCALE}", *place],
        [program, f"--client={CLIENTS}", "--jobs=1", f"--time={seconds:.0f}", "--protocol=prepared", *place],
    )
    output = ""
    for run in runs:
        done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))
        if done.returncode:
            raise PgbenchError(f"pgbench: {done.stderr[-500:]}")
        output = done.stdout
    rate = re.search(r"tps = ([0-9.]+)", output)
    failed = re.search(r"number of failed transactions: (\d+)", output)
    if rate is None or failed is None or int(failed[1]):
        raise PgbenchError(f"pgbench said: {output[-500:]}")
    return float(rate[1])
