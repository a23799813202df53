"""Payments as a Flink job: ``streambank submit payments``, or ``flink run -d -py jobs/payments.py``."""

from jobs.flink_runtime import run
from pipelines.catalogue import PIPELINES

if __name__ == "__main__":
    run(PIPELINES["payments"])
