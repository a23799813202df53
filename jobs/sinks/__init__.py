"""Sinks: Faust agents that carry a topic's frames into stores, effectively once.

What holds for each of them:
- **The store knows how far it is.** The position (next offset, sequence) is kept in the destination: in Postgres in
  the transaction of the effects, in Cassandra after rows whose writes are idempotent. Kafka's committed offset follows
  it and is for lag monitors; a sink that finds it elsewhere goes back to the store's position.
- **Order.** Frames of a shard are applied in sequence order. A sequence already applied is dropped; a gap is an alarm
  that stops the sink, never skipped.
- **Outages.** While a store is away the sink retries with jitter and stops consuming; nothing is lost.
- **Poison.** An unreadable record, or the event that a store refuses, goes to the dead-letter topic before the position
  passes it; when too many do, the sink stops.

`base` is the contract that a destination implements, `records` reads and orders records, `worker` is the Faust app.
"""
