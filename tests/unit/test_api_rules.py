"""Small rules of the API: keys, preferences, cursors, limits without Valkey, problems, and the document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from api.app import make_app
from api.config import ApiSettings
from api.docs_page import PAGE
from api.idempotency import IdempotencyStore, parse_key
from api.ingest import preferred_wait
from api.openapi import openapi_document
from api.openapi_fraud import add_fraud
from api.openapi_ledger import add_ledger
from api.openapi_trading import add_trading
from api.problems import PROBLEMS, Problem
from api.queries import Cursor, json_integer
from api.rate_limit import RateLimiter
from infra.settings import Settings
from pipelines.codec import codec_of

NOBODY = "redis://127.0.0.1:9/0"
DOCUMENT = add_fraud(add_ledger(add_trading(openapi_document(codec_of("ledger.commands"), codec_of("ledger.results")))))


@pytest.mark.parametrize(
    ("header", "key"),
    [("abc", "abc"), ('"abc"', "abc"), (' "a\\"b\\\\" ', 'a"b\\'), ("8e03978e-40d5-43dd-bc93-6894a57f9324",) * 2],
)
def test_idempotency_keys_are_quoted_or_bare(header: str, key: str) -> None:
    assert parse_key(header) == key


@pytest.mark.parametrize(
    ("header", "slug"),
    [(None, "idempotency-key-missing"), ("", "idempotency-key-missing"), ('"a', "bad-header"), ('"a"b"', "bad-header"),
     ('""', "bad-header"), ("a b", "bad-header"), ("x" * 256, "bad-header"), ("ä", "bad-header")],
)  # fmt: skip
def test_bad_idempotency_keys(header: str | None, slug: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_key(header)
    assert caught.value.kind.slug == slug


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [([], 0), (["wait=5"], 5), (["respond-async, wait=10"], 10), (["respond-async", 'Wait="3"; x=1'], 3),
     (["wait=100"], 30), (["wait=-1"], 0), (["wait=x"], 0), (["wait"], 0), (["wait=" + "9" * 400], 0)],
)  # fmt: skip
def test_prefer_wait(headers: list[str], seconds: float) -> None:
    assert preferred_wait(headers, 30) == seconds


def test_cursors_are_opaque_and_checked() -> None:
    cursor = Cursor(202601, 1_700_000_000_000_000_000, 2**128 - 1)
    assert Cursor.read(cursor.text(), 202601) == cursor
    for text, month in ((cursor.text(), 202602), ("x", 202601), ("!!!!", 202601), ("", 202601)):
        with pytest.raises(Problem) as caught:
            Cursor.read(text, month)
        assert caught.value.status == 400


def test_integers_beyond_doubles_are_strings() -> None:
    assert [json_integer(value) for value in (0, 2**53, 2**53 + 1)] == [0, 2**53, str(2**53 + 1)]


async def test_without_valkey_the_limit_is_counted_locally() -> None:
    limiter = RateLimiter(NOBODY, policy="events", limit=20, workers=2, timeout=0.2)
    allowance = await limiter.charge("client", 9)
    assert allowance.headers()["RateLimit-Policy"] == '"events";q=20;w=60'
    with pytest.raises(Problem) as caught:
        await limiter.charge("client", 2)
    assert caught.value.status == 429
    assert int(caught.value.headers["Retry-After"]) >= 1
    assert "RateLimit" in caught.value.headers
    await limiter.charge("another client", 9)
    with pytest.raises(Problem, match="split it"):
        await limiter.charge("client", 21)
    await limiter.close()


async def test_without_valkey_a_write_goes_on_unstored() -> None:
    store = IdempotencyStore(NOBODY, keep_seconds=60, lock_seconds=5, timeout=0.2)
    for _ in range(2):
        reservation = await store.reserve("client", "/v1/accounts", "key")
        assert (reservation.answer, reservation.stored) == (None, False)
        await reservation.release()
    await store.close()


def test_the_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_the_document_has_every_route_and_only_those(tmp_path: Path) -> None:
    app = make_app(Settings(data_dir=tmp_path), ApiSettings())
    served = {
        (route.resource.canonical, route.method.lower())
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    documented = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert served == documented


def test_every_problem_type_is_used_and_documented() -> None:
    root = Path(__file__).parents[2]
    source = "".join(path.read_text() for path in (root / "api").glob("*.py") if path.name != "problems.py")
    reference = (root / "docs" / "reference" / "api.md").read_text()
    for slug, kind in PROBLEMS.items():
        assert f'"{slug}"' in source or slug in (root / "api" / "problems.py").read_text().split("def ")[-1], slug
        assert re.search(rf"\| `{slug}` \| {kind.status} \|", reference), slug


def test_event_schemas_of_the_document_come_from_the_avro_schemas() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    transfer = schemas["CreateTransfer"]
    assert transfer["required"] == ["id"]
    assert "pending" in transfer["properties"]["flags"]["items"]["enum"]
    assert "exceeds_credits" in schemas["TransferResult"]["properties"]["result"]["enum"]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    assert not re.search(r"(?:src|href)=['\"]?(?:https?:)?//", PAGE)
