"""One worker's application: what it is made of, its routes, and what every answer has.

Errors anywhere below a handler become RFC 9457 problems here. Every answer carries the request's trace id
(``X-Request-Id``, the trace id of an incoming ``traceparent`` or a new one), which is in every log line of it.
"""

from __future__ import annotations

import asyncio
import gc
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
import structlog
from aiohttp import web
from aiohttp.client_exceptions import ClientConnectionError, ClientPayloadError
from aiohttp.http_exceptions import LineTooLong

from api.auth import (
    Authenticator,
    JwksUrl,
    LocalKeys,
    Principal,
    TokenError,
    client_credentials,
    granted_scopes,
    issue_token,
)
from api.batching import Batcher
from api.card_transactions import LABEL, LABELS_ROUTE, TRANSACT, TRANSACTIONS_ROUTE, CardTransactions
from api.card_vault import CardVault
from api.cards import CardRoutes
from api.clients import ClientStore
from api.config import ApiSettings
from api.cross_transfers import CROSS_ROUTE, CrossTransfers
from api.docs_page import PAGE, POLICY
from api.fraud_cases import FraudCases
from api.fraud_decisions import DECISIONS_PATH, READ, decisions_of
from api.history import TIMESTAMP_MAX, parse_time
from api.idempotency import IdempotencyStore
from api.ingest import LedgerIngest, WriteRoute, preferred_wait
from api.iso20022 import Iso20022Routes
from api.keys import KeyStore
from api.logs import log, trace_id_of
from api.market_data import MAX_MESSAGE_BYTES, FeedClient
from api.metadata import Metadata
from api.metrics import count, exposition, observe
from api.notifications import NotificationRoutes, Notifications
from api.openapi import openapi_document
from api.openapi_fraud import add_fraud
from api.openapi_ledger import add_ledger
from api.openapi_trading import add_trading
from api.payment_gateway import PaymentsGateway
from api.payment_reports import add_payment_report_routes
from api.payments import add_payment_routes
from api.problems import PROBLEMS, Problem, problem_of_status, problem_response
from api.producer import KafkaSender
from api.queries import Cursor, Queries
from api.rate_limit import RateLimiter
from api.results import ResultReader
from api.statement_files import csv_text
from api.trading import ADMIN_ROUTE, ORDER_ROUTES, Trading, order_route, read_order_id
from infra.registry import schema_ids
from infra.settings import Settings
from infra.stores import valkey_conninfo
from pipelines.catalogue import (
    FRAUD_DECISIONS,
    FRAUD_LABELS,
    FRAUD_SHARDS,
    FRAUD_TRANSACTIONS,
    LEDGER_COMMANDS,
    LEDGER_CROSS_COMMANDS,
    LEDGER_RESULTS,
    LEDGER_SHARDS,
    MATCHING_COMMANDS,
    MATCHING_REPORTS,
    PIPELINES,
)
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import StreambankError
from pipelines.frames import Events, Frame

__all__ = ["Worker", "answer_unparsed", "make_app"]

WRITE_ROUTES: Final = (
    WriteRoute("/v1/accounts", ("CreateAccount",)),
    WriteRoute("/v1/transfers", ("CreateTransfer",)),
    WriteRoute("/v1/ledger/events", ("CreateAccount", "CreateTransfer")),
)
CASE_ROUTES: Final = (
    ("GET", "/v1/fraud/cases", FraudCases.page),
    ("GET", "/v1/fraud/cases/{id}", FraudCases.get),
    ("POST", "/v1/fraud/cases/{id}/assign", FraudCases.assign),
    ("POST", "/v1/fraud/cases/{id}/notes", FraudCases.note),
    ("POST", "/v1/fraud/cases/{id}/close", FraudCases.close_case),
)
MAX_FORM_BYTES: Final = 8192
MAX_METADATA_BYTES: Final = 128 << 10
WRITTEN_TOPICS: Final = (FRAUD_TRANSACTIONS, LEDGER_COMMANDS, MATCHING_COMMANDS, LEDGER_CROSS_COMMANDS)
REGISTRY_RETRY_SECONDS: Final = 1.0
START_PATIENCE_SECONDS: Final = 5.0
"""How long a starting worker waits for Kafka and registry before it serves without them."""
YOUNG_OBJECTS: Final = 10_000
"""New objects between two looks for garbage in circles, of which requests leave little: one look for ten requests or
so instead of several for each."""
READY_CHECK_SECONDS: Final = 1.0
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
SEARCHED: Final = {
    "code": 2**16 - 1,
    "user_data_128": 2**128 - 1,
    "user_data_64": 2**64 - 1,
    "user_data_32": 2**32 - 1,
}
"""What transfers are found by, with the largest value."""
_ID: Final = re.compile(r"0|[1-9][0-9]{0,38}", re.ASCII)
_MONTH: Final = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)
_SINGLE_HEADERS: Final = ("Authorization", "Content-Type", "Content-Encoding", "Idempotency-Key")
"""Headers of which a proxy may see the first and somebody else the last: sent twice they are refused."""
_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Server": "streambank",
}
STRICT_TRANSPORT: Final = "max-age=31536000; includeSubDomains"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Worker:
    """Everything that the handlers of one process use. Made inside its event loop; `open` and `close` it."""

    def __init__(self, settings: Settings, config: ApiSettings) -> None:
        self.settings = settings
        self.config = config
        self.issuer = config.issuer or settings.api_url
        self.commands = codec_of(LEDGER_COMMANDS.name)
        self.results_codec = codec_of(LEDGER_RESULTS.name)
        self.keys = KeyStore(settings.secrets_dir / "keys", config.token_seconds)
        self.clients = ClientStore(settings.secrets_dir / "clients.json")
        self.jwks = JwksUrl(config.jwks_url) if config.jwks_url else None
        self.authenticator = Authenticator(
            self.jwks or LocalKeys(self.keys, self.clients), issuer=self.issuer, audience=config.audience
        )
        limiter = partial(
            RateLimiter, valkey_conninfo(settings), workers=config.workers, timeout=config.valkey_seconds,
            prefix=settings.topic_prefix,
        )  # fmt: skip
        self.events_limit: RateLimiter = limiter(policy="events", limit=config.events_per_minute)
        self.tokens_limit: RateLimiter = limiter(policy="tokens", limit=config.token_attempts_per_minute)
        self.cards_limit: RateLimiter = limiter(policy="cards", limit=config.cards_per_minute)
        self.vault = CardVault(settings, timeout=config.store_seconds)
        self.notifications = Notifications(settings, config.store_seconds)
        self.idempotency = IdempotencyStore(
            valkey_conninfo(settings),
            keep_seconds=config.idempotency_hours * 3600,
            lock_seconds=config.idempotency_lock_seconds,
            timeout=config.valkey_seconds,
            prefix=settings.topic_prefix,
        )
        self.sender = KafkaSender(settings, LEDGER_COMMANDS, config.delivery_seconds)
        self.batcher = Batcher(
            self.commands,
            self.sender,
            shards=LEDGER_SHARDS,
            frame_events=min(config.frame_events, PIPELINES["ledger"].max_frame_events),
            frame_bytes=config.frame_bytes,
            frames_in_flight=config.frames_in_flight,
            linger_seconds=config.linger_seconds,
            buffered_events=config.buffered_events,
        )
        self.results = ResultReader(settings, LEDGER_RESULTS)
        self.ingest = LedgerIngest(
            config, self.commands, self.results_codec, self.batcher, self.results, self.events_limit, self.idempotency
        )
        account, transfer = (self.commands.event_type(name) for name in ("CreateAccount", "CreateTransfer"))
        self.queries = Queries(
            settings,
            timeout=config.store_seconds,
            account_flags=account.field("flags").flags,
            transfer_flags=transfer.field("flags").flags,
        )
        self.cases = FraudCases(
            settings, self._guard, timeout=config.store_seconds, delivery_seconds=config.delivery_seconds,
            idle_seconds=config.idle_seconds,
        )  # fmt: skip
        self.card_transactions = CardTransactions(
            settings, config, self.cases.sender, self.events_limit, self.idempotency
        )
        self.orders_limit: RateLimiter = limiter(policy="orders", limit=config.orders_per_minute)
        self.trading = Trading(settings, config, self.events_limit, self.orders_limit, self.idempotency)
        self.payments = PaymentsGateway(settings, config, self.events_limit)
        self.cross_transfers = CrossTransfers(settings, config, self.events_limit, self.idempotency)
        self.metadata = Metadata(self.queries)
        document = openapi_document(self.commands, self.results_codec)
        self.document = msgspec.json.encode(add_fraud(add_ledger(add_trading(document))))
        self._readiness: tuple[float, bool] = (float("-inf"), False)
        self._background: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        # Compiling (or loading the cached) codec takes seconds, which must not fall on the first request.
        await asyncio.to_thread(
            _warm, self.commands, self.results_codec, codec_of(MATCHING_COMMANDS.name), codec_of(MATCHING_REPORTS.name),
            *(codec_of(topic.name) for topic in (FRAUD_TRANSACTIONS, FRAUD_DECISIONS, FRAUD_LABELS)),
        )  # fmt: skip
        # A restarted worker must not refuse what its siblings accept, so it gets ready before it serves; but without
        # Kafka or registry it serves too: tokens, queries, and 503 for writes.
        learning = asyncio.create_task(self._learn_schema_id())
        self._background.append(learning)
        await asyncio.gather(
            asyncio.wait([learning], timeout=START_PATIENCE_SECONDS),
            asyncio.to_thread(self.results.wait_ready, START_PATIENCE_SECONDS),
            asyncio.to_thread(self.trading.reports.wait_ready, START_PATIENCE_SECONDS),
            asyncio.to_thread(self.cross_transfers.results.wait_ready, START_PATIENCE_SECONDS),
            asyncio.to_thread(self.card_transactions.decisions.wait_ready, START_PATIENCE_SECONDS),
            asyncio.to_thread(self.card_transactions.labels.wait_ready, START_PATIENCE_SECONDS),
        )
        await self.queries.open()
        await self.cases.open()
        await self.payments.open(START_PATIENCE_SECONDS)
        await self.vault.open()
        await self.notifications.open()
        # What is there now stays: without it every full collection under load would walk all modules again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)

    async def close(self) -> None:
        """Send and await what was accepted, then let go of everything."""
        for task in self._background:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_seconds):
                await asyncio.gather(
                    self.batcher.drain(), self.trading.batcher.drain(), self.cross_transfers.batcher.drain(),
                    *(batcher.drain() for batcher in self.card_transactions.batchers),
                )  # fmt: skip
        cross, trading = self.cross_transfers, self.trading
        for part in (
            self.sender, self.results, cross.sender, cross.results, trading.sender, trading.reports, trading.feed,
            self.card_transactions.decisions, self.card_transactions.labels,
        ):  # fmt: skip
            await asyncio.to_thread(part.close)
        await self.payments.close()
        await self.queries.close()
        await self.cases.close()
        await self.vault.close()
        await self.trading.books.close()
        await self.notifications.close()
        await self.idempotency.close()
        await self.events_limit.close()
        await self.tokens_limit.close()
        await self.orders_limit.close()
        await self.cards_limit.close()
        if self.jwks is not None:
            await self.jwks.close()

    async def serve_grpc(self) -> Any:
        """The running gRPC server; loaded only where it is wanted."""
        from api.grpc_auth import GrpcAccess
        from api.grpc_ledger import LedgerService
        from api.grpc_payments import TransactionService
        from api.grpc_server import start_grpc
        from api.grpc_trading import TradingService

        access = GrpcAccess(self.authenticator, self.events_limit)
        ledger, trading = LedgerService(self.ingest, self.queries, access), TradingService(self.trading, access)
        payments = TransactionService(self.payments, access, self.config)
        return await start_grpc(self.settings, self.config, [ledger.add_to, trading.add_to, payments.add_to])

    async def kafka_answers(self) -> bool:
        """Whether the broker answers and has the topic; asked at most once a second."""
        checked_at, answers = self._readiness
        if time.monotonic() - checked_at > READY_CHECK_SECONDS:
            answers = await asyncio.to_thread(self.sender.reachable, READY_CHECK_SECONDS)
            self._readiness = (time.monotonic(), answers)
        return answers

    async def _guard(self, request: web.Request, scope: str) -> tuple[Principal, dict[str, str]]:
        principal = await self.authenticator.principal(request.headers.get("Authorization"), scope)
        allowance = await self.events_limit.charge(principal.client_id, 1)
        return principal, allowance.headers()

    async def _learn_schema_id(self) -> None:
        said = ""
        while None in (self.sender.schema_id, self.trading.sender.schema_id, self.cross_transfers.sender.schema_id):
            try:
                found = await asyncio.to_thread(schema_ids, WRITTEN_TOPICS, self.settings)
                self.cases.sender.schema_id = found[FRAUD_TRANSACTIONS.name]
                self.sender.schema_id = found[LEDGER_COMMANDS.name]
                self.trading.sender.schema_id = found[MATCHING_COMMANDS.name]
                self.cross_transfers.sender.schema_id = found[LEDGER_CROSS_COMMANDS.name]
            except StreambankError as error:
                if str(error) != said:
                    said = str(error)
                    log().warning("schema ids are not known yet", error=said)
                await asyncio.sleep(REGISTRY_RETRY_SECONDS)


def _warm(*codecs: FrameCodec) -> None:
    for codec in codecs:
        rows = codec.new_rows(1)
        codec.decode(codec.encode(Frame(codec.topic, 0, 0, 0, None, Events(rows))))


WORKER: Final = web.AppKey("worker", Worker)


def make_app(settings: Settings, config: ApiSettings) -> web.Application:
    """The application; its `Worker` lives from start-up to clean-up."""
    app = web.Application(middlewares=[_edge])

    async def life(app: web.Application) -> AsyncIterator[None]:
        worker = Worker(settings, config)
        app[WORKER] = worker
        await worker.open()
        grpc_server = await worker.serve_grpc() if config.grpc_port else None
        yield
        if grpc_server is not None:
            await grpc_server.stop(config.drain_seconds)
        await worker.close()

    app.cleanup_ctx.append(life)
    for route in WRITE_ROUTES:
        app.router.add_post(route.path, partial(_write, route))
    for route in ORDER_ROUTES:
        app.router.add_post(route.path, partial(_order, route))
    app.router.add_post(CROSS_ROUTE.path, _cross_transfer)
    app.router.add_post(TRANSACTIONS_ROUTE.path, _card_transactions)
    app.router.add_post(LABELS_ROUTE.path, _fraud_labels)
    app.router.add_get(DECISIONS_PATH, _fraud_decisions)
    app.router.add_get(f"{CROSS_ROUTE.path}/{{id}}", _find_cross_transfer)
    app.router.add_post("/v1/orders/{id}/cancel", partial(_order_change, "CancelOrder"))
    app.router.add_patch("/v1/orders/{id}", partial(_order_change, "AmendOrder"))
    app.router.add_post(ADMIN_ROUTE.path, _trading_admin)
    app.router.add_get("/v1/orders/{id}", _find_order)
    app.router.add_get("/v1/books/{symbol}", _book)
    app.router.add_get("/v1/market-data", _market_data)
    app.router.add_get("/v1/accounts/{id}", _account)
    app.router.add_get("/v1/accounts/{id}/statement", _statement)
    app.router.add_get("/v1/accounts/{id}/balance", _balance)
    app.router.add_get("/v1/accounts/{id}/statement.csv", _statement_file)
    app.router.add_get("/v1/accounts/{id}/metadata", _account_metadata)
    app.router.add_put("/v1/accounts/{id}/metadata", _account_metadata)
    app.router.add_get("/v1/currencies", _currencies)
    app.router.add_get("/v1/ledgers", _ledgers)
    app.router.add_get("/v1/ledgers/{ledger}", _ledger_metadata)
    app.router.add_put("/v1/ledgers/{ledger}", _ledger_metadata)
    app.router.add_get("/v1/transfers", _search)
    app.router.add_get("/v1/transfers/{id}", _transfer)
    for method, path, action in CASE_ROUTES:
        app.router.add_route(method, path, partial(_case, action))
    add_payment_routes(
        app,
        lambda request: (
            request.app[WORKER].payments, request.app[WORKER].authenticator, request.app[WORKER].config,
        ),
    )  # fmt: skip
    add_payment_report_routes(app, lambda request: (request.app[WORKER].queries, request.app[WORKER]._guard))
    CardRoutes(WORKER).add(app)
    NotificationRoutes(WORKER).add(app)
    Iso20022Routes(WORKER).add(app)
    if not config.jwks_url:
        app.router.add_post("/oauth/token", _token)
        app.router.add_get("/.well-known/jwks.json", _jwks)
    app.router.add_get("/health/live", _live)
    app.router.add_get("/health/ready", _ready)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/openapi.json", _openapi)
    app.router.add_get("/docs", _docs)
    app.router.add_get("/problems", _problem_types)
    app.router.add_get("/problems/{slug}", _problem_type)
    return app


@web.middleware
async def _edge(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Trace id, problems, headers, metrics and one log line for every request."""
    started = time.monotonic()
    trace_id = trace_id_of(request.headers.get("traceparent"))
    request["trace_id"] = trace_id
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "unknown"
    structlog.contextvars.bind_contextvars(trace_id=trace_id)
    try:
        response = await _answered(request, handler, trace_id)
        for name, value in _SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        if request.secure:
            response.headers.setdefault("Strict-Transport-Security", STRICT_TRANSPORT)
        response.headers["X-Request-Id"] = trace_id
        if response.status >= 400 and request.can_read_body and not request.content.is_eof():
            response.force_close()  # an unread body is not worth reading
        seconds = time.monotonic() - started
        count("streambank_api_requests", route, str(response.status))
        observe("streambank_api_request_seconds", seconds, route)
        if route.startswith(("/v1", "/oauth")):
            log().info(
                "request",
                method=request.method,
                route=route,
                status=response.status,
                ms=round(seconds * 1000, 1),
                remote=request.remote,
                **request.get("logged", {}),
            )
        return response
    finally:
        structlog.contextvars.unbind_contextvars("trace_id", "client")


async def _answered(request: web.Request, handler: Handler, trace_id: str) -> web.StreamResponse:
    try:
        for name in _SINGLE_HEADERS:
            if len(request.headers.getall(name, ())) > 1:
                raise Problem("bad-header", f"{name} is there more than once; send one.", header=name)
        return await handler(request)
    except Problem as problem:
        return problem_response(problem, trace_id)
    except web.HTTPException as refusal:
        headers = {name: refusal.headers[name] for name in ("Allow", "Location") if name in refusal.headers}
        return problem_response(problem_of_status(refusal.status, refusal.text or "", headers), trace_id)
    except (ConnectionError, ClientConnectionError, ClientPayloadError):
        log().info("the client hung up")
        return problem_response(Problem("body-timeout", "The connection was closed within the body."), trace_id)
    except Exception:
        log().exception("request failed")
        return problem_response(
            Problem("internal", "Something broke here; the request id finds it in the logs."), trace_id
        )


def answer_unparsed(
    connection: web.RequestHandler,
    request: web.BaseRequest,
    status: int = 500,
    exc: BaseException | None = None,
    message: str | None = None,
) -> web.StreamResponse:
    """What aiohttp could not even parse is answered with a problem too; see `web.RequestHandler.handle_error`, whose
    place this takes."""
    trace_id = trace_id_of(None)
    if request.writer.output_size > 0:
        raise ConnectionError("the answer has begun already; the connection is closed")
    if isinstance(exc, LineTooLong):
        problem = Problem("header-too-large", "The request line or a header is too long.")
    elif status < 500:
        # only the first line: the others repeat what was sent
        problem = Problem("malformed-request", f"{(message or 'not HTTP').partition(chr(10))[0].rstrip(' :')}.")
    else:
        log().error("request failed", trace_id=trace_id, exc_info=exc)
        problem = Problem("internal", "Something broke here; the request id finds it in the logs.")
    response = problem_response(problem, trace_id)
    response.headers.update({**_SECURITY_HEADERS, "X-Request-Id": trace_id})
    response.force_close()
    return response


async def _write(route: WriteRoute, request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER]
    principal = await worker.authenticator.principal(request.headers.get("Authorization"), "ledger:write")
    return await worker.ingest.handle(request, route, principal)


async def _cross_transfer(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER]
    principal = await worker.authenticator.principal(request.headers.get("Authorization"), "ledger:write")
    return await worker.cross_transfers.ingest.handle(request, CROSS_ROUTE, principal)


async def _card_transactions(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER]
    principal = await worker.authenticator.principal(request.headers.get("Authorization"), TRANSACT)
    ingest = worker.card_transactions.transactions_ingest.for_portfolio(_portfolio(request))
    return await ingest.handle(request, TRANSACTIONS_ROUTE, principal)


async def _fraud_labels(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER]
    principal = await worker.authenticator.principal(request.headers.get("Authorization"), LABEL)
    ingest = worker.card_transactions.labels_ingest.for_portfolio(_portfolio(request))
    return await ingest.handle(request, LABELS_ROUTE, principal)


async def _fraud_decisions(request: web.Request) -> web.StreamResponse:
    async with _reading(request, READ) as (worker, headers):
        return _json(await decisions_of(worker.queries, _portfolio(request), _path_id(request)), headers)


def _portfolio(request: web.Request) -> int:
    _known_parameters(request, "portfolio")
    return _number(request, "portfolio", 0, FRAUD_SHARDS - 1, 0) or 0


async def _find_cross_transfer(request: web.Request) -> web.StreamResponse:
    async with _reading(request) as (worker, headers):
        _known_parameters(request, "min_sequence")
        sequence = _number(request, "min_sequence", 0, 2**63 - 1, 0) or 0
        wait = preferred_wait(request.headers.getall("Prefer", []), worker.config.wait_seconds)
        return _json(await worker.queries.cross_transfer(_path_id(request), sequence, wait), headers)


async def _case(
    action: Callable[[FraudCases, web.Request], Awaitable[web.Response]], request: web.Request
) -> web.StreamResponse:
    return await action(request.app[WORKER].cases, request)


async def _order(route: WriteRoute, request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER]
    principal = await worker.authenticator.principal(request.headers.get("Authorization"), "orders:write")
    return await worker.trading.ingest.for_client(principal).handle(request, route, principal)


async def _order_change(kind: str, request: web.Request) -> web.StreamResponse:
    return await _order(order_route(kind, request.match_info["id"]), request)


async def _trading_admin(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER]
    principal = await worker.authenticator.principal(request.headers.get("Authorization"), "orders:admin")
    _known_parameters(request, "symbol")
    ingest = worker.trading.ingest.for_admin(request.query.get("symbol"))
    return await ingest.handle(request, ADMIN_ROUTE, principal)


@asynccontextmanager
async def _reading(request: web.Request, scope: str = "ledger:read") -> AsyncIterator[tuple[Worker, dict[str, str]]]:
    """A query of a client that may read and has not asked too much; yields the headers of its answer."""
    worker = request.app[WORKER]
    principal = await worker.authenticator.principal(request.headers.get("Authorization"), scope)
    allowance = await worker.events_limit.charge(principal.client_id, 1)
    headers = allowance.headers()
    try:
        yield worker, headers
    except Problem as problem:
        problem.headers |= headers
        raise


async def _find_order(request: web.Request) -> web.StreamResponse:
    async with _reading(request, "orders:read") as (worker, headers):
        _known_parameters(request, "symbol")
        symbol = request.query.get("symbol", "")
        if not symbol:
            raise _bad_parameter("symbol", "is needed: it says in which shard the order is", "nothing")
        order = await worker.trading.books.order(symbol, read_order_id(request.match_info["id"]))
        reader = await worker.authenticator.principal(request.headers.get("Authorization"), "orders:read")
        if order is None or not ("orders:admin" in reader.scopes or reader.may_trade(order["account"])):
            raise Problem("not-found", f"No order {request.match_info['id'][:40]} of {symbol[:40]} is known.")
        return _json(order, headers)


async def _book(request: web.Request) -> web.StreamResponse:
    async with _reading(request, "orders:read") as (worker, headers):
        _known_parameters(request, "depth", "orders")
        depth = _number(request, "depth", 0, MAX_PAGE, DEFAULT_PAGE)
        with_orders = request.query.get("orders", "false")
        if with_orders not in ("true", "false"):
            raise _bad_parameter("orders", "must be true or false", with_orders)
        book = await worker.trading.books.book(request.match_info["symbol"], with_orders=with_orders == "true")
        if book is None:
            raise Problem("not-found", f"Nothing was ever traded or ordered in {request.match_info['symbol'][:40]}.")
        return _json(book | {side: book[side][:depth] for side in ("bids", "asks")}, headers)


async def _market_data(request: web.Request) -> web.StreamResponse:
    async with _reading(request, "orders:read") as (worker, _):
        _known_parameters(request)
        socket = web.WebSocketResponse(heartbeat=20, max_msg_size=MAX_MESSAGE_BYTES, compress=False)
        if not socket.can_prepare(request).ok:
            raise Problem("bad-header", "This route is a WebSocket (RFC 6455); send an upgrade.", header="Upgrade")
        await socket.prepare(request)
        await FeedClient(worker.trading.feed, socket).run()
        return socket


async def _account(request: web.Request) -> web.StreamResponse:
    async with _reading(request) as (worker, headers):
        id_, ledger, sequence, wait = _read_parameters(request, worker)
        return _json(await worker.queries.account(id_, ledger, sequence, wait), headers)


async def _transfer(request: web.Request) -> web.StreamResponse:
    async with _reading(request) as (worker, headers):
        id_, ledger, sequence, wait = _read_parameters(request, worker)
        return _json(await worker.queries.transfer(id_, ledger, sequence, wait), headers)


async def _balance(request: web.Request) -> web.StreamResponse:
    async with _reading(request) as (worker, headers):
        id_, ledger, sequence, wait = _read_parameters(request, worker, "at")
        at = _time(request, "at", TIMESTAMP_MAX)
        return _json(await worker.queries.balance(id_, ledger, at, sequence, wait), headers)


async def _search(request: web.Request) -> web.StreamResponse:
    async with _reading(request) as (worker, headers):
        _known_parameters(request, "ledger", *SEARCHED, "since", "until", "limit", "min_sequence")
        ledger = _number(request, "ledger", 0, 2**32 - 1, None)
        if ledger is None:
            raise _bad_parameter("ledger", "is needed", "nothing")
        filters = {name: _number(request, name, 1, maximum, None) for name, maximum in SEARCHED.items()}
        if all(value is None for value in filters.values()):
            raise _bad_parameter("code", f"or one of {', '.join(list(SEARCHED)[1:])} is needed", "none")
        limit = _number(request, "limit", 1, MAX_PAGE, DEFAULT_PAGE) or DEFAULT_PAGE
        since, until = _time(request, "since", 0), _time(request, "until", TIMESTAMP_MAX)
        place = (ledger, filters, since, until, limit)
        return _json(await worker.queries.search(*place, *_awaited(request, worker, ledger)), headers)


async def _statement(request: web.Request) -> web.StreamResponse:
    async with _reading(request) as (worker, headers):
        _known_parameters(request, "ledger", "month", "limit", "cursor")
        text = request.query.get("month") or datetime.now(UTC).strftime("%Y-%m")
        found = _MONTH.fullmatch(text)
        if found is None:
            raise _bad_parameter("month", "must be YYYY-MM", text)
        month = int(found[1]) * 100 + int(found[2])
        limit = _number(request, "limit", 1, MAX_PAGE, DEFAULT_PAGE)
        cursor = request.query.get("cursor")
        page = await worker.queries.statement(
            _path_id(request),
            _number(request, "ledger", 0, 2**32 - 1, None),
            month,
            limit if limit is not None else DEFAULT_PAGE,
            Cursor.read(cursor, month) if cursor else None,
        )
        return _json(page, headers)


async def _statement_file(request: web.Request) -> web.StreamResponse:
    async with _reading(request) as (worker, headers):
        _known_parameters(request, "ledger", "since", "until", "min_sequence")
        since, until = _time(request, "since", 0), _time(request, "until", TIMESTAMP_MAX)
        account_id = _path_id(request)
        ledger = _number(request, "ledger", 0, 2**32 - 1, None)
        pieces = worker.queries.entries(account_id, ledger, since, until, *_awaited(request, worker, ledger))
        first: list[dict[str, Any]] = await anext(pieces, [])
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/csv; charset=utf-8",
                "Content-Disposition": f'attachment; filename="statement-{account_id}.csv"',
                **_SECURITY_HEADERS,
                **headers,
                "X-Request-Id": request["trace_id"],
            }
        )
        await response.prepare(request)
        await response.write(csv_text(first, header=True))
        try:
            async for piece in pieces:
                await response.write(csv_text(piece))
        except Problem:
            # half a statement must not look like a whole one: the connection ends without the last chunk
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionError("the statement broke off") from None
        await response.write_eof()
        return response


async def _currencies(request: web.Request) -> web.StreamResponse:
    async with _reading(request) as (worker, headers):
        return _json(worker.metadata.currencies(), headers)


async def _ledgers(request: web.Request) -> web.StreamResponse:
    async with _reading(request) as (worker, headers):
        return _json(await worker.metadata.ledgers(), headers)


async def _ledger_metadata(request: web.Request) -> web.StreamResponse:
    text = request.match_info["ledger"]
    if not _ID.fullmatch(text) or int(text) >= 2**32:
        raise _bad_parameter("ledger", "must be an integer below 2^32", text)
    if request.method == "PUT":
        worker, body = await _told(request)
        return _json(await worker.metadata.put_ledger(int(text), body))
    async with _reading(request) as (worker, headers):
        return _json(await worker.metadata.ledger(int(text)), headers)


async def _account_metadata(request: web.Request) -> web.StreamResponse:
    _known_parameters(request, "ledger")
    account_id, ledger = _path_id(request), _number(request, "ledger", 0, 2**32 - 1, None)
    if ledger is None:
        raise _bad_parameter("ledger", "is needed", "nothing")
    if request.method == "PUT":
        worker, body = await _told(request)
        return _json(await worker.metadata.put_account(ledger, account_id, body))
    async with _reading(request) as (worker, headers):
        return _json(await worker.metadata.account(ledger, account_id), headers)


async def _told(request: web.Request) -> tuple[Worker, bytes]:
    """The small body of a client that may write."""
    worker = request.app[WORKER]
    principal = await worker.authenticator.principal(request.headers.get("Authorization"), "ledger:write")
    await worker.events_limit.charge(principal.client_id, 1)
    try:
        async with asyncio.timeout(worker.config.idle_seconds):
            body = await request.content.read(MAX_METADATA_BYTES + 1)
            while len(body) <= MAX_METADATA_BYTES and (more := await request.content.read(MAX_METADATA_BYTES)):
                body += more
    except TimeoutError:
        raise Problem("body-timeout", f"The body did not come within {worker.config.idle_seconds:g} seconds.") from None
    if len(body) > MAX_METADATA_BYTES:
        raise Problem("too-large", f"The body is longer than {MAX_METADATA_BYTES} bytes.")
    return worker, body


def _read_parameters(request: web.Request, worker: Worker, *more: str) -> tuple[int, int | None, int, float]:
    _known_parameters(request, "ledger", "min_sequence", *more)
    ledger = _number(request, "ledger", 0, 2**32 - 1, None)
    return _path_id(request), ledger, *_awaited(request, worker, ledger)


def _awaited(request: web.Request, worker: Worker, ledger: int | None) -> tuple[int, float]:
    """The sequence that the answer must have reached, and how many seconds it may wait for it."""
    sequence = _number(request, "min_sequence", 0, 2**63 - 1, 0) or 0
    if sequence and ledger is None:
        raise _bad_parameter("min_sequence", "needs `ledger`, whose shard counts the sequence", str(sequence))
    return sequence, preferred_wait(request.headers.getall("Prefer", []), worker.config.wait_seconds)


def _known_parameters(request: web.Request, *names: str) -> None:
    for name in request.query:
        if name not in names:
            raise _bad_parameter(name[:40], f"is unknown here; there are {', '.join(names)}", request.query[name])


def _path_id(request: web.Request) -> int:
    text = request.match_info["id"]
    if not _ID.fullmatch(text) or int(text) >= 2**128:
        raise _bad_parameter("id", "must be a decimal number below 2^128", text)
    return int(text)


def _number(request: web.Request, name: str, minimum: int, maximum: int, default: int | None) -> int | None:
    text = request.query.get(name)
    if text is None:
        return default
    if not _ID.fullmatch(text) or not minimum <= int(text) <= maximum:
        raise _bad_parameter(name, f"must be an integer from {minimum} to {maximum}", text)
    return int(text)


def _time(request: web.Request, name: str, default: int) -> int:
    """Nanoseconds since the epoch."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        return parse_time(text)
    except ValueError:
        raise _bad_parameter(name, "must be a time as in RFC 3339, or nanoseconds since 1970", text) from None


def _bad_parameter(name: str, must: str, found: str) -> Problem:
    return Problem("bad-parameter", f"{name}: {must}; found {found[:60]}.", parameter=name)


async def _token(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER]
    authorization = request.headers.get("Authorization")
    try:
        form = await _form(request, worker.config.idle_seconds)
        client_id, secret = client_credentials(authorization, form)
        await worker.tokens_limit.charge(f"{client_id[:128]}/{request.remote}", 1)
        if form.get("grant_type") != "client_credentials":
            error = "invalid_request" if "grant_type" not in form else "unsupported_grant_type"
            raise TokenError(error, "grant_type must be client_credentials")
        client = await worker.clients.authenticate(client_id[:128], secret[:256])
        if client is None:
            raise TokenError("invalid_client", "the client is unknown, revoked, or its secret is wrong", 401)
        scopes = granted_scopes(client, form.get("scope"))
        token = issue_token(
            worker.keys, client, scopes,
            issuer=worker.issuer, audience=worker.config.audience, seconds=worker.config.token_seconds,
        )  # fmt: skip
    except TokenError as refusal:
        count("streambank_api_tokens", refusal.error)
        headers = {"WWW-Authenticate": 'Basic realm="streambank"'} if refusal.status == 401 else {}
        return _json({"error": refusal.error, "error_description": refusal.description}, headers, refusal.status)
    count("streambank_api_tokens", "issued")
    return _json(
        {"access_token": token, "token_type": "Bearer", "expires_in": worker.config.token_seconds,
         "scope": " ".join(scopes)},
        {"Pragma": "no-cache"},
    )  # fmt: skip


async def _form(request: web.Request, idle_seconds: float) -> dict[str, str]:
    if request.content_type != "application/x-www-form-urlencoded":
        raise TokenError("invalid_request", "send the parameters as application/x-www-form-urlencoded")
    try:
        async with asyncio.timeout(idle_seconds):
            body = await request.content.read(MAX_FORM_BYTES + 1)
            while len(body) <= MAX_FORM_BYTES and (more := await request.content.read(MAX_FORM_BYTES + 1 - len(body))):
                body += more
    except TimeoutError:
        raise Problem("body-timeout", f"The body did not come within {idle_seconds:g} seconds.") from None
    if len(body) > MAX_FORM_BYTES:
        raise TokenError("invalid_request", f"the body is longer than {MAX_FORM_BYTES} bytes")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=16)
    except (UnicodeDecodeError, ValueError):
        raise TokenError("invalid_request", "the body is not a form of at most 16 fields") from None
    repeated = [name for name, values in fields.items() if len(values) > 1]
    if repeated:
        raise TokenError("invalid_request", "a parameter is there twice")
    return {name: values[0] for name, values in fields.items()}


async def _jwks(request: web.Request) -> web.StreamResponse:
    return _json(request.app[WORKER].keys.jwks(), {"Cache-Control": "public, max-age=60"})


async def _live(request: web.Request) -> web.StreamResponse:
    return _json({"status": "live"})


async def _ready(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER]
    kafka, valkey, stores = await asyncio.gather(
        worker.kafka_answers(), worker.idempotency.ping(), worker.queries.states()
    )
    required = {"kafka": kafka, "schema_registry": worker.sender.schema_id is not None}
    reported = {"results": worker.results.ready, "valkey": valkey, **stores}
    ready = all(required.values())
    return _json(
        {"status": "ready" if ready else "not ready", "required": required, "reported": reported},
        status=200 if ready else 503,
    )


async def _metrics(request: web.Request) -> web.StreamResponse:
    return web.Response(body=await asyncio.to_thread(exposition), content_type="text/plain", charset="utf-8")


async def _openapi(request: web.Request) -> web.StreamResponse:
    return web.Response(body=request.app[WORKER].document, content_type="application/json")


async def _docs(request: web.Request) -> web.StreamResponse:
    return web.Response(text=PAGE, content_type="text/html", headers={"Content-Security-Policy": POLICY})


async def _problem_types(request: web.Request) -> web.StreamResponse:
    return _json({"problems": [_described(slug) for slug in PROBLEMS]})


async def _problem_type(request: web.Request) -> web.StreamResponse:
    slug = request.match_info["slug"]
    if slug not in PROBLEMS:
        raise Problem("not-found", "There is no such problem type; GET /problems lists them.")
    return _json(_described(slug))


def _described(slug: str) -> dict[str, Any]:
    kind = PROBLEMS[slug]
    return {"type": f"/problems/{slug}", "status": kind.status, "title": kind.title, "advice": kind.advice}


def _json(document: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(document), content_type="application/json", headers=headers, status=status
    )
