"""Limits and choices of the FIX gateway, each an environment variable ``STREAMBANK_FIX_<NAME>``. Times are seconds."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["FixSettings"]


class FixSettings(BaseSettings):
    """Unknown STREAMBANK_FIX_ variables are ignored; a wrong value is an error that names it."""

    model_config = SettingsConfigDict(env_prefix="STREAMBANK_FIX_", frozen=True)

    port: int = Field(9878, ge=1, le=65535, description="Port that counterparties connect to.")
    web_port: int = Field(9879, ge=0, le=65535, description="Port of /health and /metrics; 0: none.")
    comp_id: str = Field("STREAMBANK", pattern=r"^[!-~]{1,32}$", description="The gateway's own CompID.")
    sessions_file: Path | None = Field(
        None, description="Sessions and the hashes of their passwords; default: fix-sessions.json of the secrets."
    )
    instruments_file: Path | None = Field(
        None,
        description='JSON: {"ACME": {"tick": "0.01", "lot": "1"}}; symbols that it leaves out have tick and lot 1.',
    )
    store: Path | None = Field(
        None,
        description="SQLite file with sequence numbers, messages and orders; default: fix/gateway.sqlite of the data.",
    )
    certificate: Path | None = Field(None, description="PEM certificate chain; without, no TLS.")
    key: Path | None = Field(None, description="PEM private key of the certificate.")
    client_ca: Path | None = Field(None, description="PEM of who signs counterparties' certificates (mutual TLS).")

    logon_seconds: float = Field(10, gt=0, description="A connection must log on within this time.")
    minimum_heartbeat: int = Field(1, ge=1, description="Smallest HeartBtInt that is accepted.")
    clock_skew: float = Field(120, gt=0, description="Most that SendingTime may differ from the gateway's clock.")
    delivery_seconds: float = Field(5, gt=0, description="Kafka must acknowledge a frame of orders within this time.")
    settle_seconds: float = Field(
        3,
        ge=0,
        description="Age at which a frame without acknowledgement is looked for in the log, before it is sent again.",
    )
    unsent_bytes: int = Field(
        32 << 20, ge=1 << 16, description="A counterparty that reads too slowly is cut off beyond this."
    )
    keep_days: int = Field(30, ge=1, description="Days that messages and ended orders are kept.")

    @model_validator(mode="after")
    def _check(self) -> FixSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("STREAMBANK_FIX_CERTIFICATE and STREAMBANK_FIX_KEY belong together: set both or none")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("STREAMBANK_FIX_CLIENT_CA needs STREAMBANK_FIX_CERTIFICATE and STREAMBANK_FIX_KEY")
        return self
