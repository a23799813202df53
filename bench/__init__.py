"""One module per claim.

Each has ``measure(...) -> list[Measurement]``; `streambank bench` runs, prints and stores them."""
