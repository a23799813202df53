"""Limits and destinations of the notifier, each an environment variable ``STREAMBANK_NOTIFIER_<NAME>``.

Which addresses webhooks may reach is in `infra.settings`, since the API checks it too. Times are seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["NotifierSettings"]


class NotifierSettings(BaseSettings):
    """Unknown variables are ignored; a wrong value is an error that names it."""

    model_config = SettingsConfigDict(env_prefix="STREAMBANK_NOTIFIER_", frozen=True)

    web_port: int | None = Field(
        None, description="Port of /health and /metrics; default: STREAMBANK_FAUST_WEB_PORT plus 40."
    )
    retry_seconds: tuple[float, ...] = Field(
        (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400),
        description="Pauses between attempts, a JSON array; dead after the last one. Standard Webhooks' schedule.",
    )
    attempt_seconds: float = Field(15, gt=0, description="Time-out of one attempt.")
    lease_seconds: float = Field(60, gt=0, description="A delivery whose notifier died is sent again after this.")
    poll_seconds: float = Field(0.5, gt=0, description="How often the outbox is asked when nothing woke the notifier.")
    concurrency: int = Field(32, ge=1, le=1_000, description="Attempts at once per channel.")
    per_endpoint: int = Field(4, ge=1, description="Attempts at once per webhook endpoint or address.")
    templates_dir: Path | None = Field(None, description="Templates that come before the built-in ones.")

    smtp_host: str = Field("", description="SMTP server; empty: e-mail is not sent.")
    smtp_port: int = Field(587, description="Its port.")
    smtp_security: Literal["starttls", "tls", "none"] = Field("starttls", description="How the connection is secured.")
    smtp_user: str = Field("", description="Empty: no authentication.")
    smtp_password: SecretStr = Field(SecretStr(""), description="Its password.")
    email_from: str = Field("Streambank <no-reply@localhost>", description="Sender of e-mails.")

    sms_url: str = Field("", description="SMS gateway, which gets JSON by POST; empty: SMS is not sent.")
    sms_token: SecretStr = Field(SecretStr(""), description="Its bearer token.")

    @model_validator(mode="after")
    def _check(self) -> NotifierSettings:
        if self.lease_seconds <= self.attempt_seconds:
            raise ValueError("STREAMBANK_NOTIFIER_LEASE_SECONDS must be more than ..._ATTEMPT_SECONDS")
        return self
