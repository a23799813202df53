"""Which numbers are cards', how they are kept out of text, and what a vault's key opens."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from api.card_keys import CardKeyError, FileMasterKeys, new_data_key, unwrap_data_key, wrap_data_key
from api.card_vault import Card, bound_to
from api.problems import Problem, problem_response
from pipelines.card_numbers import CardNumberError, luhn_valid, mask_card_numbers, masked, read_card_number

# numbers that the schemes publish for tests
KNOWN = {
    "4111111111111111": "visa", "4222222222222": "visa", "5555555555554444": "mastercard",
    "2223003122003222": "mastercard", "378282246310005": "amex", "6011111111111117": "discover",
    "30569309025904": "diners", "3530111333300000": "jcb", "6200000000000005": "unionpay",
    "6759649826438453": "maestro", "2200000000000004": "mir",
}  # fmt: skip


@pytest.mark.parametrize(("number", "brand"), KNOWN.items())
def test_known_numbers_have_their_brand_and_one_wrong_digit_is_noticed(number: str, brand: str) -> None:
    assert read_card_number(number) == (number, brand)
    assert read_card_number(f"{number[:4]} {number[4:8]}-{number[8:]}") == (number, brand)
    for position in range(len(number)):
        wrong = number[:position] + str((int(number[position]) + 1) % 10) + number[position + 1 :]
        assert not luhn_valid(wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [("4111111111111112", "check digit"), ("411111111111111", "issuer range"), ("9111111111111111", "issuer range"),
     ("4111", "13 to 19"), ("4" * 20, "13 to 19"), ("4111  111111111111", "digits"), ("٤١١١١١١١١١١١١١١١", "digits"),
     ("", "digits"), ("4111111111111111 ", "digits")],
)  # fmt: skip
def test_what_is_no_card_number_is_refused_without_a_word_of_it(text: str, message: str) -> None:
    with pytest.raises(CardNumberError, match=message) as caught:
        read_card_number(text)
    assert not text or text not in str(caught.value)


@given(st.sampled_from(sorted(KNOWN)), st.text(), st.text(), st.sampled_from(["", " ", "-"]))
def test_a_number_in_any_text_is_masked(number: str, before: str, after: str, separator: str) -> None:
    written = separator.join(number[start : start + 4] for start in range(0, len(number), 4))
    text = f"{before}<{written}>{after}"
    assert f"<****{number[-4:]}>" in mask_card_numbers(text)
    assert written not in json.dumps(masked({"a": [text, {written: 1}], "b": int(number)}))


def test_neighbouring_groups_and_what_is_no_card_number_stay() -> None:
    assert mask_card_numbers("12 4111 1111 1111 1111 34") == "12 ****1111 34"
    assert mask_card_numbers("x4111111111111111y 4111111111111112") == "x****1111y 4111111111111112"
    for text in ("1763832829000000000", "2026-11-22", str(2**127), "41111111111111110" * 3):
        assert mask_card_numbers(text) == text


def test_logs_and_problems_hold_no_number() -> None:
    from infra.logs import configure_logs

    stream = io.StringIO()
    with redirect_stderr(stream):
        configure_logs()
        log = structlog.get_logger("test-card-numbers")
        try:
            raise ValueError("cannot take 4111111111111111")
        except ValueError:
            log.exception("failed for 5555-5555-5555-4444", number=378282246310005, card={"pan": "4111111111111111"})
    structlog.reset_defaults()
    line = stream.getvalue()
    assert "cannot take ****1111" in line
    assert not any(number in line for number in (*KNOWN, "5555-5555-5555-4444"))
    answer = problem_response(Problem("not-found", "no 4111111111111111", errors=[{"detail": "5555555555554444"}]))
    assert isinstance(answer.body, bytes)
    assert b"no ****1111" in answer.body
    assert b"5555555555554444" not in answer.body


def test_a_sealed_number_opens_only_as_what_it_is(tmp_path: Path) -> None:
    masters = FileMasterKeys(tmp_path / "secrets" / "master.json")
    key = new_data_key("encryption")
    master_key_id, wrapped = wrap_data_key(masters, key)
    assert key.secret not in wrapped
    assert "secret" not in repr(key)
    again = unwrap_data_key(FileMasterKeys(tmp_path / "secrets" / "master.json"), key.id, key.purpose, master_key_id,
                            wrapped)  # fmt: skip
    card = Card("card_" + "a" * 26, "visa", "1111", 2030, 1)
    sealed = key.seal("4111111111111111", bound_to(card))
    assert again.open(sealed, bound_to(card)) == "4111111111111111"
    assert len(sealed.ciphertext) == len(key.seal("4222222222222", bound_to(card)).ciphertext)
    for changed in (replace(card, token="card_" + "b" * 26), replace(card, expiry_year=2031)):
        with pytest.raises(CardKeyError):
            again.open(sealed, bound_to(changed))
    with pytest.raises(CardKeyError):
        again.open(
            replace(sealed, ciphertext=bytes([sealed.ciphertext[0] ^ 1]) + sealed.ciphertext[1:]), bound_to(card)
        )
    for key_id, purpose in (("other", key.purpose), (key.id, "fingerprint")):
        with pytest.raises(CardKeyError):
            unwrap_data_key(masters, key_id, purpose, master_key_id, wrapped)

    rotated = masters.rotate()
    assert masters.unwrap(master_key_id, wrapped, b"streambank data key %s encryption" % key.id.encode()) == key.secret
    assert masters.wrap(b"x", b"y")[0] == rotated
    assert masters.forget_older() == [master_key_id]
    with pytest.raises(CardKeyError, match=master_key_id):
        masters.unwrap(master_key_id, wrapped, b"")
    (tmp_path / "secrets" / "master.json").chmod(0o644)
    with pytest.raises(CardKeyError, match="chmod 600"):
        masters.wrap(b"x", b"y")
