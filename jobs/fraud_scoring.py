"""Fraud decisions as a Flink job: ``streambank submit fraud_scoring``, in the place of ``streambank score``."""

from jobs.flink_scoring import run

if __name__ == "__main__":
    run()
