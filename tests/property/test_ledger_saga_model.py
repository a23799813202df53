"""Whatever is repeated, delayed, refused or killed: transfers across ledgers create, lose and hold back no money."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalogue import LEDGER_SHARDS
from tests.support.saga_world import CLEARING, EUR, EURO_TOO, FUNDING, PAYEE, PAYER, USD, SagaWorld

NOBODY = 9
FINAL = {"completed", "failed", "refunded"}
TOO = EURO_TOO << 32


LEDGERS = (EUR, USD, EURO_TOO)
MOVES = ("cross", "cross", "repeat", "relay", "relay", "relay", "relay", "crash", "kill", "close", "open", "time")


def a_command(random: Random) -> dict[str, int]:
    one, two = random.sample(LEDGERS, 2)
    return {
        "debit_ledger": one,
        "credit_ledger": two,
        "debit_account_id": _account(PAYER, one),
        "credit_account_id": _account(random.choice([PAYEE, PAYEE, NOBODY]), two),
        "debit_clearing_account_id": _account(CLEARING, one),
        "credit_clearing_account_id": _account(CLEARING, two),
        "amount": random.randint(1, 150),
        "credit_amount": random.randint(1, 150),
        "timeout": random.randint(1, 20),
    }


@settings(max_examples=25)
@given(st.integers(0, 2**63))
def test_any_order_repeats_refusals_and_kills_keep_the_money(seed: int) -> None:
    random = Random(seed)
    world = SagaWorld()
    for ledger in LEDGERS:
        payer = _account(PAYER, ledger)
        world.accounts(ledger, {PAYER: ["debits_must_not_exceed_credits"]})
        world.transfer(
            ledger, id=1 + ledger, debit_account_id=_account(FUNDING, ledger), credit_account_id=payer, amount=300
        )
    asked: dict[int, dict[str, int]] = {}
    closings: list[tuple[int, int]] = []
    for step in range(random.randint(20, 120)):
        match random.choice(MOVES):
            case "cross":
                identity = random.choice([len(asked) + 1, random.getrandbits(120) + 2])
                if identity not in asked:
                    asked[identity] = a_command(random)
                    assert world.cross(identity, **asked[identity]) == "created"
            case "repeat" if asked:
                identity = random.choice(list(asked))
                assert world.cross(identity, **asked[identity]) == "exists"
            case "relay":
                world.relay(*random.choice(list(world.positions)))
            case "crash":
                world.crash_relay(*random.choice(list(world.positions)), frames=random.randint(1, 6))
            case "kill":
                world.restart_sagas(random.randrange(LEDGER_SHARDS))
            case "close":
                ledger, closing = random.choice(LEDGERS), 10_000 + step
                account = _account(random.choice([PAYER, PAYEE, CLEARING]), ledger)
                parties = {"debit_account_id": account, "credit_account_id": _account(FUNDING, ledger)}
                if world.transfer(ledger, id=closing, flags=["pending", "closing_debit"], **parties) == "created":
                    closings.append((ledger, closing))
            case "open" if closings:
                _open(world, *closings.pop())
            case "time":
                world.pass_time(random.choice([0.5, 3, 15, 90]))
    while closings:
        _open(world, *closings.pop())
    for _ in range(4):
        world.settle()
        world.pass_time(30)
    world.settle()

    phases = {identity: world.phases(identity)[-1][0] for identity in asked}
    assert set(phases.values()) <= FINAL, phases
    for kernel in world.ledger.values():
        kernel.audit()
    wanted = {(ledger, who): 0 for ledger in (EUR, USD, EURO_TOO) for who in (PAYER, PAYEE, CLEARING)}
    for identity, command in asked.items():
        if phases[identity] == "completed":
            one, two = command["debit_ledger"], command["credit_ledger"]
            for key, change in (
                ((one, PAYER), -command["amount"]), ((one, CLEARING), command["amount"]),
                ((two, CLEARING), -command["credit_amount"]), ((two, PAYEE), command["credit_amount"]),
            ):  # fmt: skip
                wanted[key] += change
    for (ledger, who), net in wanted.items():
        balance = world.balance(ledger, _account(who, ledger))
        assert balance["debits_pending"] == balance["credits_pending"] == 0, (ledger, who, balance)
        funded = 300 if who == PAYER else 0
        assert balance["credits_posted"] - balance["debits_posted"] == net + funded, (ledger, who, balance)


def _account(who: int, ledger: int) -> int:
    return who + (TOO if ledger == EURO_TOO else 0)


def _open(world: SagaWorld, ledger: int, closing: int) -> None:
    result = world.transfer(ledger, id=closing + 1_000_000, pending_id=closing, flags=["void_pending_transfer"])
    assert result == "created"
