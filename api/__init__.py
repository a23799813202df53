"""HTTP in front of the log: accepts events into Kafka frames, answers queries from the stores, issues tokens."""
