"""Transfers across ledgers as a Flink job: ``streambank submit ledger_saga``."""

from jobs.flink_runtime import run
from pipelines.catalogue import PIPELINES

if __name__ == "__main__":
    run(PIPELINES["ledger_saga"])
