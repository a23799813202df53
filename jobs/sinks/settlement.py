"""Settlement: trades of matching.reports become transfers of cash and asset in the ledger, delivery versus payment.

Each trade is one chain of linked transfers, so that either all of it is posted or nothing: the asset from seller to
buyer, the cash from buyer to seller, and the fees, if any. ``STREAMBANK_SETTLEMENT_FILE`` names the plan, a JSON file
that says which ledger each asset is in and what a lot and a tick are worth, as the `SymbolDefinition` does::

    {"ledgers": {"ACME": 4, "USD": 8},
     "fee_account": "FEES",
     "instruments": {"ACME/USD": {"base": "ACME", "quote": "USD", "base_per_lot": 1, "quote_per_tick": 1,
                                  "maker_fee": 0, "taker_fee": 0}}}

**Accounts.** A linked chain lives in one shard of the ledger, and a ledger's shard is its number modulo the shards:
both ledgers of an instrument must have the same, or the plan is refused. A trading account has an account per ledger,
whose id is a hash of both (`account_id`); the relay creates it before its first transfer. These accounts have no
limits: whether a trade may happen was decided by the matching kernel, where funds are reserved.

**Exactly once.** A transfer's id is a function of the trade's shard and execution id (`transfer_id`), and the ledger
applies an id once. Repeated reports, a killed relay or a killed matching job repeat transfers and change nothing: a
repeated chain is answered ``exists`` and ``linked_event_failed``.

A trade at a venue settles with the venue's account, and pays no maker fee.

Trades of an account with itself move nothing but fees. A trade whose instrument is not in the plan is a dead letter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from infra.settings import Settings
from jobs.sinks.base import Addition, Refused, SinkAlarm
from jobs.sinks.relay import Commands, KafkaRelay
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_SHARDS, MATCHING_REPORTS, Topic
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events

__all__ = ["Instrument", "SettlementPlan", "SettlementRelay", "account_id", "read_plan", "transfer_id"]

DELIVERY: Final = 1
PAYMENT: Final = 2
FEE: Final = 3
"""Codes of the transfers."""
ACCOUNT_CODE: Final = 100
_TAG: Final = 0x5E77 << 112
"""Above all ids that count from 1, so that settlement never meets another producer's transfers."""


class Instrument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base and quote asset, and what a lot and a tick are worth in their units; fees per lot in quote units."""

    base: str
    quote: str
    base_per_lot: int = 1
    quote_per_tick: int = 1
    maker_fee: int = 0
    taker_fee: int = 0


class SettlementPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See the module."""

    ledgers: dict[str, int]
    instruments: dict[str, Instrument]
    fee_account: str = "FEES"


def read_plan(path: Path | None) -> SettlementPlan:
    """The plan in a file; raises `SinkAlarm` for one that cannot be used."""
    if path is None:
        raise SinkAlarm("set STREAMBANK_SETTLEMENT_FILE to the JSON file with ledgers and instruments")
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=SettlementPlan)
    except (OSError, msgspec.DecodeError) as error:
        raise SinkAlarm(f"the settlement plan {path} cannot be read: {error}") from error
    for symbol, instrument in plan.instruments.items():
        missing = [asset for asset in (instrument.base, instrument.quote) if asset not in plan.ledgers]
        if missing:
            raise SinkAlarm(f"{path}: {symbol} needs a ledger for {', '.join(missing)}")
        base, quote = plan.ledgers[instrument.base], plan.ledgers[instrument.quote]
        if base % LEDGER_SHARDS != quote % LEDGER_SHARDS or base == quote:
            raise SinkAlarm(
                f"{path}: {symbol} has ledgers {base} and {quote}; they must differ and be equal modulo"
                f" {LEDGER_SHARDS}, so that delivery and payment are one linked chain in one shard"
            )
    return plan


def account_id(account: str, ledger: int) -> int:
    """The ledger account of a trading account: BLAKE2b-128 of ``ledger/account``."""
    return int.from_bytes(hashlib.blake2b(f"{ledger}/{account}".encode(), digest_size=16).digest())


def transfer_id(shard: int, execution_id: int, leg: int) -> int:
    """The id of a trade's transfer: tag, shard (16 bits), execution id (63 bits) and leg (8 bits)."""
    return _TAG | shard << 72 | execution_id << 8 | leg


class SettlementRelay(KafkaRelay):
    """See the module."""

    name: ClassVar[str] = "settlement"
    topic: ClassVar[Topic] = MATCHING_REPORTS
    web_port_offset: ClassVar[int] = 13
    targets: ClassVar[tuple[Topic, ...]] = (LEDGER_COMMANDS,)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._plan = read_plan(settings.settlement_file)
        self._known: set[tuple[str, int]] = set()
        """Accounts whose creation Kafka acknowledged, and those of the batch in hand."""
        self._fresh: set[tuple[str, int]] = set()

    async def write(self, additions: Sequence[Addition], *, rehearse: bool = False) -> None:
        self._fresh.clear()
        await super().write(additions, rehearse=rehearse)
        if not rehearse:
            self._known |= self._fresh

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        self._fresh.clear()
        await super().reapply(shard, events, sequence, kept)

    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        for report in render_events(codec_of(self.topic.name), events):
            if report.get("exec_type") == "TRADE":
                yield from self._of_trade(shard, report)

    def _of_trade(self, shard: int, report: Mapping[str, Any]) -> Iterable[Commands]:
        instrument = self._plan.instruments.get(report["symbol"])
        if instrument is None:
            raise Refused("unknown_instrument", f"{report['symbol']} is not in the settlement plan")
        base, quote = self._plan.ledgers[instrument.base], self._plan.ledgers[instrument.quote]
        taker, maker = report["account"], report["maker_account"]
        buyer, seller = (taker, maker) if report["side"] == "BUY" else (maker, taker)
        lots, ticks = int(report["quantity"]), int(report["price"])
        fees = self._plan.fee_account
        legs = [
            (DELIVERY, base, seller, buyer, lots * instrument.base_per_lot),
            (PAYMENT, quote, buyer, seller, lots * ticks * instrument.quote_per_tick),
            (FEE, quote, taker, fees, lots * instrument.taker_fee),
            (FEE, quote, maker, fees, 0 if report["maker_order_id"] is None else lots * instrument.maker_fee),
        ]
        execution = int(report["execution_id"])
        chain: list[dict[str, Any]] = []
        for leg, (code, ledger, debit, credit, signed_amount) in enumerate(legs):
            if signed_amount == 0 or debit == credit:
                continue
            if signed_amount < 0:  # a rebate
                debit, credit = credit, debit
            chain.append({
                "type": "CreateTransfer", "id": str(transfer_id(shard, execution, leg)),
                "debit_account_id": str(account_id(debit, ledger)),
                "credit_account_id": str(account_id(credit, ledger)),
                "amount": str(abs(signed_amount)), "ledger": ledger, "code": code,
                "user_data_64": str(execution), "user_data_32": shard, "flags": ["linked"],
            })  # fmt: skip
            for account in (debit, credit):
                if (account, ledger) not in self._known and (account, ledger) not in self._fresh:
                    self._fresh.add((account, ledger))
                    yield Commands(LEDGER_COMMANDS, ledger % LEDGER_SHARDS, [{
                        "type": "CreateAccount", "id": str(account_id(account, ledger)), "ledger": ledger,
                        "code": ACCOUNT_CODE,
                    }])  # fmt: skip
        if chain:
            chain[-1]["flags"] = []
            yield Commands(LEDGER_COMMANDS, base % LEDGER_SHARDS, chain)
