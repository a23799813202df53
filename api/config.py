"""Limits and choices of the API, each an environment variable ``STREAMBANK_API_<NAME>``.

Where the servers are is in `infra.settings`; this is only what the API itself may do. Sizes are bytes, times are
seconds unless the name says otherwise.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["ApiSettings", "api_settings"]


class ApiSettings(BaseSettings):
    """Unknown STREAMBANK_API_ variables are ignored; a wrong value is an error that names it."""

    model_config = SettingsConfigDict(env_prefix="STREAMBANK_API_", frozen=True)

    workers: int = Field(2, ge=1, le=64, description="Worker processes.")
    drain_seconds: float = Field(10, gt=0, description="Time for a stopping worker to answer what it accepted.")

    grpc_port: int = Field(0, ge=0, le=65535, description="Port of the gRPC services; 0: none.")
    grpc_certificate: Path | None = Field(None, description="PEM certificate chain of the gRPC port; without, no TLS.")
    grpc_key: Path | None = Field(None, description="PEM private key of the certificate.")

    max_body_bytes: int = Field(1 << 20, ge=1024, description="Largest JSON body (one event or an array).")
    max_bulk_bytes: int = Field(1 << 30, ge=1024, description="Largest NDJSON or Avro body; it is streamed.")
    max_bulk_events: int = Field(5_000_000, ge=1, description="Most events of one NDJSON or Avro body.")
    max_line_bytes: int = Field(16 << 10, ge=256, description="Longest line of NDJSON.")
    max_reported_errors: int = Field(100, ge=1, description="Most bad events that one answer describes.")
    idle_seconds: float = Field(10, gt=0, description="Longest silence inside a request's body, and of its headers.")

    frame_bytes: int = Field(256 << 10, ge=4096, description="Upper bound of an encoded frame.")
    frame_events: int = Field(2048, ge=1, description="Most events of a frame.")
    frames_in_flight: int = Field(4, ge=1, description="Unacknowledged frames per shard and worker.")
    linger_seconds: float = Field(0.01, ge=0, description="Longest wait for company while another frame is in flight.")
    orders_pace_seconds: float = Field(
        0.01, ge=0, description="From one round of frames of orders to the next, at least; a lone order never waits."
    )
    buffered_events: int = Field(200_000, ge=1, description="Events a worker holds before it answers 503.")
    delivery_seconds: float = Field(5, gt=0, description="Kafka must acknowledge a frame within this time, or 503.")

    wait_seconds: int = Field(30, ge=0, le=300, description="Longest `Prefer: wait` that is honoured.")

    events_per_minute: int = Field(6_000_000, ge=1, description="Events a client may send a minute; a request is one.")
    orders_per_minute: int = Field(6_000_000, ge=1, description="Commands an account may be sent a minute, by anybody.")
    token_attempts_per_minute: int = Field(60, ge=1, description="Token requests a minute per client id and address.")

    tls_certificate: Path | None = Field(None, description="PEM of the server; default: that of `certs make`.")
    tls_key: Path | None = Field(None, description="Its key.")
    tls_client_ca: Path | None = Field(None, description="PEM of who signs clients' certificates (mutual TLS).")

    cards_per_minute: int = Field(
        600, ge=1, description="Card requests a client may send a minute; slows down who tries numbers."
    )

    token_seconds: int = Field(300, ge=30, le=3600, description="Lifetime of an access token.")
    issuer: str = Field("", description="`iss` of accepted tokens; empty: this API's own base URL.")
    audience: str = Field("streambank", description="`aud` of accepted tokens.")
    jwks_url: str = Field("", description="JWKS of an outside issuer; set, /oauth/token is off.")

    idempotency_hours: int = Field(24, ge=1, description="How long an Idempotency-Key's answer is kept.")
    idempotency_lock_seconds: int = Field(30, ge=1, description="A key in use is free again this long after a crash.")

    valkey_seconds: float = Field(0.25, gt=0, description="Time-out of a call to Valkey.")
    store_seconds: float = Field(2, gt=0, description="Time-out of a query to Postgres or Cassandra.")

    payments_in_flight: int = Field(
        128,
        ge=1,
        description="Writes of payments under way in a worker, those that wait late not counted; 503 beyond.",
    )
    payments_gather_seconds: float = Field(
        0.08, ge=0, description="From one round of payments to the next, at least; a lone one never waits."
    )

    @model_validator(mode="after")
    def _check(self) -> ApiSettings:
        if self.jwks_url and not self.issuer:
            raise ValueError("STREAMBANK_API_JWKS_URL needs STREAMBANK_API_ISSUER, the `iss` of its tokens")
        if (self.grpc_certificate is None) != (self.grpc_key is None):
            raise ValueError(
                "STREAMBANK_API_GRPC_CERTIFICATE and STREAMBANK_API_GRPC_KEY belong together: set both or none"
            )
        return self


@lru_cache(maxsize=1)
def api_settings() -> ApiSettings:
    """The process's settings, read once."""
    return ApiSettings()
