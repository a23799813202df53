"""The ledger's compiled loop: the rows of a command frame in, the rows of results and events out.

`apply_rows` follows docs/reference/ledger.md check by check. Nothing is written for an event until all its checks have
passed, so only a chain that breaks has to be taken back, which `_roll_back` does from the chain's own records.

Conventions: an amount is two uint64 words; a time is nanoseconds as int64; a record argument is a reference into its
column. Numba turns uint64 mixed with int64 into floating point, so the two never meet in an expression.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines import expiry
from pipelines.compiled import compiled, compiled_inline, prefetch
from pipelines.id_index import BURNED, IdIndex, fetch, find, insert, remove
from pipelines.ledger.records import AccountFlags, PendingStatus, TransferFlags
from pipelines.ledger.results import AccountResultCode as A
from pipelines.ledger.results import TransferResultCode as T
from pipelines.ledger.u128 import add, is_max, is_zero, less, saturating_subtract, subtract, sum_overflows
from pipelines.pages import PAGE_BYTES, DirtyPages, mark

__all__ = [
    "ACCOUNTS",
    "ANNOUNCED_HEAD",
    "ANNOUNCED_TAIL",
    "BURNED_IDS",
    "CLOCK",
    "EXPIRIES",
    "INVARIANT_BROKEN",
    "READ_AHEAD",
    "TRANSFERS",
    "LedgerArrays",
    "apply_rows",
]  # fmt: skip

# Words of the `meta` column.
CLOCK: Final = 0
ACCOUNTS: Final = 1
TRANSFERS: Final = 2
BURNED_IDS: Final = 3

# Words of `LedgerArrays.queues`.
EXPIRIES: Final = 0
ANNOUNCED_HEAD: Final = 1
ANNOUNCED_TAIL: Final = 2

INVARIANT_BROKEN: Final = -1
"""Returned by `apply_rows` when debits and credits moved by different sums, or an account is missing."""

NANOSECONDS: Final = 1_000_000_000

READ_AHEAD: Final = 64
"""Transfers that are looked up together; see `_read_ahead`."""

_RECORDS_PER_PAGE_BITS: Final = (PAGE_BYTES // 128).bit_length() - 1
_STATUSES_PER_PAGE_BITS: Final = PAGE_BYTES.bit_length() - 1
_IDS_PER_PAGE_BITS: Final = (PAGE_BYTES // 16).bit_length() - 1

CREATE_ACCOUNT: Final = 0
CREATE_TRANSFER: Final = 1
ACCOUNT_CREATED: Final = 0
TRANSFER_CREATED: Final = 1
TRANSFER_EXPIRED: Final = 2

LINKED: Final = int(TransferFlags.linked)
PENDING: Final = int(TransferFlags.pending)
POST: Final = int(TransferFlags.post_pending_transfer)
VOID: Final = int(TransferFlags.void_pending_transfer)
BALANCING_DEBIT: Final = int(TransferFlags.balancing_debit)
BALANCING_CREDIT: Final = int(TransferFlags.balancing_credit)
CLOSING_DEBIT: Final = int(TransferFlags.closing_debit)
CLOSING_CREDIT: Final = int(TransferFlags.closing_credit)
IMPORTED: Final = int(TransferFlags.imported)
KNOWN_TRANSFER_FLAGS: Final = int(~TransferFlags(0))
NOT_WITH_POST_OR_VOID: Final = PENDING | BALANCING_DEBIT | BALANCING_CREDIT | CLOSING_DEBIT | CLOSING_CREDIT

DEBITS_LIMITED: Final = int(AccountFlags.debits_must_not_exceed_credits)
CREDITS_LIMITED: Final = int(AccountFlags.credits_must_not_exceed_debits)
ACCOUNT_IMPORTED: Final = int(AccountFlags.imported)
CLOSED: Final = int(AccountFlags.closed)
KNOWN_ACCOUNT_FLAGS: Final = int(~AccountFlags(0))

STATUS_PENDING: Final = int(PendingStatus.pending)
STATUS_POSTED: Final = int(PendingStatus.posted)
STATUS_VOIDED: Final = int(PendingStatus.voided)
STATUS_EXPIRED: Final = int(PendingStatus.expired)
STATUS_UNANNOUNCED: Final = int(PendingStatus.expired_unannounced)

# Stage A's results have the same numbers for accounts and transfers.
CREATED: Final = int(T.created)
CHAIN_OPEN: Final = int(T.linked_event_chain_open)
CHAIN_FAILED: Final = int(T.linked_event_failed)
IMPORTED_EXPECTED: Final = int(T.imported_event_expected)
IMPORTED_NOT_EXPECTED: Final = int(T.imported_event_not_expected)
IMPORTED_OUT_OF_RANGE: Final = int(T.imported_event_timestamp_out_of_range)
IMPORTED_MUST_NOT_ADVANCE: Final = int(T.imported_event_timestamp_must_not_advance)
TIMESTAMP_MUST_BE_ZERO: Final = int(T.timestamp_must_be_zero)
assert [code.name for code in A][: TIMESTAMP_MUST_BE_ZERO + 1] == [code.name for code in T][
    : TIMESTAMP_MUST_BE_ZERO + 1
]

_PENDING_WEIGHT: Final = np.uint64(0x9E3779B97F4A7C15)
"""Keeps pending and posted sums apart in one word; see `_imbalance`."""


class LedgerArrays(NamedTuple):
    """The whole state of a ledger shard, as the compiled loop sees it."""

    meta: NDArray[np.int64]
    accounts: NDArray[np.void]
    transfers: NDArray[np.void]
    statuses: NDArray[np.uint8]
    """`PendingStatus` of the transfer in the same slot."""
    burned: NDArray[np.void]
    """Ids that a transient failure used up."""
    dirty: DirtyPages
    first_pages: NDArray[np.int64]
    """First page of accounts, transfers, statuses, burned and meta."""
    account_index: IdIndex
    transfer_index: IdIndex
    expiries: NDArray[np.int64]
    announcements: NDArray[np.int64]
    """Slots of expired transfers whose event is still to be written, first in first out."""
    queues: NDArray[np.int64]
    drift: NDArray[np.uint64]
    """What debits moved more than credits in this frame, and whether a stored transfer's account is missing; both 0,
    or an invariant is broken."""
    accounts_ahead: NDArray[np.int64]
    """Slots of the debit and credit account of the next `READ_AHEAD` commands, negative where there is none."""
    sources: NDArray[np.void]
    """Empty; its type names a digest of the sources, so that Numba's disk cache never serves code of other sources."""


@compiled_inline
def _mark_account(state: Any, slot: Any) -> None:
    mark(state.dirty, state.first_pages[0] + (slot >> _RECORDS_PER_PAGE_BITS))


@compiled_inline
def _set_status(state: Any, slot: Any, status: Any) -> None:
    state.statuses[slot] = status
    mark(state.dirty, state.first_pages[2] + (slot >> _STATUSES_PER_PAGE_BITS))


@compiled
def _burn(state: Any, lo: Any, hi: Any) -> None:
    """Use up an id: later transfers with it get ``id_already_failed``."""
    slot = state.meta[BURNED_IDS]
    state.burned[slot].id_lo = lo
    state.burned[slot].id_hi = hi
    state.meta[BURNED_IDS] = slot + 1
    mark(state.dirty, state.first_pages[3] + (slot >> _IDS_PER_PAGE_BITS))
    insert(state.transfer_index, lo, hi, slot, True)


@compiled_inline
def _imbalance(account: Any) -> Any:
    """Debits minus credits in one word, modulo 2^64, posted and pending weighted apart."""
    return (
        account.debits_posted_lo
        - account.credits_posted_lo
        + _PENDING_WEIGHT * (account.debits_pending_lo - account.credits_pending_lo)
    )


@compiled_inline
def _add_posted(debit: Any, credit: Any, lo: Any, hi: Any) -> None:
    debit.debits_posted_lo, debit.debits_posted_hi = add(debit.debits_posted_lo, debit.debits_posted_hi, lo, hi)
    credit.credits_posted_lo, credit.credits_posted_hi = add(credit.credits_posted_lo, credit.credits_posted_hi, lo, hi)


@compiled
def _take_posted(debit: Any, credit: Any, lo: Any, hi: Any) -> None:
    debit.debits_posted_lo, debit.debits_posted_hi = subtract(debit.debits_posted_lo, debit.debits_posted_hi, lo, hi)
    credit.credits_posted_lo, credit.credits_posted_hi = subtract(
        credit.credits_posted_lo, credit.credits_posted_hi, lo, hi
    )


@compiled_inline
def _add_pending(debit: Any, credit: Any, transfer: Any) -> None:
    """A pending transfer's effect: its amount enters the pending balances, and it may close accounts."""
    lo, hi = transfer.amount_lo, transfer.amount_hi
    debit.debits_pending_lo, debit.debits_pending_hi = add(debit.debits_pending_lo, debit.debits_pending_hi, lo, hi)
    credit.credits_pending_lo, credit.credits_pending_hi = add(
        credit.credits_pending_lo, credit.credits_pending_hi, lo, hi
    )
    if transfer.flags & CLOSING_DEBIT:
        debit.flags = debit.flags | CLOSED
    if transfer.flags & CLOSING_CREDIT:
        credit.flags = credit.flags | CLOSED


@compiled
def _take_pending(debit: Any, credit: Any, transfer: Any) -> None:
    """The opposite of `_add_pending`."""
    lo, hi = transfer.amount_lo, transfer.amount_hi
    debit.debits_pending_lo, debit.debits_pending_hi = subtract(
        debit.debits_pending_lo, debit.debits_pending_hi, lo, hi
    )
    credit.credits_pending_lo, credit.credits_pending_hi = subtract(
        credit.credits_pending_lo, credit.credits_pending_hi, lo, hi
    )
    if transfer.flags & CLOSING_DEBIT:
        debit.flags = debit.flags & ~CLOSED
    if transfer.flags & CLOSING_CREDIT:
        credit.flags = credit.flags & ~CLOSED


@compiled
def _timestamp_taken(records: Any, count: Any, timestamp: Any) -> Any:
    """Whether a record of ``records``, which are in timestamp order, has this timestamp."""
    low = np.int64(0)
    high = count
    while low < high:
        middle = (low + high) >> 1
        if records[middle].timestamp < timestamp:
            low = middle + 1
        else:
            high = middle
    return low < count and records[low].timestamp == timestamp


@compiled
def _regresses(records: Any, count: Any, others: Any, other_count: Any, timestamp: Any) -> Any:
    """Whether an imported timestamp is not after the last record's, or is one of the ``others``."""
    if count > 0 and timestamp <= records[count - 1].timestamp:
        return True
    return _timestamp_taken(others, other_count, timestamp)


@compiled
def _account_exists(command: Any, stored: Any) -> Any:
    if command.flags != np.int64(stored.flags):
        return A.exists_with_different_flags
    if command.user_data_128_lo != stored.user_data_128_lo or command.user_data_128_hi != stored.user_data_128_hi:
        return A.exists_with_different_user_data_128
    if command.user_data_64 != stored.user_data_64:
        return A.exists_with_different_user_data_64
    if command.user_data_32 != np.int64(stored.user_data_32):
        return A.exists_with_different_user_data_32
    if command.ledger != np.int64(stored.ledger):
        return A.exists_with_different_ledger
    if command.code != np.int64(stored.code):
        return A.exists_with_different_code
    return A.exists


@compiled
def _create_account(state: Any, command: Any, attempt: Any, event: Any) -> Any:
    """Apply one CreateAccount after stage A; writes ``event`` on success. Returns (result, timestamp)."""
    if command.flags & ~KNOWN_ACCOUNT_FLAGS:
        return A.reserved_flag, attempt
    if is_zero(command.id_lo, command.id_hi):
        return A.id_must_not_be_zero, attempt
    if is_max(command.id_lo, command.id_hi):
        return A.id_must_not_be_int_max, attempt
    accounts = state.accounts
    found = find(state.account_index, accounts, state.burned, command.id_lo, command.id_hi)
    if found >= 0:
        code = _account_exists(command, accounts[found])
        return code, accounts[found].timestamp if code == A.exists else attempt
    if command.flags & DEBITS_LIMITED and command.flags & CREDITS_LIMITED:
        return A.flags_are_mutually_exclusive, attempt
    if command.ledger == 0:
        return A.ledger_must_not_be_zero, attempt
    if command.code == 0:
        return A.code_must_not_be_zero, attempt
    slot = state.meta[ACCOUNTS]
    timestamp = attempt
    if command.flags & ACCOUNT_IMPORTED:
        timestamp = command.timestamp
        if _regresses(accounts, slot, state.transfers, state.meta[TRANSFERS], timestamp):
            return A.imported_event_timestamp_must_not_regress, attempt

    account = accounts[slot]
    account.id_lo = command.id_lo
    account.id_hi = command.id_hi
    account.debits_pending_lo = account.debits_pending_hi = np.uint64(0)
    account.debits_posted_lo = account.debits_posted_hi = np.uint64(0)
    account.credits_pending_lo = account.credits_pending_hi = np.uint64(0)
    account.credits_posted_lo = account.credits_posted_hi = np.uint64(0)
    account.user_data_128_lo = command.user_data_128_lo
    account.user_data_128_hi = command.user_data_128_hi
    account.user_data_64 = command.user_data_64
    account.user_data_32 = command.user_data_32
    account.ledger = command.ledger
    account.code = command.code
    account.flags = command.flags
    account.timestamp = timestamp
    state.meta[ACCOUNTS] = slot + 1
    _mark_account(state, slot)
    insert(state.account_index, command.id_lo, command.id_hi, slot, False)

    event.kind = ACCOUNT_CREATED
    event.id_lo = account.id_lo
    event.id_hi = account.id_hi
    event.ledger = account.ledger
    event.code = account.code
    event.flags = account.flags
    event.user_data_128_lo = account.user_data_128_lo
    event.user_data_128_hi = account.user_data_128_hi
    event.user_data_64 = account.user_data_64
    event.user_data_32 = account.user_data_32
    event.timestamp = timestamp
    return A.created, timestamp


@compiled
def _transfer_exists(command: Any, stored: Any, origin: Any) -> Any:
    """Stage C. ``origin`` is the pending transfer that ``stored`` posted or voided, else ``stored`` itself."""
    if command.flags != np.int64(stored.flags):
        return T.exists_with_different_flags
    if command.pending_id_lo != stored.pending_id_lo or command.pending_id_hi != stored.pending_id_hi:
        return T.exists_with_different_pending_id
    if command.timeout != np.int64(stored.timeout):
        return T.exists_with_different_timeout
    inherits = command.flags & (POST | VOID) != 0
    given = not (inherits and is_zero(command.debit_account_id_lo, command.debit_account_id_hi))
    if given and (
        command.debit_account_id_lo != stored.debit_account_id_lo
        or command.debit_account_id_hi != stored.debit_account_id_hi
    ):
        return T.exists_with_different_debit_account_id
    given = not (inherits and is_zero(command.credit_account_id_lo, command.credit_account_id_hi))
    if given and (
        command.credit_account_id_lo != stored.credit_account_id_lo
        or command.credit_account_id_hi != stored.credit_account_id_hi
    ):
        return T.exists_with_different_credit_account_id

    lo, hi = command.amount_lo, command.amount_hi
    if (command.flags & VOID and is_zero(lo, hi)) or (command.flags & POST and is_max(lo, hi)):
        lo, hi = origin.amount_lo, origin.amount_hi
    if command.flags & (BALANCING_DEBIT | BALANCING_CREDIT):
        if less(lo, hi, stored.amount_lo, stored.amount_hi):
            return T.exists_with_different_amount
    elif lo != stored.amount_lo or hi != stored.amount_hi:
        return T.exists_with_different_amount

    lo, hi = command.user_data_128_lo, command.user_data_128_hi
    if inherits and is_zero(lo, hi):
        lo, hi = origin.user_data_128_lo, origin.user_data_128_hi
    if lo != stored.user_data_128_lo or hi != stored.user_data_128_hi:
        return T.exists_with_different_user_data_128
    user_data_64 = command.user_data_64
    if inherits and user_data_64 == np.uint64(0):
        user_data_64 = origin.user_data_64
    if user_data_64 != stored.user_data_64:
        return T.exists_with_different_user_data_64
    user_data_32 = command.user_data_32
    if inherits and user_data_32 == 0:
        user_data_32 = np.int64(origin.user_data_32)
    if user_data_32 != np.int64(stored.user_data_32):
        return T.exists_with_different_user_data_32
    if not (inherits and command.ledger == 0) and command.ledger != np.int64(stored.ledger):
        return T.exists_with_different_ledger
    if not (inherits and command.code == 0) and command.code != np.int64(stored.code):
        return T.exists_with_different_code
    return T.exists


@compiled_inline
def _check_fields(command: Any) -> Any:
    """Stage F for a plain or pending transfer, as far as the command alone decides."""
    if is_zero(command.debit_account_id_lo, command.debit_account_id_hi):
        return T.debit_account_id_must_not_be_zero
    if is_max(command.debit_account_id_lo, command.debit_account_id_hi):
        return T.debit_account_id_must_not_be_int_max
    if is_zero(command.credit_account_id_lo, command.credit_account_id_hi):
        return T.credit_account_id_must_not_be_zero
    if is_max(command.credit_account_id_lo, command.credit_account_id_hi):
        return T.credit_account_id_must_not_be_int_max
    if (
        command.debit_account_id_lo == command.credit_account_id_lo
        and command.debit_account_id_hi == command.credit_account_id_hi
    ):
        return T.accounts_must_be_different
    if not is_zero(command.pending_id_lo, command.pending_id_hi):
        return T.pending_id_must_be_zero
    if not command.flags & PENDING:
        if command.timeout != 0:
            return T.timeout_reserved_for_pending_transfer
        if command.flags & (CLOSING_DEBIT | CLOSING_CREDIT):
            return T.closing_transfer_must_be_pending
    if command.ledger == 0:
        return T.ledger_must_not_be_zero
    if command.code == 0:
        return T.code_must_not_be_zero
    return T.created


@compiled_inline
def _check_accounts(state: Any, command: Any, debit: Any, credit: Any, timestamp: Any) -> Any:
    """Stage F for a plain or pending transfer between accounts that exist, up to the balancing clamp."""
    if debit.ledger != credit.ledger:
        return T.accounts_must_have_the_same_ledger
    if command.ledger != np.int64(debit.ledger):
        return T.transfer_must_have_the_same_ledger_as_accounts
    if command.flags & IMPORTED:
        if _regresses(state.transfers, state.meta[TRANSFERS], state.accounts, state.meta[ACCOUNTS], timestamp):
            return T.imported_event_timestamp_must_not_regress
        if timestamp <= debit.timestamp:
            return T.imported_event_timestamp_must_postdate_debit_account
        if timestamp <= credit.timestamp:
            return T.imported_event_timestamp_must_postdate_credit_account
        if command.timeout != 0:
            return T.imported_event_timeout_must_be_zero
    if debit.flags & CLOSED:
        return T.debit_account_already_closed
    if credit.flags & CLOSED:
        return T.credit_account_already_closed
    return T.created


@compiled_inline
def _clamp(flags: Any, debit: Any, credit: Any, lo: Any, hi: Any) -> Any:
    """The amount that a balancing transfer moves: what was asked, but no more than evens out the account."""
    if flags & BALANCING_DEBIT:
        used_lo, used_hi = add(
            debit.debits_posted_lo, debit.debits_posted_hi, debit.debits_pending_lo, debit.debits_pending_hi
        )
        room_lo, room_hi = saturating_subtract(debit.credits_posted_lo, debit.credits_posted_hi, used_lo, used_hi)
        if less(room_lo, room_hi, lo, hi):
            lo, hi = room_lo, room_hi
    if flags & BALANCING_CREDIT:
        used_lo, used_hi = add(
            credit.credits_posted_lo, credit.credits_posted_hi, credit.credits_pending_lo, credit.credits_pending_hi
        )
        room_lo, room_hi = saturating_subtract(credit.debits_posted_lo, credit.debits_posted_hi, used_lo, used_hi)
        if less(room_lo, room_hi, lo, hi):
            lo, hi = room_lo, room_hi
    return lo, hi


@compiled_inline
def _check_amount(command: Any, debit: Any, credit: Any, lo: Any, hi: Any, timestamp: Any) -> Any:
    """Overflows, then limits, of moving an amount from ``debit`` to ``credit``."""
    if command.flags & PENDING:
        if sum_overflows(debit.debits_pending_lo, debit.debits_pending_hi, lo, hi):
            return T.overflows_debits_pending
        if sum_overflows(credit.credits_pending_lo, credit.credits_pending_hi, lo, hi):
            return T.overflows_credits_pending
    if sum_overflows(debit.debits_posted_lo, debit.debits_posted_hi, lo, hi):
        return T.overflows_debits_posted
    if sum_overflows(credit.credits_posted_lo, credit.credits_posted_hi, lo, hi):
        return T.overflows_credits_posted
    # pending + posted never overflows, because these checks were passed by every earlier transfer
    debits_lo, debits_hi = add(
        debit.debits_pending_lo, debit.debits_pending_hi, debit.debits_posted_lo, debit.debits_posted_hi
    )
    if sum_overflows(debits_lo, debits_hi, lo, hi):
        return T.overflows_debits
    credits_lo, credits_hi = add(
        credit.credits_pending_lo, credit.credits_pending_hi, credit.credits_posted_lo, credit.credits_posted_hi
    )
    if sum_overflows(credits_lo, credits_hi, lo, hi):
        return T.overflows_credits
    # both terms are below 2^63, so the unsigned sum cannot wrap
    if np.uint64(timestamp) + np.uint64(command.timeout * NANOSECONDS) > np.uint64(2**63 - 1):
        return T.overflows_timeout
    if debit.flags & DEBITS_LIMITED:
        debits_lo, debits_hi = add(debits_lo, debits_hi, lo, hi)
        if less(debit.credits_posted_lo, debit.credits_posted_hi, debits_lo, debits_hi):
            return T.exceeds_credits
    if credit.flags & CREDITS_LIMITED:
        credits_lo, credits_hi = add(credits_lo, credits_hi, lo, hi)
        if less(credit.debits_posted_lo, credit.debits_posted_hi, credits_lo, credits_hi):
            return T.exceeds_debits
    return T.created


@compiled_inline
def _write_balances(event: Any, debit: Any, credit: Any) -> None:
    """Both accounts' balances and flags as they are now."""
    event.debit_account_debits_pending_lo = debit.debits_pending_lo
    event.debit_account_debits_pending_hi = debit.debits_pending_hi
    event.debit_account_debits_posted_lo = debit.debits_posted_lo
    event.debit_account_debits_posted_hi = debit.debits_posted_hi
    event.debit_account_credits_pending_lo = debit.credits_pending_lo
    event.debit_account_credits_pending_hi = debit.credits_pending_hi
    event.debit_account_credits_posted_lo = debit.credits_posted_lo
    event.debit_account_credits_posted_hi = debit.credits_posted_hi
    event.credit_account_debits_pending_lo = credit.debits_pending_lo
    event.credit_account_debits_pending_hi = credit.debits_pending_hi
    event.credit_account_debits_posted_lo = credit.debits_posted_lo
    event.credit_account_debits_posted_hi = credit.debits_posted_hi
    event.credit_account_credits_pending_lo = credit.credits_pending_lo
    event.credit_account_credits_pending_hi = credit.credits_pending_hi
    event.credit_account_credits_posted_lo = credit.credits_posted_lo
    event.credit_account_credits_posted_hi = credit.credits_posted_hi
    event.debit_account_flags = debit.flags
    event.credit_account_flags = credit.flags


@compiled_inline
def _write_transfer_created(event: Any, transfer: Any, debit: Any, credit: Any) -> None:
    event.kind = TRANSFER_CREATED
    event.id_lo = transfer.id_lo
    event.id_hi = transfer.id_hi
    event.debit_account_id_lo = transfer.debit_account_id_lo
    event.debit_account_id_hi = transfer.debit_account_id_hi
    event.credit_account_id_lo = transfer.credit_account_id_lo
    event.credit_account_id_hi = transfer.credit_account_id_hi
    event.amount_lo = transfer.amount_lo
    event.amount_hi = transfer.amount_hi
    event.pending_id_lo = transfer.pending_id_lo
    event.pending_id_hi = transfer.pending_id_hi
    event.user_data_128_lo = transfer.user_data_128_lo
    event.user_data_128_hi = transfer.user_data_128_hi
    event.user_data_64 = transfer.user_data_64
    event.user_data_32 = transfer.user_data_32
    event.timeout = transfer.timeout
    event.ledger = transfer.ledger
    event.code = transfer.code
    event.flags = transfer.flags
    event.timestamp = transfer.timestamp
    _write_balances(event, debit, credit)


@compiled
def _write_transfer_expired(event: Any, transfer: Any, debit: Any, credit: Any) -> None:
    event.kind = TRANSFER_EXPIRED
    event.pending_id_lo = transfer.id_lo
    event.pending_id_hi = transfer.id_hi
    event.debit_account_id_lo = transfer.debit_account_id_lo
    event.debit_account_id_hi = transfer.debit_account_id_hi
    event.credit_account_id_lo = transfer.credit_account_id_lo
    event.credit_account_id_hi = transfer.credit_account_id_hi
    event.amount_lo = transfer.amount_lo
    event.amount_hi = transfer.amount_hi
    event.ledger = transfer.ledger
    event.code = transfer.code
    event.timestamp = transfer.timestamp + np.int64(transfer.timeout) * NANOSECONDS
    _write_balances(event, debit, credit)


@compiled_inline
def _append(state: Any, command: Any, timestamp: Any) -> Any:
    """A new transfer record with the command's fields; returns its slot."""
    slot = state.meta[TRANSFERS]
    transfer = state.transfers[slot]
    transfer.id_lo = command.id_lo
    transfer.id_hi = command.id_hi
    transfer.debit_account_id_lo = command.debit_account_id_lo
    transfer.debit_account_id_hi = command.debit_account_id_hi
    transfer.credit_account_id_lo = command.credit_account_id_lo
    transfer.credit_account_id_hi = command.credit_account_id_hi
    transfer.amount_lo = command.amount_lo
    transfer.amount_hi = command.amount_hi
    transfer.pending_id_lo = command.pending_id_lo
    transfer.pending_id_hi = command.pending_id_hi
    transfer.user_data_128_lo = command.user_data_128_lo
    transfer.user_data_128_hi = command.user_data_128_hi
    transfer.user_data_64 = command.user_data_64
    transfer.user_data_32 = command.user_data_32
    transfer.timeout = command.timeout
    transfer.ledger = command.ledger
    transfer.code = command.code
    transfer.flags = command.flags
    transfer.timestamp = timestamp
    state.meta[TRANSFERS] = slot + 1
    mark(state.dirty, state.first_pages[1] + (slot >> _RECORDS_PER_PAGE_BITS))
    insert(state.transfer_index, command.id_lo, command.id_hi, slot, False)
    return slot


@compiled_inline
def _account_slot(state: Any, lo: Any, hi: Any) -> Any:
    return find(state.account_index, state.accounts, state.burned, lo, hi)


@compiled
def _known_account_slot(state: Any, lo: Any, hi: Any) -> Any:
    """Slot of an account that a stored transfer names; if it is not there, an invariant is broken."""
    slot = _account_slot(state, lo, hi)
    if slot < 0:
        state.drift[1] = np.uint64(1)
        return np.int64(0)
    return slot


@compiled
def _post_or_void(state: Any, command: Any, attempt: Any, event: Any) -> Any:
    """Stage E and its effects; writes ``event`` on success. Returns (result, timestamp)."""
    flags = command.flags
    if (flags & POST and flags & VOID) or flags & NOT_WITH_POST_OR_VOID:
        return T.flags_are_mutually_exclusive, attempt
    if is_zero(command.pending_id_lo, command.pending_id_hi):
        return T.pending_id_must_not_be_zero, attempt
    if is_max(command.pending_id_lo, command.pending_id_hi):
        return T.pending_id_must_not_be_int_max, attempt
    if command.pending_id_lo == command.id_lo and command.pending_id_hi == command.id_hi:
        return T.pending_id_must_be_different, attempt
    if command.timeout != 0:
        return T.timeout_reserved_for_pending_transfer, attempt
    transfers = state.transfers
    pending_slot = find(state.transfer_index, transfers, state.burned, command.pending_id_lo, command.pending_id_hi)
    if pending_slot < 0:
        return T.pending_transfer_not_found, attempt
    pending = transfers[pending_slot]
    if not pending.flags & PENDING:
        return T.pending_transfer_not_pending, attempt
    if not is_zero(command.debit_account_id_lo, command.debit_account_id_hi) and (
        command.debit_account_id_lo != pending.debit_account_id_lo
        or command.debit_account_id_hi != pending.debit_account_id_hi
    ):
        return T.pending_transfer_has_different_debit_account_id, attempt
    if not is_zero(command.credit_account_id_lo, command.credit_account_id_hi) and (
        command.credit_account_id_lo != pending.credit_account_id_lo
        or command.credit_account_id_hi != pending.credit_account_id_hi
    ):
        return T.pending_transfer_has_different_credit_account_id, attempt
    if command.ledger != 0 and command.ledger != np.int64(pending.ledger):
        return T.pending_transfer_has_different_ledger, attempt
    if command.code != 0 and command.code != np.int64(pending.code):
        return T.pending_transfer_has_different_code, attempt

    lo, hi = command.amount_lo, command.amount_hi
    if (flags & VOID and is_zero(lo, hi)) or (flags & POST and is_max(lo, hi)):
        lo, hi = pending.amount_lo, pending.amount_hi
    if less(pending.amount_lo, pending.amount_hi, lo, hi):
        return T.exceeds_pending_transfer_amount, attempt
    if flags & VOID and less(lo, hi, pending.amount_lo, pending.amount_hi):
        return T.pending_transfer_has_different_amount, attempt
    status = state.statuses[pending_slot]
    if status == STATUS_POSTED:
        return T.pending_transfer_already_posted, attempt
    if status == STATUS_VOIDED:
        return T.pending_transfer_already_voided, attempt
    if status != STATUS_PENDING:
        return T.pending_transfer_expired, attempt

    timestamp = attempt
    if flags & IMPORTED:
        timestamp = command.timestamp
        if _regresses(transfers, state.meta[TRANSFERS], state.accounts, state.meta[ACCOUNTS], timestamp):
            return T.imported_event_timestamp_must_not_regress, attempt
    debit_slot = _known_account_slot(state, pending.debit_account_id_lo, pending.debit_account_id_hi)
    credit_slot = _known_account_slot(state, pending.credit_account_id_lo, pending.credit_account_id_hi)
    debit = state.accounts[debit_slot]
    credit = state.accounts[credit_slot]
    if flags & POST:
        if debit.flags & CLOSED:
            return T.debit_account_already_closed, attempt
        if credit.flags & CLOSED:
            return T.credit_account_already_closed, attempt

    transfer = transfers[_append(state, command, timestamp)]
    transfer.amount_lo = lo
    transfer.amount_hi = hi
    transfer.debit_account_id_lo = pending.debit_account_id_lo
    transfer.debit_account_id_hi = pending.debit_account_id_hi
    transfer.credit_account_id_lo = pending.credit_account_id_lo
    transfer.credit_account_id_hi = pending.credit_account_id_hi
    transfer.ledger = pending.ledger
    transfer.code = pending.code
    if is_zero(command.user_data_128_lo, command.user_data_128_hi):
        transfer.user_data_128_lo = pending.user_data_128_lo
        transfer.user_data_128_hi = pending.user_data_128_hi
    if command.user_data_64 == np.uint64(0):
        transfer.user_data_64 = pending.user_data_64
    if command.user_data_32 == 0:
        transfer.user_data_32 = pending.user_data_32

    before = _imbalance(debit) + _imbalance(credit)
    if flags & POST:
        # what closes an account is not undone by posting; but then the account is closed and posting was refused
        _take_pending(debit, credit, pending)
        _add_posted(debit, credit, lo, hi)
        _set_status(state, pending_slot, STATUS_POSTED)
    else:
        _take_pending(debit, credit, pending)
        _set_status(state, pending_slot, STATUS_VOIDED)
    state.drift[0] += _imbalance(debit) + _imbalance(credit) - before
    _mark_account(state, debit_slot)
    _mark_account(state, credit_slot)
    _write_transfer_created(event, transfer, debit, credit)
    return T.created, timestamp


@compiled_inline
def _create_transfer(state: Any, command: Any, ahead: Any, attempt: Any, event: Any) -> Any:
    """Apply one CreateTransfer after stage A, the one at ``ahead`` of those looked up; writes ``event`` on success.
    Returns (result, timestamp)."""
    if command.flags & ~KNOWN_TRANSFER_FLAGS:
        return T.reserved_flag, attempt
    if is_zero(command.id_lo, command.id_hi):
        return T.id_must_not_be_zero, attempt
    if is_max(command.id_lo, command.id_hi):
        return T.id_must_not_be_int_max, attempt
    found = find(state.transfer_index, state.transfers, state.burned, command.id_lo, command.id_hi)
    if found >= 0:
        stored = state.transfers[found]
        origin = stored
        if stored.flags & (POST | VOID):
            origin = state.transfers[
                find(state.transfer_index, state.transfers, state.burned, stored.pending_id_lo, stored.pending_id_hi)
            ]
        code = _transfer_exists(command, stored, origin)
        return code, stored.timestamp if code == T.exists else attempt
    if found == BURNED:
        return T.id_already_failed, attempt
    if command.flags & (POST | VOID):
        return _post_or_void(state, command, attempt, event)

    code = _check_fields(command)
    if code != T.created:
        return code, attempt
    debit_slot = state.accounts_ahead[ahead, 0]
    if debit_slot < 0:
        return T.debit_account_not_found, attempt
    credit_slot = state.accounts_ahead[ahead, 1]
    if credit_slot < 0:
        return T.credit_account_not_found, attempt
    debit = state.accounts[debit_slot]
    credit = state.accounts[credit_slot]
    timestamp = command.timestamp if command.flags & IMPORTED else attempt
    code = _check_accounts(state, command, debit, credit, timestamp)
    if code != T.created:
        return code, attempt
    lo, hi = _clamp(command.flags, debit, credit, command.amount_lo, command.amount_hi)
    code = _check_amount(command, debit, credit, lo, hi, timestamp)
    if code != T.created:
        return code, attempt

    slot = _append(state, command, timestamp)
    transfer = state.transfers[slot]
    transfer.amount_lo = lo
    transfer.amount_hi = hi
    before = _imbalance(debit) + _imbalance(credit)
    if command.flags & PENDING:
        _add_pending(debit, credit, transfer)
        _set_status(state, slot, STATUS_PENDING)
    else:
        _add_posted(debit, credit, lo, hi)
    state.drift[0] += _imbalance(debit) + _imbalance(credit) - before
    _mark_account(state, debit_slot)
    _mark_account(state, credit_slot)
    _write_transfer_created(event, transfer, debit, credit)
    return T.created, timestamp


@compiled_inline
def _is_transient(code: Any) -> Any:
    """`pipelines.ledger.results.TRANSIENT`; a test holds the two equal."""
    return (
        code == T.pending_transfer_not_found
        or code == T.debit_account_already_closed
        or code == T.credit_account_already_closed
        or code == T.debit_account_not_found
        or code == T.credit_account_not_found
        or code == T.exceeds_credits
        or code == T.exceeds_debits
    )


@compiled
def _roll_back(state: Any, accounts_before: Any, transfers_before: Any) -> None:
    """Take back the newest records, last first, until only so many accounts and transfers are left."""
    transfers = state.transfers
    while state.meta[TRANSFERS] > transfers_before:
        slot = state.meta[TRANSFERS] - 1
        transfer = transfers[slot]
        debit_slot = _known_account_slot(state, transfer.debit_account_id_lo, transfer.debit_account_id_hi)
        credit_slot = _known_account_slot(state, transfer.credit_account_id_lo, transfer.credit_account_id_hi)
        debit = state.accounts[debit_slot]
        credit = state.accounts[credit_slot]
        before = _imbalance(debit) + _imbalance(credit)
        if transfer.flags & (POST | VOID):
            pending_slot = find(
                state.transfer_index, transfers, state.burned, transfer.pending_id_lo, transfer.pending_id_hi
            )
            if transfer.flags & POST:
                _take_posted(debit, credit, transfer.amount_lo, transfer.amount_hi)
            _add_pending(debit, credit, transfers[pending_slot])
            _set_status(state, pending_slot, STATUS_PENDING)
        elif transfer.flags & PENDING:
            _take_pending(debit, credit, transfer)
            _set_status(state, slot, 0)
        else:
            _take_posted(debit, credit, transfer.amount_lo, transfer.amount_hi)
        state.drift[0] += _imbalance(debit) + _imbalance(credit) - before
        _mark_account(state, debit_slot)
        _mark_account(state, credit_slot)
        remove(state.transfer_index, transfer.id_lo, transfer.id_hi, slot)
        state.meta[TRANSFERS] = slot
    while state.meta[ACCOUNTS] > accounts_before:
        slot = state.meta[ACCOUNTS] - 1
        account = state.accounts[slot]
        remove(state.account_index, account.id_lo, account.id_hi, slot)
        state.meta[ACCOUNTS] = slot


@compiled
def _arm(state: Any, first: Any) -> None:
    """Enter the pending transfers with a timeout, from slot ``first`` on, into the expiry heap."""
    for slot in range(first, state.meta[TRANSFERS]):
        transfer = state.transfers[slot]
        if transfer.timeout != 0:
            expires_at = transfer.timestamp + np.int64(transfer.timeout) * NANOSECONDS
            state.queues[EXPIRIES] = expiry.push(state.expiries, state.queues[EXPIRIES], expires_at, slot)


@compiled
def _expire(state: Any, clock: Any, events: Any, limit: Any) -> Any:
    """End the pending transfers whose time has come; at most ``limit`` events are written, the others wait.

    The balances change at once in any case. Returns the number of events written.
    """
    queues = state.queues
    written = 0
    while queues[ANNOUNCED_HEAD] < queues[ANNOUNCED_TAIL] and written < limit:
        slot = state.announcements[queues[ANNOUNCED_HEAD]]
        queues[ANNOUNCED_HEAD] += 1
        transfer = state.transfers[slot]
        debit_slot = _known_account_slot(state, transfer.debit_account_id_lo, transfer.debit_account_id_hi)
        credit_slot = _known_account_slot(state, transfer.credit_account_id_lo, transfer.credit_account_id_hi)
        _set_status(state, slot, STATUS_EXPIRED)
        _write_transfer_expired(events[written], transfer, state.accounts[debit_slot], state.accounts[credit_slot])
        written += 1
    if queues[ANNOUNCED_HEAD] == queues[ANNOUNCED_TAIL]:
        queues[ANNOUNCED_HEAD] = 0
        queues[ANNOUNCED_TAIL] = 0
    while queues[EXPIRIES] > 0 and state.expiries[0, 0] <= clock:
        slot, queues[EXPIRIES] = expiry.pop(state.expiries, queues[EXPIRIES])
        if state.statuses[slot] != STATUS_PENDING:
            continue
        transfer = state.transfers[slot]
        debit_slot = _known_account_slot(state, transfer.debit_account_id_lo, transfer.debit_account_id_hi)
        credit_slot = _known_account_slot(state, transfer.credit_account_id_lo, transfer.credit_account_id_hi)
        debit = state.accounts[debit_slot]
        credit = state.accounts[credit_slot]
        before = _imbalance(debit) + _imbalance(credit)
        _take_pending(debit, credit, transfer)
        state.drift[0] += _imbalance(debit) + _imbalance(credit) - before
        _mark_account(state, debit_slot)
        _mark_account(state, credit_slot)
        if written < limit:
            _set_status(state, slot, STATUS_EXPIRED)
            _write_transfer_expired(events[written], transfer, debit, credit)
            written += 1
        else:
            _set_status(state, slot, STATUS_UNANNOUNCED)
            state.announcements[queues[ANNOUNCED_TAIL]] = slot
            queues[ANNOUNCED_TAIL] += 1
    return written


@compiled_inline
def _stage_a(
    flags: Any, imported: Any, given: Any, is_last: Any, chain_broken: Any, run_imported: Any, run_end: Any
) -> Any:
    """The checks of batch and chain; ``given`` is the event's own timestamp, ``run_end`` the last one of its run."""
    if flags & LINKED and is_last:
        return CHAIN_OPEN
    if chain_broken:
        return CHAIN_FAILED
    if imported != run_imported:
        return IMPORTED_NOT_EXPECTED if imported else IMPORTED_EXPECTED
    if imported:
        if given <= 0:
            return IMPORTED_OUT_OF_RANGE
        if given >= run_end:
            return IMPORTED_MUST_NOT_ADVANCE
    elif given != 0:
        return TIMESTAMP_MUST_BE_ZERO
    return CREATED


@compiled
def _read_ahead(state: Any, commands: Any, first: Any, end: Any) -> None:
    """Look up the accounts of the next transfers, and have what they will need brought into the cache: what one
    transfer needs does not wait for another's, so many reads are on their way from memory together."""
    for i in range(first, end):
        command = commands[i]
        fetch(state.transfer_index, command.id_lo, command.id_hi)
        fetch(state.account_index, command.debit_account_id_lo, command.debit_account_id_hi)
        fetch(state.account_index, command.credit_account_id_lo, command.credit_account_id_hi)
    for i in range(first, end):
        command = commands[i]
        debit_slot = _account_slot(state, command.debit_account_id_lo, command.debit_account_id_hi)
        credit_slot = _account_slot(state, command.credit_account_id_lo, command.credit_account_id_hi)
        state.accounts_ahead[i - first, 0] = debit_slot
        state.accounts_ahead[i - first, 1] = credit_slot
        # a record is two cache lines; the look-up read the first
        prefetch(state.accounts, debit_slot, 64)
        prefetch(state.accounts, credit_slot, 64)


@compiled
def _clear(rows: Any, row: Any) -> None:
    for word in range(rows.shape[1]):
        rows[row, word] = 0


@compiled
def apply_rows(
    state: Any,
    clock: Any,
    account_commands: Any,
    transfer_commands: Any,
    account_results: Any,
    transfer_results: Any,
    account_created: Any,
    transfer_created: Any,
    transfer_expired: Any,
    event_rows: Any,
    expired_limit: Any,
) -> Any:
    """Apply a frame whose rows are seen both as ``account_commands`` and as ``transfer_commands``.

    ``clock`` is the ledger's time before the first event. Result row i answers command i. The event rows, seen as
    each of the three event types and as words, have room for one per command and ``expired_limit`` more. Returns the
    number of events written, or `INVARIANT_BROKEN`.
    """
    state.drift[0] = np.uint64(0)
    state.drift[1] = np.uint64(0)
    count = len(account_commands)
    # a TransferCreated fills a whole row, the other events are narrower: what they leave must not be random
    for row in range(expired_limit):
        _clear(event_rows, row)
    written = _expire(state, clock, transfer_expired, expired_limit)
    start = 0
    while start < count:
        # a run: neighbours of one kind are one batch
        kind = account_commands[start].kind
        end = start + 1
        while end < count and account_commands[end].kind == kind:
            end += 1
        if kind == CREATE_ACCOUNT:
            run_imported = account_commands[start].flags & ACCOUNT_IMPORTED != 0
        else:
            run_imported = transfer_commands[start].flags & IMPORTED != 0
        chain_start = -1
        chain_broken = False
        accounts_before = np.int64(0)
        transfers_before = np.int64(0)
        written_before = written
        for i in range(start, end):
            attempt = clock + i + 1
            if kind == CREATE_ACCOUNT:
                flags = account_commands[i].flags
                imported = flags & ACCOUNT_IMPORTED != 0
                given = account_commands[i].timestamp
            else:
                flags = transfer_commands[i].flags
                imported = flags & IMPORTED != 0
                given = transfer_commands[i].timestamp
            if flags & LINKED and chain_start < 0:
                chain_start = i
                accounts_before = state.meta[ACCOUNTS]
                transfers_before = state.meta[TRANSFERS]
                written_before = written
            transfers_now = state.meta[TRANSFERS]
            if kind == CREATE_TRANSFER and (i - start) % READ_AHEAD == 0:
                _read_ahead(state, transfer_commands, i, min(i + READ_AHEAD, end))

            code = np.int64(_stage_a(flags, imported, given, i == end - 1, chain_broken, run_imported, clock + end))
            timestamp = attempt
            if kind == CREATE_ACCOUNT:
                account_command = account_commands[i]
                if code == CREATED:
                    _clear(event_rows, written)
                    account_code, timestamp = _create_account(state, account_command, attempt, account_created[written])
                    code = np.int64(account_code)
                account_result = account_results[i]
                account_result.kind = CREATE_ACCOUNT
                account_result.id_lo = account_command.id_lo
                account_result.id_hi = account_command.id_hi
                account_result.result = code
                account_result.timestamp = timestamp
            else:
                command = transfer_commands[i]
                if code == CREATED:
                    ahead = (i - start) % READ_AHEAD
                    transfer_code, timestamp = _create_transfer(
                        state, command, ahead, attempt, transfer_created[written]
                    )
                    code = np.int64(transfer_code)
                result = transfer_results[i]
                result.kind = CREATE_TRANSFER
                result.id_lo = command.id_lo
                result.id_hi = command.id_hi
                result.result = code
                result.timestamp = timestamp

            if code == CREATED:
                written += 1
                if chain_start < 0 and kind == CREATE_TRANSFER and transfer_commands[i].timeout != 0:
                    _arm(state, transfers_now)
            else:
                if chain_start >= 0 and not chain_broken:
                    chain_broken = True
                    _roll_back(state, accounts_before, transfers_before)
                    written = written_before
                    for member in range(chain_start, i):
                        if kind == CREATE_ACCOUNT:
                            account_results[member].result = CHAIN_FAILED
                            account_results[member].timestamp = clock + member + 1
                        else:
                            transfer_results[member].result = CHAIN_FAILED
                            transfer_results[member].timestamp = clock + member + 1
                if kind == CREATE_TRANSFER and _is_transient(code):
                    _burn(state, transfer_commands[i].id_lo, transfer_commands[i].id_hi)
            if chain_start >= 0 and (not flags & LINKED or code == CHAIN_OPEN):
                if not chain_broken:
                    _arm(state, transfers_before)
                chain_start = -1
                chain_broken = False
        start = end
    state.meta[CLOCK] = clock + count
    mark(state.dirty, state.first_pages[4])
    if state.drift[0] != np.uint64(0) or state.drift[1] != np.uint64(0):
        return INVARIANT_BROKEN
    return written
