"""Limits and choices of the FIX gateway and of routers, each an environment variable ``STREAMBANK_FIX_<NAME>`` or
``STREAMBANK_ROUTE_<NAME>``. Times are seconds."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["FixSettings", "ProcessSettings", "RouteSettings"]


class ProcessSettings(BaseSettings):
    """What every process that speaks FIX needs."""

    model_config = SettingsConfigDict(frozen=True)

    web_port: int = Field(9879, ge=0, le=65535, description="Port of /health and /metrics; 0: none.")
    comp_id: str = Field("STREAMBANK", pattern=r"^[!-~]{1,32}$", description="Its own CompID.")
    instruments_file: Path | None = Field(
        None,
        description='JSON: {"ACME": {"tick": "0.01", "lot": "1"}}; symbols that it leaves out have tick and lot 1.',
    )
    store: Path | None = Field(None, description="SQLite file with everything that must not be lost.")
    clock_skew: float = Field(120, gt=0, description="Most that SendingTime may differ from this clock.")
    delivery_seconds: float = Field(5, gt=0, description="Kafka must acknowledge a frame of commands within this time.")
    settle_seconds: float = Field(
        3,
        ge=0,
        description="Age at which a frame without acknowledgement is looked for in the log, before it is sent again.",
    )
    unsent_bytes: int = Field(
        32 << 20, ge=1 << 16, description="A counterparty that reads too slowly is cut off beyond this."
    )
    keep_days: int = Field(30, ge=1, description="Days that messages and ended orders are kept.")


class FixSettings(ProcessSettings):
    """Of the gateway. Unknown STREAMBANK_FIX_ variables are ignored; a wrong value is an error that names it."""

    model_config = SettingsConfigDict(env_prefix="STREAMBANK_FIX_", frozen=True)

    port: int = Field(9878, ge=1, le=65535, description="Port that counterparties connect to.")
    sessions_file: Path | None = Field(
        None, description="Sessions and the hashes of their passwords; default: fix-sessions.json of the secrets."
    )
    certificate: Path | None = Field(None, description="PEM certificate chain; without, no TLS.")
    key: Path | None = Field(None, description="PEM private key of the certificate.")
    client_ca: Path | None = Field(None, description="PEM of who signs counterparties' certificates (mutual TLS).")

    logon_seconds: float = Field(10, gt=0, description="A connection must log on within this time.")
    minimum_heartbeat: int = Field(1, ge=1, description="Smallest HeartBtInt that is accepted.")

    @model_validator(mode="after")
    def _check(self) -> FixSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("STREAMBANK_FIX_CERTIFICATE and STREAMBANK_FIX_KEY belong together: set both or none")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("STREAMBANK_FIX_CLIENT_CA needs STREAMBANK_FIX_CERTIFICATE and STREAMBANK_FIX_KEY")
        return self


class RouteSettings(ProcessSettings):
    """Of a router. Unknown STREAMBANK_ROUTE_ variables are ignored; a wrong value is an error that names it."""

    model_config = SettingsConfigDict(env_prefix="STREAMBANK_ROUTE_", frozen=True)

    web_port: int = Field(9880, ge=0, le=65535, description="Port of /health and /metrics; 0: none.")
    host: str = Field("127.0.0.1", description="Where the venue listens.")
    port: int = Field(9877, ge=1, le=65535, description="Port of the venue.")
    target_comp_id: str = Field("", pattern=r"^[!-~]{0,32}$", description="The venue's CompID; default: its name.")
    account: str = Field("", description="Account(1) that the venue knows us by; none without.")
    username: str = Field("", description="Username(553) of the Logon; none without.")
    password: SecretStr = Field(SecretStr(""), description="Password(554) of the Logon; none without.")
    ca: Path | None = Field(None, description="PEM of who signed the venue's certificate; without, no TLS.")
    certificate: Path | None = Field(None, description="PEM chain that the venue is shown (mutual TLS).")
    key: Path | None = Field(None, description="PEM private key of the certificate.")
    server_name: str = Field("", description="Name in the venue's certificate; default: the host.")
    heartbeat: int = Field(30, ge=1, description="HeartBtInt of the Logon.")
    reset: bool = Field(
        False, description="Log on with ResetSeqNumFlag, for a venue that starts its numbers anew each time."
    )
    connect_seconds: float = Field(10, gt=0, description="Time to connect and log on.")
    retry_seconds: float = Field(1, gt=0, description="Pause after a failed connection; doubles up to 30 times this.")
    grace_seconds: float = Field(5, ge=0, description="How long new orders wait for a venue that is away.")
    answer_seconds: float = Field(5, gt=0, description="Time in which the venue must answer a new order.")
    failures_to_open: int = Field(5, ge=1, description="Failures in a row that open the circuit.")
    open_seconds: float = Field(10, gt=0, description="How long it stays open before one order tries.")

    @model_validator(mode="after")
    def _check(self) -> RouteSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("STREAMBANK_ROUTE_CERTIFICATE and STREAMBANK_ROUTE_KEY belong together: set both or none")
        if self.certificate is not None and self.ca is None:
            raise ValueError("STREAMBANK_ROUTE_CERTIFICATE needs STREAMBANK_ROUTE_CA")
        return self
