"""The ledger as a Flink job: ``streambank submit ledger``, or ``flink run -d -py jobs/ledger.py``."""

from jobs.flink_runtime import run
from pipelines.catalogue import PIPELINES

if __name__ == "__main__":
    run(PIPELINES["ledger"])
