"""The counter as a Flink job file."""

from jobs.flink_runtime import run
from tests.support.counter_kernel import COUNTER

if __name__ == "__main__":
    run(COUNTER)
