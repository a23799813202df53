"""Order entry by FIX 4.4; see `api.fix.gateway` and docs/how-to/fix.md."""
