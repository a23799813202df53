"""ISO 20022: instructions in, reports out, and XML that wants something else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from typing import Any
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xsdata.formats.dataclass.parsers import XmlParser
from xsdata.formats.dataclass.parsers.config import ParserConfig
from xsdata.formats.dataclass.serializers import XmlSerializer

from pipelines.iso20022.credit_transfers import CreditTransfers, PaymentInstruction, read_credit_transfers
from pipelines.iso20022.identifiers import amount_text, iban_valid, minor_units, read_amount
from pipelines.iso20022.reports import StatementEntry, TransactionStatus, write_statement, write_status_report
from pipelines.iso20022.xml import Iso20022Error

IBANS = ("DE89370400440532013000", "GB29NWBK60161331926819", "NO9386011117947", "MT84MALT011000012345MTLCAST001S")
WHEN = "2026-01-31T12:00:00Z"

texts = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, categories=("L", "N", "P", "S")), min_size=1)
ids = texts.map(lambda text: text[:35])
instructions = st.builds(
    PaymentInstruction,
    end_to_end_id=ids,
    amount=st.integers(1, 10**13),
    currency=st.sampled_from(["EUR", "JPY", "BHD", "CLF"]),
    debtor_account=st.sampled_from(IBANS) | ids.map(lambda text: text[:34]),
    creditor_account=st.sampled_from(IBANS),
    debtor_name=st.none() | texts.map(lambda text: text[:140]),
    creditor_name=st.none() | texts.map(lambda text: text[:140]),
    debtor_agent=st.sampled_from(["DEUTDEFF", "NWBKGB2LXXX"]),
    creditor_agent=st.none() | st.just("DEUTDEFF500"),
    instruction_id=st.none() | ids,
    transaction_id=st.none() | ids,
    uetr=st.none() | st.uuids(version=4).map(str),
    requested_date=st.just("2026-02-01"),
    purpose=st.none() | st.just("SALA"),
    remittance=st.none() | st.lists(texts.map(lambda text: text[:140]), min_size=1, max_size=3).map("\n".join),
)


def pacs008(entries: list[PaymentInstruction], **options: Any) -> bytes:
    """A pacs.008.001.08 as another bank would write it."""
    root = Element("Document", {"xmlns": "urn:iso:std:iso:20022:tech:xsd:pacs.008.001.08"})
    body = SubElement(root, "FIToFICstmrCdtTrf")
    header = SubElement(body, "GrpHdr")
    for name, value in (
        ("MsgId", "M1"),
        ("CreDtTm", WHEN),
        ("NbOfTxs", options.get("count", str(len(entries)))),
    ):
        SubElement(header, name).text = value
    if "control" in options:
        SubElement(header, "CtrlSum").text = options["control"]
    for entry in entries:
        node = SubElement(body, "CdtTrfTxInf")
        identification = SubElement(node, "PmtId")
        _optional(identification, "InstrId", entry.instruction_id)
        _optional(identification, "EndToEndId", entry.end_to_end_id)
        _optional(identification, "TxId", entry.transaction_id)
        _optional(identification, "UETR", entry.uetr)
        amount = SubElement(node, "IntrBkSttlmAmt", {"Ccy": entry.currency})
        amount.text = amount_text(entry.amount, entry.currency)
        _optional(node, "IntrBkSttlmDt", entry.requested_date)
        _parties(node, entry, debtor=True)
        _parties(node, entry, debtor=False)
        if entry.purpose:
            _optional(SubElement(node, "Purp"), "Cd", entry.purpose)
        if entry.remittance:
            information = SubElement(node, "RmtInf")
            for line in entry.remittance.split("\n"):
                _optional(information, "Ustrd", line)
    return tostring(root, "utf-8", xml_declaration=True)


def _optional(parent: Element, name: str, value: str | None) -> None:
    if value is not None:
        SubElement(parent, name).text = value


def _parties(node: Element, entry: PaymentInstruction, *, debtor: bool) -> None:
    prefix = "Dbtr" if debtor else "Cdtr"
    name, account, agent = (
        (entry.debtor_name, entry.debtor_account, entry.debtor_agent)
        if debtor
        else (entry.creditor_name, entry.creditor_account, entry.creditor_agent)
    )
    _optional(SubElement(node, prefix), "Nm", name)
    identification = SubElement(SubElement(node, f"{prefix}Acct"), "Id")
    if iban_valid(account):
        _optional(identification, "IBAN", account)
    else:
        _optional(SubElement(identification, "Othr"), "Id", account)
    _optional(SubElement(SubElement(node, f"{prefix}Agt"), "FinInstnId"), "BICFI", agent)


PAIN001 = f"""<?xml version="1.0"?>
<Document xmlns="urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"><CstmrCdtTrfInitn>
 <GrpHdr><MsgId>P1</MsgId><CreDtTm>{WHEN}</CreDtTm><NbOfTxs>2</NbOfTxs><CtrlSum>1012.5</CtrlSum></GrpHdr>
 <PmtInf><PmtInfId>I1</PmtInfId><PmtMtd>TRF</PmtMtd><NbOfTxs>2</NbOfTxs>
  <ReqdExctnDt><Dt>2026-02-02</Dt></ReqdExctnDt><Dbtr><Nm>Ann &amp; Co</Nm></Dbtr>
  <DbtrAcct><Id><IBAN>{IBANS[0]}</IBAN></Id></DbtrAcct><DbtrAgt><FinInstnId><BICFI>DEUTDEFF</BICFI></FinInstnId></DbtrAgt>
  <CdtTrfTxInf><PmtId><EndToEndId>E1</EndToEndId></PmtId><Amt><InstdAmt Ccy="EUR">12.50</InstdAmt></Amt>
   <Cdtr><Nm>Bob</Nm></Cdtr><CdtrAcct><Id><IBAN>{IBANS[1]}</IBAN></Id></CdtrAcct></CdtTrfTxInf>
  <CdtTrfTxInf><PmtId><EndToEndId>E2</EndToEndId></PmtId><Amt><InstdAmt Ccy="JPY">1000</InstdAmt></Amt>
   <CdtrAcct><Id><Othr><Id>12345</Id></Othr></Id></CdtrAcct><RmtInf><Ustrd>rent</Ustrd></RmtInf></CdtTrfTxInf>
 </PmtInf></CstmrCdtTrfInitn></Document>""".encode()


@settings(max_examples=60)
@given(st.lists(instructions, min_size=1, max_size=4))
def test_a_pacs_008_reads_as_what_was_written_and_its_report_is_in_order(entries: list[PaymentInstruction]) -> None:
    found = read_credit_transfers(pacs008(entries))
    assert list(found.instructions) == entries
    assert (found.message, found.name, found.message_id) == ("pacs.008", "pacs.008.001.08", "M1")
    statuses = [TransactionStatus(entry, "RJCT", "AM04", "no funds") for entry in found.instructions]
    report = fromstring(write_status_report(found, "R1", WHEN, statuses, "RJCT"))  # noqa: S314 - our own
    space = "{urn:iso:std:iso:20022:tech:xsd:pacs.002.001.10}"
    rows = report.findall(f"{space}FIToFIPmtStsRpt/{space}TxInfAndSts")
    assert [row.findtext(f"{space}OrgnlEndToEndId") for row in rows] == [entry.end_to_end_id for entry in entries]
    assert [row.findtext(f"{space}StsRsnInf/{space}Rsn/{space}Cd") for row in rows] == ["AM04"] * len(entries)
    order = ["OrgnlInstrId", "OrgnlEndToEndId", "OrgnlTxId", "OrgnlUETR", "TxSts", "StsRsnInf"]  # of the schema
    for row in rows:
        places = [order.index(child.tag.removeprefix(space)) for child in row]
        assert places == sorted(places)


def test_a_pain_001_reads_as_the_same_instructions() -> None:
    found = read_credit_transfers(PAIN001)
    assert found.instructions == (
        PaymentInstruction(
            "E1", 1250, "EUR", IBANS[0], IBANS[1], debtor_name="Ann & Co", creditor_name="Bob",
            debtor_agent="DEUTDEFF", payment_information_id="I1", requested_date="2026-02-02",
        ),
        PaymentInstruction(
            "E2", 1000, "JPY", IBANS[0], "12345", debtor_name="Ann & Co", debtor_agent="DEUTDEFF",
            payment_information_id="I1", requested_date="2026-02-02", remittance="rent",
        ),
    )  # fmt: skip
    report = write_status_report(found, "R1", WHEN, [TransactionStatus(found.instructions[0], "ACSC")], "PART").decode()
    assert "pain.002.001.10" in report
    assert "<OrgnlPmtInfId>I1</OrgnlPmtInfId><TxInfAndSts><OrgnlEndToEndId>E1</OrgnlEndToEndId><TxSts>ACSC" in report
    assert "<OrgnlMsgNmId>pain.001.001.09</OrgnlMsgNmId><GrpSts>PART</GrpSts>" in report


def test_a_statement_balances() -> None:
    entries = [
        StatementEntry("N1", 150, credit=True, booked_on="2026-01-02", end_to_end_id="E1", remittance="a <b> & c"),
        StatementEntry("N2", 400, credit=False, booked_on="2026-01-03", counterparty_account=IBANS[1]),
    ]
    text = write_statement("S1", WHEN, IBANS[0], "EUR", 200, entries, "2026-01-01", "2026-01-31").decode()
    assert '<Cd>OPBD</Cd></CdOrPrtry></Tp><Amt Ccy="EUR">2.00</Amt><CdtDbtInd>CRDT' in text
    assert '<Cd>CLBD</Cd></CdOrPrtry></Tp><Amt Ccy="EUR">0.50</Amt><CdtDbtInd>DBIT' in text
    assert f"<CdtrAcct><Id><IBAN>{IBANS[1]}" in text
    assert f"<Ustrd>{escape('a <b> & c')}</Ustrd>" in text
    for changes, message in (
        ({"booked_on": "2026-13-01"}, "date"), ({"amount": 0}, "more than zero"), ({"reference": "x" * 36}, "NtryRef"),
        ({"remittance": "a\x00b"}, "Ustrd"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            write_statement(
                "S1", WHEN, IBANS[0], "EUR", 0, [replace(entries[0], **changes)], "2026-01-01", "2026-01-31"
            )


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        (">12.50<", ">12.505<", "InstdAmt"), (">12.50<", ">1e3<", "InstdAmt"), (">12.50<", ">-1<", "InstdAmt"),
        (">12.50<", ">0.00<", "InstdAmt"), ('"EUR"', '"EUX"', "@Ccy"), ('"EUR"', '"eur"', "@Ccy"),
        (">1000<", ">1000.5<", "InstdAmt"), (">1012.5<", ">1012.51<", "CtrlSum"),
        ("<NbOfTxs>2", "<NbOfTxs>3", "NbOfTxs"),
        (IBANS[1], IBANS[1][:-1] + "8", "IBAN"), ("DEUTDEFF", "DEUT", "BICFI"),
        ("<PmtMtd>TRF", "<PmtMtd>CHK", "PmtMtd"),
        ("<MsgId>P1</MsgId>", "", "MsgId"), ("<MsgId>P1<", "<MsgId>" + "x" * 36 + "<", "MsgId"),
        ("<EndToEndId>E1</EndToEndId>", "<EndToEndId>E1</EndToEndId>" * 2, "EndToEndId"),
        ("2026-02-02", "2026-02-32", "ReqdExctnDt"), (WHEN, "yesterday", "CreDtTm"),
        ("<Nm>Bob</Nm>", "<Nm>B<i/>ob</Nm>", "Nm"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_place(old: str, new: str, place: str) -> None:
    changed = PAIN001.replace(old.encode(), new.encode(), 1)
    assert changed != PAIN001
    with pytest.raises(Iso20022Error) as caught:
        read_credit_transfers(changed)
    assert place in caught.value.path


_BOMB = '<!DOCTYPE d [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True)
) + "]><d>&i;</d>"  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        _BOMB.encode(),
        b'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><d>&x;</d>',
        b'<!DOCTYPE d SYSTEM "http://127.0.0.1:9/x.dtd"><d/>',
        b'<!DOCTYPE d [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x"> %p;]><d/>',
        PAIN001.replace(b"?>", b"?><!DOCTYPE Document>", 1),
        b"<a>" * 100_000, b"<a>" * 20 + b"<b/>" * 300_000 + b"</a>" * 20, b"x" * (5 << 20),
        b"", b"\x00", b"<a", b"\xff\xfe",
        b'<?xml version="1.0" encoding="no-such"?><a/>', b"<Document/>", b'<Document xmlns="urn:other"/>',
        b'<Document xmlns="urn:iso:std:iso:20022:tech:xsd:pacs.009.001.08"/>',
        b'<Document xmlns="urn:iso:std:iso:20022:tech:xsd:pacs.008.001.08"/>',
    ],
    ids=range(17),
)  # fmt: skip
def test_hostile_xml_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(Iso20022Error):
        read_credit_transfers(data)


@settings(max_examples=150)
@given(st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(PAIN001) - 1))
    junk = data.draw(st.binary(max_size=6) | st.sampled_from([b"<", b"&a;", b"]]>", b"<!--", b"\xc3("]))
    try:
        found = read_credit_transfers(PAIN001[:position] + junk + PAIN001[position + data.draw(st.integers(0, 40)) :])
    except Iso20022Error:
        return
    assert isinstance(found, CreditTransfers)
    assert sum(entry.amount for entry in found.instructions) == 2250  # the control sum holds what matters


@given(st.integers(0, 10**17), st.sampled_from(["EUR", "JPY", "BHD", "CLF"]))
def test_amounts_come_back(amount: int, currency: str) -> None:
    assert read_amount(amount_text(amount, currency), currency) == amount


def test_currencies_and_ibans() -> None:
    assert [minor_units(code) for code in ("EUR", "JPY", "BHD", "CLF", "XXX", "XAU")] == [2, 0, 3, 4, None, None]
    assert all(map(iban_valid, IBANS))
    assert not any(map(iban_valid, ["DE88370400440532013000", "de89370400440532013000", "", "DE89", IBANS[0] + "0"]))


def test_what_is_written_is_what_classes_made_from_the_schemas_read() -> None:
    """Known elements only, in the schemas' order, none missing that is required."""
    transfers = read_credit_transfers(PAIN001)
    entry = replace(
        transfers.instructions[0], instruction_id="I1", transaction_id="T1", uetr="8a562c67-ca16-48ba-b074-65581be6f011"
    )
    statuses = [
        TransactionStatus(entry, "RJCT", "AM04", "no funds", "77"),
        TransactionStatus(entry, "ACSC", reference=str(2**96 - 1)),
    ]
    interbank = CreditTransfers("pacs.008", "pacs.008.001.08", "M1", WHEN, (entry,))
    booked = [
        StatementEntry("N1", 150, True, "2026-01-02", "E1", IBANS[1], "a\nb"),
        StatementEntry("N2", 400, False, "2026-01-03", counterparty_account="12345"),
    ]
    for module, written in (
        ("pacs.pacs_002_001_10", write_status_report(interbank, "R1", WHEN, statuses, "PART")),
        ("pain.pain_002_001_10", write_status_report(transfers, "R1", WHEN, statuses, "PART")),
        (
            "camt.camt_053_001_08",
            write_statement("S1", WHEN, IBANS[0], "EUR", 200, booked, "2026-01-01", "2026-01-31"),
        ),
    ):
        kind = import_module(f"pyiso20022.{module}").Document
        strict = ParserConfig(fail_on_unknown_properties=True, fail_on_converter_warnings=True)
        found = XmlParser(config=strict).from_bytes(written, kind)
        again = XmlSerializer().render(found)
        assert elements(again) == elements(written.decode())
        assert not list(missing(found))


def elements(text: str) -> list[str]:
    return re.findall(r"<(?:\w+:)?([A-Z]\w*)", text)


def missing(value: Any) -> Iterator[str]:
    """Required fields without a value, below a value of generated classes."""
    for field in fields(value) if is_dataclass(value) else ():
        inner = getattr(value, field.name)
        if inner in (None, []) and (field.metadata.get("required") or field.metadata.get("min_occurs", 0) >= 1):
            yield f"{type(value).__name__}.{field.name}"
        for part in inner if isinstance(inner, list) else [inner]:
            yield from missing(part)
