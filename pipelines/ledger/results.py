"""Results of creating an account or a transfer, numbered as in the schema of ledger.results.

Names and order are TigerBeetle's; ``created`` is success. The first check that fails decides, and the checks run about
in this order (docs/reference/ledger.md has the exact one).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = ["TRANSIENT", "AccountResultCode", "TransferResultCode"]


class AccountResultCode(IntEnum):
    """Outcome of CreateAccount."""

    created = 0
    linked_event_chain_open = 1
    linked_event_failed = 2
    imported_event_expected = 3
    imported_event_not_expected = 4
    imported_event_timestamp_out_of_range = 5
    imported_event_timestamp_must_not_advance = 6
    timestamp_must_be_zero = 7
    reserved_field = 8
    reserved_flag = 9
    id_must_not_be_zero = 10
    id_must_not_be_int_max = 11
    exists_with_different_flags = 12
    exists_with_different_user_data_128 = 13
    exists_with_different_user_data_64 = 14
    exists_with_different_user_data_32 = 15
    exists_with_different_ledger = 16
    exists_with_different_code = 17
    exists = 18
    flags_are_mutually_exclusive = 19
    debits_pending_must_be_zero = 20
    debits_posted_must_be_zero = 21
    credits_pending_must_be_zero = 22
    credits_posted_must_be_zero = 23
    ledger_must_not_be_zero = 24
    code_must_not_be_zero = 25
    imported_event_timestamp_must_not_regress = 26


class TransferResultCode(IntEnum):
    """Outcome of CreateTransfer."""

    created = 0
    linked_event_chain_open = 1
    linked_event_failed = 2
    imported_event_expected = 3
    imported_event_not_expected = 4
    imported_event_timestamp_out_of_range = 5
    imported_event_timestamp_must_not_advance = 6
    timestamp_must_be_zero = 7
    reserved_flag = 8
    id_must_not_be_zero = 9
    id_must_not_be_int_max = 10
    exists_with_different_flags = 11
    exists_with_different_pending_id = 12
    exists_with_different_timeout = 13
    exists_with_different_debit_account_id = 14
    exists_with_different_credit_account_id = 15
    exists_with_different_amount = 16
    exists_with_different_user_data_128 = 17
    exists_with_different_user_data_64 = 18
    exists_with_different_user_data_32 = 19
    exists_with_different_ledger = 20
    exists_with_different_code = 21
    exists = 22
    id_already_failed = 23
    flags_are_mutually_exclusive = 24
    pending_id_must_not_be_zero = 25
    pending_id_must_not_be_int_max = 26
    pending_id_must_be_different = 27
    timeout_reserved_for_pending_transfer = 28
    pending_transfer_not_found = 29
    pending_transfer_not_pending = 30
    pending_transfer_has_different_debit_account_id = 31
    pending_transfer_has_different_credit_account_id = 32
    pending_transfer_has_different_ledger = 33
    pending_transfer_has_different_code = 34
    exceeds_pending_transfer_amount = 35
    pending_transfer_has_different_amount = 36
    pending_transfer_already_posted = 37
    pending_transfer_already_voided = 38
    pending_transfer_expired = 39
    debit_account_already_closed = 40
    credit_account_already_closed = 41
    debit_account_id_must_not_be_zero = 42
    debit_account_id_must_not_be_int_max = 43
    credit_account_id_must_not_be_zero = 44
    credit_account_id_must_not_be_int_max = 45
    accounts_must_be_different = 46
    pending_id_must_be_zero = 47
    closing_transfer_must_be_pending = 48
    ledger_must_not_be_zero = 49
    code_must_not_be_zero = 50
    debit_account_not_found = 51
    credit_account_not_found = 52
    accounts_must_have_the_same_ledger = 53
    transfer_must_have_the_same_ledger_as_accounts = 54
    imported_event_timestamp_must_not_regress = 55
    imported_event_timestamp_must_postdate_debit_account = 56
    imported_event_timestamp_must_postdate_credit_account = 57
    imported_event_timeout_must_be_zero = 58
    overflows_debits_pending = 59
    overflows_credits_pending = 60
    overflows_debits_posted = 61
    overflows_credits_posted = 62
    overflows_debits = 63
    overflows_credits = 64
    overflows_timeout = 65
    exceeds_credits = 66
    exceeds_debits = 67


TRANSIENT: Final = frozenset(
    {
        TransferResultCode.pending_transfer_not_found,
        TransferResultCode.debit_account_already_closed,
        TransferResultCode.credit_account_already_closed,
        TransferResultCode.debit_account_not_found,
        TransferResultCode.credit_account_not_found,
        TransferResultCode.exceeds_credits,
        TransferResultCode.exceeds_debits,
    }
)
"""Failures that could turn out otherwise later. The id is burned, so that a late retry cannot succeed unnoticed: from
then on it gets ``id_already_failed``."""
