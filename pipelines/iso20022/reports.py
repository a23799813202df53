"""Plain values into pacs.002 and pain.002 (what became of a message) and camt.053 (an account's statement).

Elements are written in the order of the schemas. Values must fit them: ValueError names the one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from pipelines.iso20022.credit_transfers import CreditTransfers, PaymentInstruction
from pipelines.iso20022.identifiers import DATE, DATE_TIME, amount_text, iban_valid
from pipelines.iso20022.xml import new_document

__all__ = [
    "GROUP_STATUSES",
    "STATUSES",
    "StatementEntry",
    "TransactionStatus",
    "write_statement",
    "write_status_report",
]

STATUSES: Final = ("RCVD", "ACCC", "ACSC", "ACSP", "ACTC", "ACCP", "PDNG", "RJCT", "CANC", "BLCK")
"""ExternalPaymentTransactionStatus1Code, those in use here."""
GROUP_STATUSES: Final = ("ACSC", "ACSP", "ACTC", "ACCP", "PART", "PDNG", "RJCT", "RCVD")


@dataclass(frozen=True, slots=True)
class TransactionStatus:
    """What became of one instruction; ``reason`` is an ISO reason code (AM04, AC01 ...), ``information`` words,
    ``reference`` what it is called here."""

    instruction: PaymentInstruction
    status: str
    reason: str | None = None
    information: str | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class StatementEntry:
    """A booked entry, ``amount`` in minor units and positive; ``credit`` to the account or debit. ``booked_on`` is a
    date."""

    reference: str
    amount: int
    credit: bool
    booked_on: str
    end_to_end_id: str | None = None
    counterparty_account: str | None = None
    remittance: str | None = None


def write_status_report(
    original: CreditTransfers,
    message_id: str,
    created_at: str,
    transactions: Sequence[TransactionStatus],
    group_status: str | None = None,
) -> bytes:
    """pacs.002 for a pacs.008, pain.002 for a pain.001."""
    interbank = original.message == "pacs.008"
    message = "pacs.002" if interbank else "pain.002"
    body, finish = new_document(message, "FIToFIPmtStsRpt" if interbank else "CstmrPmtStsRpt")
    header = SubElement(body, "GrpHdr")
    _text(header, "MsgId", message_id, 35)
    _moment(header, "CreDtTm", created_at)
    group = SubElement(body, "OrgnlGrpInfAndSts")
    _text(group, "OrgnlMsgId", original.message_id, 35)
    _text(group, "OrgnlMsgNmId", original.name, 35)
    if group_status is not None:
        _text(group, "GrpSts", _one_of(group_status, GROUP_STATUSES), 4)
    if interbank:
        for entry in transactions:
            _transaction_status(body, entry, interbank=True)
        return finish()
    by_information: dict[str, list[TransactionStatus]] = {}
    for entry in transactions:
        by_information.setdefault(entry.instruction.payment_information_id or "NOTPROVIDED", []).append(entry)
    for information_id, entries in by_information.items():
        information = SubElement(body, "OrgnlPmtInfAndSts")
        _text(information, "OrgnlPmtInfId", information_id, 35)
        for entry in entries:
            _transaction_status(information, entry, interbank=False)
    return finish()


def _transaction_status(parent: Element, entry: TransactionStatus, *, interbank: bool) -> None:
    node = SubElement(parent, "TxInfAndSts")
    instruction = entry.instruction
    if instruction.instruction_id is not None:
        _text(node, "OrgnlInstrId", instruction.instruction_id, 35)
    _text(node, "OrgnlEndToEndId", instruction.end_to_end_id, 35)
    if interbank and instruction.transaction_id is not None:
        _text(node, "OrgnlTxId", instruction.transaction_id, 35)
    if instruction.uetr is not None:
        _text(node, "OrgnlUETR", instruction.uetr, 36)
    _text(node, "TxSts", _one_of(entry.status, STATUSES), 4)
    if entry.reason is not None or entry.information is not None:
        reason = SubElement(node, "StsRsnInf")
        if entry.reason is not None:
            _text(SubElement(reason, "Rsn"), "Cd", entry.reason, 4)
        if entry.information is not None:
            _text(reason, "AddtlInf", entry.information, 105)
    if entry.reference is not None:
        _text(node, "AcctSvcrRef", entry.reference, 35)


def write_statement(
    message_id: str,
    created_at: str,
    account: str,
    currency: str,
    opening: int,
    entries: Sequence[StatementEntry],
    from_date: str,
    to_date: str,
    sequence: int = 1,
    *,
    closed: bool = True,
) -> bytes:
    """camt.053 with the balances before (OPBD) and after (CLBD; ITBD of a day that is not ``closed``) the booked
    entries; minor units, debit negative."""
    body, finish = new_document("camt.053", "BkToCstmrStmt")
    header = SubElement(body, "GrpHdr")
    _text(header, "MsgId", message_id, 35)
    _moment(header, "CreDtTm", created_at)
    statement = SubElement(body, "Stmt")
    _text(statement, "Id", message_id, 35)
    _text(statement, "ElctrncSeqNb", str(sequence), 18)
    _moment(statement, "CreDtTm", created_at)
    node = SubElement(statement, "Acct")
    _account(node, account)
    _text(node, "Ccy", currency, 3)
    closing = opening + sum(entry.amount if entry.credit else -entry.amount for entry in entries)
    after = "CLBD" if closed else "ITBD"
    for code, amount, date in (("OPBD", opening, from_date), (after, closing, to_date)):
        balance = SubElement(statement, "Bal")
        _text(SubElement(SubElement(balance, "Tp"), "CdOrPrtry"), "Cd", code, 4)
        _amount(balance, abs(amount), currency)
        _text(balance, "CdtDbtInd", "DBIT" if amount < 0 else "CRDT", 4)
        _date(SubElement(balance, "Dt"), "Dt", date)
    for entry in entries:
        if entry.amount <= 0:
            raise ValueError(f"entry {entry.reference}: the amount must be more than zero")
        node = SubElement(statement, "Ntry")
        _text(node, "NtryRef", entry.reference, 35)
        _amount(node, entry.amount, currency)
        _text(node, "CdtDbtInd", "CRDT" if entry.credit else "DBIT", 4)
        _text(SubElement(node, "Sts"), "Cd", "BOOK", 4)
        _date(SubElement(node, "BookgDt"), "Dt", entry.booked_on)
        family = SubElement(SubElement(node, "BkTxCd"), "Domn")
        _text(family, "Cd", "PMNT", 4)
        kind = SubElement(family, "Fmly")
        _text(kind, "Cd", "RCDT" if entry.credit else "ICDT", 4)
        _text(kind, "SubFmlyCd", "OTHR", 4)
        _details(node, entry, currency)
    return finish()


def _details(parent: Element, entry: StatementEntry, currency: str) -> None:
    if entry.end_to_end_id is None and entry.counterparty_account is None and entry.remittance is None:
        return
    details = SubElement(SubElement(parent, "NtryDtls"), "TxDtls")
    if entry.end_to_end_id is not None:
        _text(SubElement(details, "Refs"), "EndToEndId", entry.end_to_end_id, 35)
    _amount(details, entry.amount, currency)
    _text(details, "CdtDbtInd", "CRDT" if entry.credit else "DBIT", 4)
    if entry.counterparty_account is not None:
        party = SubElement(SubElement(details, "RltdPties"), "DbtrAcct" if entry.credit else "CdtrAcct")
        _account(party, entry.counterparty_account)
    if entry.remittance is not None:
        information = SubElement(details, "RmtInf")
        for line in entry.remittance.split("\n"):
            _text(information, "Ustrd", line, 140)


def _account(parent: Element, account: str) -> None:
    node = SubElement(parent, "Id")
    if iban_valid(account):
        _text(node, "IBAN", account, 34)
    else:
        _text(SubElement(node, "Othr"), "Id", account, 34)


def _amount(parent: Element, amount: int, currency: str) -> None:
    node = SubElement(parent, "Amt", {"Ccy": currency})
    node.text = amount_text(amount, currency)


def _text(parent: Element, name: str, value: str, most: int) -> None:
    if not 1 <= len(value) <= most or not value.isprintable() or value != value.strip():
        raise ValueError(f"{name} must be 1 to {most} printable characters without space around; found {value[:60]!r}")
    SubElement(parent, name).text = value


def _date(parent: Element, name: str, value: str) -> None:
    if not DATE.fullmatch(value):
        raise ValueError(f"{name} must be a date; found {value[:40]!r}")
    _text(parent, name, value, 10)


def _moment(parent: Element, name: str, value: str) -> None:
    if not DATE_TIME.fullmatch(value):
        raise ValueError(f"{name} must be an ISO 8601 time; found {value[:40]!r}")
    _text(parent, name, value, 35)


def _one_of(value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return value
