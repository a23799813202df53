"""Order matching as a Flink job: ``streambank submit matching``, or ``flink run -d -py jobs/matching.py``."""

from jobs.flink_runtime import run
from pipelines.catalogue import PIPELINES

if __name__ == "__main__":
    run(PIPELINES["matching"])
