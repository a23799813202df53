"""One attempt of one delivery, by channel.

Each channel has ``send``, which returns when the other side has taken the message, or raises:

DeliveryError
├── Failed     not now: tried again by the schedule, or after what the other side asked for
└── Rejected   never: dead at once
    └── Gone   the endpoint is no more: it is switched off (a webhook's 410)

Repeats carry the same id: ``webhook-id``, ``Message-ID``, the gateway's ``Idempotency-Key``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from typing import Any, Final, Protocol

import aiohttp
import aiosmtplib
from standardwebhooks import Webhook

from infra.outbound import AddressRefused, guarded_session
from infra.settings import Settings
from jobs.notifications.config import NotifierSettings
from jobs.notifications.messages import MessageError, Messages

__all__ = ["Channel", "Delivery", "DeliveryError", "Email", "Failed", "Gone", "Rejected", "Sms", "Webhooks"]

MAX_RETRY_AFTER: Final = 86_400.0
_SECONDS: Final = re.compile(r"[0-9]{1,6}", re.ASCII)
USER_AGENT: Final = "streambank-notifier/1"


class DeliveryError(Exception):
    """An attempt that did not arrive."""


class Failed(DeliveryError):  # noqa: N818 - a state, named for what it is
    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Rejected(DeliveryError):  # noqa: N818 - a state, named for what it is
    pass


class Gone(Rejected):
    pass


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery in hand: ``id`` of its row, ``attempt`` from 1, ``step`` of the retry schedule from 0."""

    id: int
    attempt: int
    step: int
    message_id: str
    channel: str
    endpoint_id: str
    address: str
    secret: str | None
    customer: str
    kind: str
    occurred_at: datetime
    data: dict[str, Any]


class Channel(Protocol):
    name: str

    async def send(self, delivery: Delivery) -> None: ...

    async def close(self) -> None: ...


class Webhooks:
    """Standard Webhooks (https://www.standardwebhooks.com): signed JSON by POST; 2xx is taken, a redirect is not."""

    name = "webhook"

    def __init__(self, settings: Settings, config: NotifierSettings) -> None:
        self._session = guarded_session(
            settings, connections=config.concurrency, timeout=aiohttp.ClientTimeout(total=config.attempt_seconds)
        )

    async def send(self, delivery: Delivery) -> None:
        now = datetime.now(UTC)
        payload = {"type": delivery.kind, "timestamp": _iso(delivery.occurred_at), "data": delivery.data}
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "webhook-id": delivery.message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(delivery.secret or "").sign(delivery.message_id, now, body),
        }
        try:
            async with self._session.post(
                delivery.address, data=body.encode(), headers=headers, allow_redirects=False
            ) as answer:
                status, retry_after = answer.status, answer.headers.get("Retry-After", "")
        except TimeoutError:
            raise Failed("no answer in time") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefused) or "is not a public address" in str(error):
                raise Failed("the host resolves to an address that is not public") from None
            raise Failed(f"no connection: {type(error.os_error).__name__}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Failed(f"no answer: {type(error).__name__}") from None
        if status == 410:
            raise Gone("the endpoint answered 410 Gone")
        if not 200 <= status < 300:
            raise Failed(f"the endpoint answered {status}", _asked_pause(status, retry_after))

    async def close(self) -> None:
        await self._session.close()


class Email:
    """Plain text by SMTP; taken when the server has it. 5xx answers are final."""

    name = "email"

    def __init__(self, config: NotifierSettings, messages: Messages) -> None:
        self._config = config
        self._messages = messages
        self._domain = parseaddr(config.email_from)[1].rpartition("@")[2] or "localhost"

    async def send(self, delivery: Delivery) -> None:
        config = self._config
        if not config.smtp_host:
            raise Failed("no SMTP server is set (STREAMBANK_NOTIFIER_SMTP_HOST)")
        try:
            subject, body = self._messages.email(delivery.kind, delivery.customer, delivery.occurred_at, delivery.data)
        except MessageError as error:
            raise Rejected(str(error)) from error
        message = EmailMessage()
        message["From"] = config.email_from
        message["To"] = delivery.address
        message["Subject"] = subject
        message["Date"] = format_datetime(delivery.occurred_at)
        message["Message-ID"] = f"<{delivery.message_id}.{delivery.endpoint_id}@{self._domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(body)
        try:
            await aiosmtplib.send(
                message,
                hostname=config.smtp_host,
                port=config.smtp_port,
                timeout=config.attempt_seconds,
                use_tls=config.smtp_security == "tls",
                start_tls=config.smtp_security == "starttls",
                username=config.smtp_user or None,
                password=config.smtp_password.get_secret_value() or None,
            )
        except aiosmtplib.SMTPAuthenticationError as error:
            raise Failed(f"the mail server refuses the login: {error.code}") from None
        except aiosmtplib.SMTPRecipientsRefused as error:
            codes = [refusal.code for refusal in error.recipients]
            raise (Rejected if all(code >= 500 for code in codes) else Failed)(f"recipient refused: {codes}") from None
        except aiosmtplib.SMTPResponseException as error:
            raise (Rejected if error.code >= 500 else Failed)(f"the mail server answered {error.code}") from None
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            raise Failed(f"the mail server cannot be reached: {type(error).__name__}") from None

    async def close(self) -> None:
        return None


class Sms:
    """A gateway that takes ``{"id", "to", "text"}`` by POST. 4xx is final, but for 408, 425 and 429."""

    name = "sms"

    def __init__(self, config: NotifierSettings, messages: Messages) -> None:
        self._config = config
        self._messages = messages
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=config.attempt_seconds), cookie_jar=aiohttp.DummyCookieJar()
        )

    async def send(self, delivery: Delivery) -> None:
        if not self._config.sms_url:
            raise Failed("no SMS gateway is set (STREAMBANK_NOTIFIER_SMS_URL)")
        try:
            text = self._messages.sms(delivery.kind, delivery.customer, delivery.occurred_at, delivery.data)
        except MessageError as error:
            raise Rejected(str(error)) from error
        key = f"{delivery.message_id}.{delivery.endpoint_id}"
        headers = {"Idempotency-Key": key, "User-Agent": USER_AGENT}
        if token := self._config.sms_token.get_secret_value():
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._session.post(
                self._config.sms_url,
                json={"id": key, "to": delivery.address, "text": text},
                headers=headers,
                allow_redirects=False,
            ) as answer:
                status, retry_after = answer.status, answer.headers.get("Retry-After", "")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Failed(f"the SMS gateway cannot be reached: {type(error).__name__}") from None
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise Rejected(f"the SMS gateway answered {status}")
        if not 200 <= status < 300:
            raise Failed(f"the SMS gateway answered {status}", _asked_pause(status, retry_after))

    async def close(self) -> None:
        await self._session.close()


def _asked_pause(status: int, retry_after: str) -> float | None:
    if status in (429, 503) and _SECONDS.fullmatch(retry_after):
        return min(float(retry_after), MAX_RETRY_AFTER)
    return None


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
