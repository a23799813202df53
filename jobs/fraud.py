"""The fraud features as a Flink job: ``streambank submit fraud``, or ``flink run -d -py jobs/fraud.py``."""

from jobs.flink_runtime import run
from pipelines.catalogue import PIPELINES

if __name__ == "__main__":
    run(PIPELINES["fraud"])
