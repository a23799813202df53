"""Routes of notifications: endpoints and preferences of customers, the state of deliveries, and a live stream.

`GET /v1/notifications/stream` is a WebSocket: a customer's notifications from a sequence on, each exactly once per
connection and in order; whoever comes back with the last sequence that it has handled misses nothing. Postgres wakes
the sockets (LISTEN), and a look every few seconds makes up for a wake-up that was lost. A socket is closed when its
token expires (1008) and when the API stops (1001).
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parseaddr
from typing import Any, Final, Protocol
from uuid import uuid4

import msgspec
import psycopg
from aiohttp import WSCloseCode, WSMsgType, web
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from api.auth import Authenticator, Principal
from api.config import ApiSettings
from api.json_body import fields_problem, json_object
from api.logs import log
from api.metrics import count
from api.problems import Problem
from api.rate_limit import RateLimiter
from infra.outbound import UrlRefused, check_url
from infra.settings import Settings
from infra.stores import API_ROLE, postgres_conninfo
from pipelines.notifications import CHANNELS, CUSTOMER, ID, bad_pattern

__all__ = ["NOTIFICATION_PROBLEMS", "NotificationRoutes", "Notifications", "notification_paths", "notification_schemas"]

POOL_SIZE: Final = 4
MAX_PATTERNS: Final = 50
MAX_ENDPOINTS: Final = 50
PAGE: Final = 200
LOOK_SECONDS: Final = 5.0
HEARTBEAT_SECONDS: Final = 20.0
RECONNECT_SECONDS: Final = 1.0
ENDPOINT_CHANNELS: Final = ("webhook", "email", "sms")
_PHONE: Final = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
_EMAIL: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*", re.ASCII)
_SEQUENCE: Final = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)


class Notifications:
    """The store of notifications for one worker, and what wakes its sockets. ``timeout`` in seconds."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self.settings = settings
        self._timeout = timeout
        self._conninfo = postgres_conninfo(settings, API_ROLE)
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]] = AsyncConnectionPool(
            self._conninfo,
            kwargs={
                "autocommit": True,
                "row_factory": dict_row,
                "application_name": "streambank-api-notifications",
                "options": f"-c statement_timeout={int(timeout * 1000)}",
            },
            min_size=0,
            max_size=POOL_SIZE,
            timeout=timeout,
            reconnect_timeout=1,
            open=False,
        )
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._listening: asyncio.Task[None] | None = None
        self.sockets: set[web.WebSocketResponse] = set()

    async def open(self) -> None:
        await self._pool.open(wait=False)

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await self._pool.close(timeout=self._timeout)

    async def execute(self, query: Any, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of one statement; raises `Problem` 503."""
        try:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(query, parameters)
                return await cursor.fetchall() if cursor.description else []
        except psycopg.IntegrityError:
            raise
        except (psycopg.Error, PoolTimeout) as error:
            count("streambank_api_store_failures", "notifications")
            log().warning("the notifications' store did not answer", error=type(error).__name__)
            raise Problem("store-unavailable", "The store of notifications does not answer.", retry_after=2) from None

    @asynccontextmanager
    async def woken_for(self, customer: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the customer's stream may have grown."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
        event = asyncio.Event()
        self._waiting[customer].add(event)
        try:
            yield event
        finally:
            self._waiting[customer].discard(event)
            if not self._waiting[customer]:
                del self._waiting[customer]

    async def _listen(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._conninfo, autocommit=True, application_name="streambank-api-stream"
                ) as connection:
                    await connection.execute("LISTEN streambank_notifications")
                    for events in self._waiting.values():  # for what came while nobody listened
                        for event in events:
                            event.set()
                    async for notify in connection.notifies():
                        for event in self._waiting.get(notify.payload, ()):
                            event.set()
            except psycopg.Error as error:
                log().warning("the stream's wake-up is away", error=type(error).__name__)
            await asyncio.sleep(RECONNECT_SECONDS)


class NotificationServices(Protocol):
    """What the routes use of a worker."""

    config: ApiSettings
    authenticator: Authenticator
    events_limit: RateLimiter
    notifications: Notifications


class NotificationRoutes:
    """The handlers; ``worker`` is an app key of something with `NotificationServices`."""

    def __init__(self, worker: web.AppKey[Any]) -> None:
        self._worker = worker

    def add(self, app: web.Application) -> None:
        app.router.add_get("/v1/notifications/stream", self.stream)
        app.router.add_get("/v1/notifications/endpoints", self.list_endpoints)
        app.router.add_post("/v1/notifications/endpoints", self.add_endpoint)
        app.router.add_delete("/v1/notifications/endpoints/{endpoint}", self.delete_endpoint)
        app.router.add_get("/v1/notifications/preferences/{customer}", self.preferences)
        app.router.add_put("/v1/notifications/preferences/{customer}", self.set_preferences)
        app.router.add_get("/v1/notifications/{id}", self.find)
        app.on_shutdown.append(self._close_sockets)

    async def find(self, request: web.Request) -> web.StreamResponse:
        worker, _, headers = await self._admitted(request, "notifications:read")
        message_id = _matched(request.match_info["id"], "id", ID)
        messages = await worker.notifications.execute(
            "SELECT id, customer, kind, occurred_at, accepted_at, data FROM notifications.messages WHERE id = %(id)s",
            {"id": message_id},
        )
        if not messages:
            raise Problem("not-found", "There is no notification of this id.")
        deliveries = await worker.notifications.execute(
            "SELECT channel, endpoint_id, state, attempts, last_error,"
            " CASE state WHEN 'waiting' THEN next_attempt_at END AS next_attempt_at, ended_at"
            " FROM notifications.deliveries WHERE message_id = %(id)s ORDER BY id",
            {"id": message_id},
        )
        return _json({**messages[0], "deliveries": deliveries}, headers)

    async def list_endpoints(self, request: web.Request) -> web.StreamResponse:
        worker, _, headers = await self._admitted(request, "notifications:read")
        rows = await worker.notifications.execute(
            "SELECT id, customer, channel, address, kinds, disabled_reason, created_at FROM notifications.endpoints"
            " WHERE customer = %(customer)s AND deleted_at IS NULL ORDER BY created_at, id",
            {"customer": _customer_parameter(request)},
        )
        return _json({"endpoints": rows}, headers)

    async def add_endpoint(self, request: web.Request) -> web.StreamResponse:
        worker, _, headers = await self._admitted(request, "notifications:write")
        body = await json_object(request, worker.config.idle_seconds)
        errors = _unknown_fields(body, "customer", "channel", "address", "kinds")
        customer, channel, address, kinds = (body.get(name) for name in ("customer", "channel", "address", "kinds"))
        if not isinstance(customer, str) or not CUSTOMER.fullmatch(customer):
            errors["customer"] = f"must match {CUSTOMER.pattern}"
        if channel not in ENDPOINT_CHANNELS:
            errors["channel"] = f"must be one of {', '.join(ENDPOINT_CHANNELS)}"
        if not isinstance(address, str):
            errors["address"] = "must be a string"
        elif channel in ENDPOINT_CHANNELS and (wrong := await _bad_address(channel, address, worker.notifications)):
            errors["address"] = wrong
        kinds = [] if kinds is None else kinds
        if not isinstance(kinds, list) or len(kinds) > MAX_PATTERNS or any(
            not isinstance(kind, str) or bad_pattern(kind) for kind in kinds
        ):  # fmt: skip
            errors["kinds"] = f"must be up to {MAX_PATTERNS} kinds, each as a whole, its beginning with .*, or *"
        if errors:
            raise fields_problem(errors)
        secret = "whsec_" + base64.b64encode(os.urandom(32)).decode() if channel == "webhook" else None
        endpoint = {"id": f"ep_{uuid4().hex}", "customer": customer, "channel": channel, "address": address,
                    "kinds": kinds}  # fmt: skip
        try:
            added = await worker.notifications.execute(
                "INSERT INTO notifications.endpoints (id, customer, channel, address, kinds, secret)"
                " SELECT %(id)s, %(customer)s, %(channel)s, %(address)s, %(kinds)s, %(secret)s"
                " WHERE (SELECT count(*) FROM notifications.endpoints"
                "        WHERE customer = %(customer)s AND deleted_at IS NULL) < %(most)s RETURNING id",
                {**endpoint, "secret": secret, "most": MAX_ENDPOINTS},
            )
        except psycopg.IntegrityError:
            raise Problem("already-exists", f"{customer} has this {channel} address; delete it first.") from None
        if not added:
            raise fields_problem({"customer": f"has {MAX_ENDPOINTS} endpoints; delete one first"})
        return _json(endpoint if secret is None else {**endpoint, "secret": secret}, headers, 201)

    async def delete_endpoint(self, request: web.Request) -> web.StreamResponse:
        worker, _, headers = await self._admitted(request, "notifications:write")
        deleted = await worker.notifications.execute(
            "UPDATE notifications.endpoints SET deleted_at = now() WHERE id = %(id)s AND deleted_at IS NULL"
            " RETURNING id",
            {"id": _matched(request.match_info["endpoint"], "endpoint", ID)},
        )
        if not deleted:
            raise Problem("not-found", "There is no endpoint of this id.")
        return web.Response(status=204, headers=headers)

    async def preferences(self, request: web.Request) -> web.StreamResponse:
        worker, _, headers = await self._admitted(request, "notifications:read")
        customer = _matched(request.match_info["customer"], "customer", CUSTOMER)
        rows = await worker.notifications.execute(
            "SELECT channels FROM notifications.preferences WHERE customer = %(customer)s", {"customer": customer}
        )
        return _json({"customer": customer, "channels": rows[0]["channels"] if rows else {}}, headers)

    async def set_preferences(self, request: web.Request) -> web.StreamResponse:
        worker, _, headers = await self._admitted(request, "notifications:write")
        customer = _matched(request.match_info["customer"], "customer", CUSTOMER)
        body = await json_object(request, worker.config.idle_seconds)
        errors = _unknown_fields(body, "channels")
        channels = body.get("channels")
        if (
            not isinstance(channels, dict)
            or len(channels) > MAX_PATTERNS
            or any(
                bad_pattern(pattern) or not isinstance(names, list) or any(name not in CHANNELS for name in names)
                for pattern, names in channels.items()
            )
        ):
            errors["channels"] = (
                f"must be an object of up to {MAX_PATTERNS} kinds (whole, beginning with .*, or *), each with an array"
                f" of {', '.join(CHANNELS)}"
            )
        if errors:
            raise fields_problem(errors)
        await worker.notifications.execute(
            "INSERT INTO notifications.preferences (customer, channels) VALUES (%(customer)s, %(channels)s)"
            " ON CONFLICT (customer) DO UPDATE SET channels = EXCLUDED.channels, updated_at = now()",
            {"customer": customer, "channels": Jsonb(channels)},
        )
        return _json({"customer": customer, "channels": channels}, headers)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        worker, principal, _ = await self._admitted(request, "notifications:read")
        store = worker.notifications
        customer = _customer_parameter(request, "after")
        after = request.query.get("after")
        if after is not None and not _SEQUENCE.fullmatch(after):
            raise Problem("bad-parameter", "after: must be a sequence, an integer from 0.", parameter="after")
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_SECONDS, max_msg_size=1024, compress=False)
        if not socket.can_prepare(request).ok:
            raise Problem("upgrade-required", "Connect with the WebSocket protocol.", headers={"Upgrade": "websocket"})
        sequence = int(after) if after is not None else await _head(store, customer)
        await socket.prepare(request)
        store.sockets.add(socket)
        sending = asyncio.create_task(_send(store, socket, customer, sequence, principal.expires_at))
        try:
            async for message in socket:  # reads to see pings and the end; a client has nothing to say
                if message.type is WSMsgType.ERROR:
                    break
        finally:
            store.sockets.discard(socket)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return socket

    async def _close_sockets(self, app: web.Application) -> None:
        sockets = list(app[self._worker].notifications.sockets)
        await asyncio.gather(
            *(socket.close(code=WSCloseCode.GOING_AWAY, message=b"the API stops") for socket in sockets),
            return_exceptions=True,
        )

    async def _admitted(
        self, request: web.Request, scope: str
    ) -> tuple[NotificationServices, Principal, dict[str, str]]:
        worker: NotificationServices = request.app[self._worker]
        principal = await worker.authenticator.principal(request.headers.get("Authorization"), scope)
        allowance = await worker.events_limit.charge(principal.client_id, 1)
        return worker, principal, allowance.headers()


async def _head(store: Notifications, customer: str) -> int:
    rows = await store.execute(
        "SELECT sequence FROM notifications.stream_heads WHERE customer = %(customer)s", {"customer": customer}
    )
    return int(rows[0]["sequence"]) if rows else 0


async def _send(
    store: Notifications, socket: web.WebSocketResponse, customer: str, sequence: int, expires_at: float
) -> None:
    """Send what comes after ``sequence`` until the socket closes or the token expires."""
    async with store.woken_for(customer) as woken:
        while not socket.closed:
            left = expires_at - time.time()
            if left <= 0:
                await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"the token has expired; get a new one")
                return
            woken.clear()
            try:
                rows = await store.execute(
                    "SELECT s.sequence, m.id, m.kind, m.occurred_at, m.data FROM notifications.stream s"
                    " JOIN notifications.messages m ON m.id = s.message_id"
                    " WHERE s.customer = %(customer)s AND s.sequence > %(after)s ORDER BY s.sequence LIMIT %(page)s",
                    {"customer": customer, "after": sequence, "page": PAGE},
                )
            except Problem:
                rows = []  # the store is away; the socket waits for it
            for row in rows:
                sequence = int(row["sequence"])
                text = msgspec.json.encode(
                    {"sequence": sequence, "id": row["id"], "type": row["kind"], "timestamp": row["occurred_at"],
                     "data": row["data"]}
                )  # fmt: skip
                try:
                    await socket.send_str(text.decode())
                except ConnectionError:
                    return
            if len(rows) < PAGE:
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), min(LOOK_SECONDS, max(left, 0.01)))


async def _bad_address(channel: str, address: str, store: Notifications) -> str | None:
    if channel == "webhook":
        try:
            await check_url(address, store.settings)
        except UrlRefused as refusal:
            return str(refusal)
        return None
    if channel == "sms":
        return None if _PHONE.fullmatch(address) else "must be a phone number as in E.164: + and 7 to 15 digits"
    if len(address) > 254 or not _EMAIL.fullmatch(address) or parseaddr(address)[1] != address:
        return "must be an e-mail address in ASCII, without a name"
    return None


def _unknown_fields(body: dict[str, Any], *known: str) -> dict[str, str]:
    return {"": f"may have {', '.join(known)}"} if set(body) - set(known) else {}


def _customer_parameter(request: web.Request, *more: str) -> str:
    for name in request.query:
        if name not in ("customer", *more):
            raise Problem("bad-parameter", f"{name[:40]}: is unknown here.", parameter=name[:40])
    if "customer" not in request.query:
        raise Problem("bad-parameter", "customer: is needed.", parameter="customer")
    return _matched(request.query["customer"], "customer", CUSTOMER)


def _matched(text: str, name: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise Problem("bad-parameter", f"{name}: must match {pattern.pattern}.", parameter=name)
    return text


def _json(document: dict[str, Any], headers: dict[str, str], status: int = 200) -> web.Response:
    body = msgspec.json.encode(document, enc_hook=_encode)
    return web.Response(body=body, content_type="application/json", headers=headers, status=status)


def _encode(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    raise NotImplementedError(type(value).__name__)


# --- the document ----------------------------------------------------------------------------------------------------

NOTIFICATION_PROBLEMS: Final = (
    "malformed-json", "bad-parameter", "bad-header", "unauthorized", "insufficient-scope", "not-found", "body-timeout",
    "already-exists", "too-large", "unsupported-media-type", "invalid-fields", "upgrade-required", "rate-limited",
    "internal", "store-unavailable", "issuer-unavailable",
)  # fmt: skip


def notification_schemas() -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string"}
    moment = {"type": "string", "format": "date-time"}
    customer = {"type": "string", "pattern": f"^{CUSTOMER.pattern}$"}
    kinds = {"type": "array", "items": text, "maxItems": MAX_PATTERNS,
             "description": "Kinds (whole, the beginning with .*, or *); none: all."}  # fmt: skip
    channels = {"type": "object", "additionalProperties": {"type": "array", "items": {"enum": list(CHANNELS)}},
                "description": "Kind (whole, its beginning with .*, or *) -> channels; longest wins."}  # fmt: skip
    new = {"customer": customer, "channel": {"enum": list(ENDPOINT_CHANNELS)}, "address": text, "kinds": kinds}

    def described(properties: dict[str, Any], required: list[str], description: str) -> dict[str, Any]:
        return {"type": "object", "description": description, "properties": properties, "required": required}

    delivery = {
        "channel": {"enum": list(CHANNELS)}, "endpoint_id": text,
        "state": {"enum": ["waiting", "sending", "delivered", "dead"]}, "attempts": {"type": "integer"},
        "last_error": text, "next_attempt_at": {"oneOf": [moment, {"type": "null"}]},
        "ended_at": {"oneOf": [moment, {"type": "null"}]},
    }  # fmt: skip
    return {
        "NewEndpoint": described(new, ["customer", "channel", "address"], "Where to tell a customer."),
        "Endpoint": described(
            {
                "id": text, **new, "created_at": moment,
                "disabled_reason": {"type": ["string", "null"], "description": "Not used while set."},
                "secret": {**text, "description": "Signing secret of a webhook; shown when it is made, never again."},
            },
            ["id", *new],
            "An endpoint.",
        ),
        "Endpoints": described(
            {"endpoints": {"type": "array", "items": {"$ref": "#/components/schemas/Endpoint"}}}, ["endpoints"], "All."
        ),
        "NewPreferences": described({"channels": channels}, ["channels"], "Which channels a customer wants."),
        "Preferences": described(
            {"customer": customer, "channels": channels}, ["customer", "channels"], "Preferences; empty: all channels."
        ),
        "Notification": described(
            {"id": text, "customer": customer, "kind": text, "occurred_at": moment, "accepted_at": moment,
             "data": {"type": "object"},
             "deliveries": {"type": "array", "items": described(delivery, list(delivery), "A delivery.")}},
            ["id", "customer", "kind", "occurred_at", "accepted_at", "data", "deliveries"],
            "A notification and how far it is.",
        ),
    }  # fmt: skip


def notification_paths(problems: dict[str, Any]) -> dict[str, Any]:
    """The paths; ``problems`` are the answers of `NOTIFICATION_PROBLEMS`."""

    def operation(
        name: str, summary: str, scope: str, status: str, answer: str | None, *parameters: dict[str, Any],
        body: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        success: dict[str, Any] = {"description": summary}
        if answer is not None:
            success["content"] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
        described: dict[str, Any] = {
            "tags": ["Notifications"], "operationId": name, "summary": summary, "security": [{"oauth": [scope]}],
            "parameters": list(parameters), "responses": {status: success, **problems},
        }  # fmt: skip
        if body is not None:
            schema = {"$ref": f"#/components/schemas/{body}"}
            described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        return described

    def path(name: str, pattern: str) -> dict[str, Any]:
        schema = {"type": "string", "pattern": f"^{pattern}$"}
        return {"name": name, "in": "path", "required": True, "schema": schema}

    read, written = "notifications:read", "notifications:write"
    asked = {"name": "customer", "in": "query", "required": True,
             "schema": {"type": "string", "pattern": f"^{CUSTOMER.pattern}$"}}  # fmt: skip
    after = {"name": "after", "in": "query", "schema": {"type": "integer", "minimum": 0},
             "description": "Sequence of the last one handled; without it only new ones come."}  # fmt: skip
    customer = path("customer", CUSTOMER.pattern)
    return {
        "/v1/notifications/stream": {
            "get": operation("streamNotifications", "A customer's notifications by WebSocket", read, "101", None,
                             asked, after)
        },
        "/v1/notifications/endpoints": {
            "get": operation("listEndpoints", "A customer's endpoints", read, "200", "Endpoints", asked),
            "post": operation("addEndpoint", "Add an endpoint; of a webhook with its secret", written, "201",
                              "Endpoint", body="NewEndpoint"),
        },
        "/v1/notifications/endpoints/{endpoint}": {
            "delete": operation("deleteEndpoint", "Use an endpoint no more", written, "204", None,
                                path("endpoint", ID.pattern))
        },
        "/v1/notifications/preferences/{customer}": {
            "get": operation("getPreferences", "A customer's preferences", read, "200", "Preferences", customer),
            "put": operation("setPreferences", "Replace a customer's preferences", written, "200", "Preferences",
                             customer, body="NewPreferences"),
        },
        "/v1/notifications/{id}": {
            "get": operation("getNotification", "A notification and its deliveries", read, "200", "Notification",
                             path("id", ID.pattern))
        },
    }  # fmt: skip
