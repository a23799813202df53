"""pacs.008 and pain.001 into plain payment instructions.

A message is taken as a whole or not at all: control sums and every instruction must be right. Both become the same
instructions, so that whoever pays needs to know neither.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pipelines.iso20022.identifiers import BIC, CURRENCY, DATE, DATE_TIME, UETR, iban_valid, minor_units, read_amount
from pipelines.iso20022.xml import Iso20022Error, Node, document, text_of

__all__ = ["CreditTransfers", "PaymentInstruction", "read_credit_transfers"]

MAX_INSTRUCTIONS: Final = 5_000
_COUNT: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
_SUM: Final = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,17}))?", re.ASCII)
_PURPOSE: Final = re.compile(r"[A-Z0-9]{1,4}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PaymentInstruction:
    """One credit transfer. ``amount`` in minor units of ``currency``; accounts are IBANs or other identifications;
    agents are BICs; optional texts are None where the message has none."""

    end_to_end_id: str
    amount: int
    currency: str
    debtor_account: str
    creditor_account: str
    debtor_name: str | None = None
    creditor_name: str | None = None
    debtor_agent: str | None = None
    creditor_agent: str | None = None
    instruction_id: str | None = None
    transaction_id: str | None = None
    uetr: str | None = None
    payment_information_id: str | None = None
    requested_date: str | None = None
    purpose: str | None = None
    remittance: str | None = None


@dataclass(frozen=True, slots=True)
class CreditTransfers:
    """A message: ``message`` is pacs.008 or pain.001, ``name`` that with its version, ``created_at`` as it was
    written."""

    message: str
    name: str
    message_id: str
    created_at: str
    instructions: tuple[PaymentInstruction, ...]


def read_credit_transfers(data: bytes) -> CreditTransfers:
    """The instructions of a pacs.008 or pain.001; raises `Iso20022Error` for anything that is not right."""
    message, name, root = document(data)
    if message == "pacs.008":
        body = root.need("FIToFICstmrCdtTrf")
        found = [_interbank(transaction) for transaction in body.all("CdtTrfTxInf")]
        header = body.need("GrpHdr")
        _check_totals(header, found)
        total = header.find("TtlIntrBkSttlmAmt")
        if total is not None:
            amount, currency = _amount(total)
            if {currency} != {entry.currency for entry in found} or amount != sum(entry.amount for entry in found):
                raise Iso20022Error(total.path, "is not the sum of the transactions", "AM10")
    else:
        body = root.need("CstmrCdtTrfInitn")
        header = body.need("GrpHdr")
        found = []
        for information in body.all("PmtInf"):
            method = information.need("PmtMtd").text(3)
            if method != "TRF":
                raise Iso20022Error(f"{information.path}/PmtMtd", "must be TRF: cheques are not made", "AG09")
            entries = [_initiated(transaction, information) for transaction in information.all("CdtTrfTxInf")]
            _check_totals(information, entries, needed=False)
            found += entries
        _check_totals(header, found)
    return CreditTransfers(
        message, name, header.need("MsgId").text(35), header.need("CreDtTm").text(35, DATE_TIME), tuple(found)
    )


def _interbank(node: Node) -> PaymentInstruction:
    identification = node.need("PmtId")
    amount, currency = _amount(node.need("IntrBkSttlmAmt"))
    return PaymentInstruction(
        end_to_end_id=identification.need("EndToEndId").text(35),
        amount=amount,
        currency=currency,
        debtor_account=_account(node.need("DbtrAcct")),
        creditor_account=_account(node.need("CdtrAcct")),
        debtor_name=text_of(node.find("Dbtr", "Nm"), 140),
        creditor_name=text_of(node.find("Cdtr", "Nm"), 140),
        debtor_agent=_agent(node.need("DbtrAgt")),
        creditor_agent=_agent(node.need("CdtrAgt")),
        instruction_id=text_of(identification.find("InstrId"), 35),
        transaction_id=text_of(identification.find("TxId"), 35),
        uetr=text_of(identification.find("UETR"), 36, UETR),
        requested_date=text_of(node.find("IntrBkSttlmDt"), 10, DATE),
        purpose=text_of(node.find("Purp", "Cd"), 4, _PURPOSE),
        remittance=_remittance(node),
    )


def _initiated(node: Node, information: Node) -> PaymentInstruction:
    identification = node.need("PmtId")
    amount, currency = _amount(node.need("Amt", "InstdAmt"))
    creditor_agent = node.find("CdtrAgt")
    date = information.need("ReqdExctnDt")
    return PaymentInstruction(
        end_to_end_id=identification.need("EndToEndId").text(35),
        amount=amount,
        currency=currency,
        debtor_account=_account(information.need("DbtrAcct")),
        creditor_account=_account(node.need("CdtrAcct")),
        debtor_name=text_of(information.find("Dbtr", "Nm"), 140),
        creditor_name=text_of(node.find("Cdtr", "Nm"), 140),
        debtor_agent=_agent(information.need("DbtrAgt")),
        creditor_agent=_agent(creditor_agent) if creditor_agent is not None else None,
        instruction_id=text_of(identification.find("InstrId"), 35),
        uetr=text_of(identification.find("UETR"), 36, UETR),
        payment_information_id=information.need("PmtInfId").text(35),
        # version 8 put the date into a choice
        requested_date=text_of(date.find("Dt"), 10, DATE) or text_of(date.find("DtTm"), 35, DATE_TIME)
        or date.text(10, DATE),
        purpose=text_of(node.find("Purp", "Cd"), 4, _PURPOSE),
        remittance=_remittance(node),
    )  # fmt: skip


def _amount(node: Node) -> tuple[int, str]:
    currency = node.attribute("Ccy", CURRENCY)
    if minor_units(currency) is None:
        raise Iso20022Error(f"{node.path}/@Ccy", f"{currency} is no currency that payments are made in", "AM03")
    try:
        amount = read_amount(node.text(19), currency)
    except ValueError as error:
        raise Iso20022Error(node.path, str(error), "AM12") from None
    if amount == 0:
        raise Iso20022Error(node.path, "must be more than zero", "AM01")
    return amount, currency


def _account(node: Node) -> str:
    iban = node.find("Id", "IBAN")
    if iban is None:
        return node.need("Id", "Othr", "Id").text(34)
    text = iban.text(34)
    if not iban_valid(text):
        raise Iso20022Error(iban.path, "is no IBAN: its form or check digits are wrong", "AC01")
    return text


def _agent(node: Node) -> str | None:
    institution = node.need("FinInstnId")
    return text_of(institution.find("BICFI") or institution.find("BIC"), 11, BIC)


def _remittance(node: Node) -> str | None:
    information = node.find("RmtInf")
    if information is None:
        return None
    lines = [line.text(140) for line in information.all("Ustrd")]
    return "\n".join(lines) or None


def _check_totals(header: Node, entries: list[PaymentInstruction], *, needed: bool = True) -> None:
    """Number of transactions and control sum, which adds up amounts whatever their currencies."""
    if not 1 <= len(entries) <= MAX_INSTRUCTIONS:
        raise Iso20022Error(header.path, f"must come with 1 to {MAX_INSTRUCTIONS:,} transactions", "AM19")
    count = header.need("NbOfTxs") if needed else header.find("NbOfTxs")
    if count is not None and int(count.text(15, _COUNT)) != len(entries):
        raise Iso20022Error(count.path, f"says another number than the {len(entries)} that are there", "AM18")
    control = header.find("CtrlSum")
    if control is not None:
        found = _SUM.fullmatch(control.text(36))
        exact = sum(entry.amount * 10 ** (17 - (minor_units(entry.currency) or 0)) for entry in entries)
        if found is None or int(found[1] + (found[2] or "").ljust(17, "0")) != exact:
            raise Iso20022Error(control.path, "is not the sum of the amounts", "AM10")
