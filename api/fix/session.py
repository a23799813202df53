"""One FIX 4.4 session, apart from any transport: logon, sequence numbers, heartbeats, recovery.

An acceptor's session begins with `Session.logon`, an initiator's with `Session.open`.

Numbers are kept in the store and never start anew unless the counterparty asks for it (ResetSeqNumFlag). What is sent
while nobody is connected gets its number and waits: at the next logon the counterparty sees the gap and asks for it.
Every change happens within a transaction of the store and `flush` comes after it, so nothing is on the wire that is not
on disk: after a crash a number is neither used twice nor a message lost.

A message that comes early is dropped and everything from the gap on is asked for again (ResendRequest to infinity);
application messages are sent again with PossDupFlag, session messages are covered by gap fills. A possible duplicate
that was processed is ignored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from api.fix.config import ProcessSettings
from api.fix.definitions import Definition
from api.fix.store import Sent, SessionStore
from api.fix.wire import BEGIN_STRING, Fields, Message, encode, encode_body, number, parse_time

__all__ = ["Link", "Session"]

HEARTBEAT, TEST_REQUEST, RESEND_REQUEST, REJECT, SEQUENCE_RESET, LOGOUT, LOGON = "0", "1", "2", "3", "4", "5", "A"
ASK_AGAIN_SECONDS: Final = 30.0
LOGOUT_SECONDS: Final = 2.0
TAG_MISSING, WRONG_VALUE, WRONG_FORMAT, COMP_ID_PROBLEM, SENDING_TIME_PROBLEM = 1, 5, 6, 9, 10
"""SessionRejectReason."""


class Link(Protocol):
    """A connection."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        """Close it once what was written has left."""


class Session:
    """See the module. ``touched`` collects sessions whose numbers or messages changed, for the end of the transaction:
    `save` each within it, `flush` each after it."""

    def __init__(
        self,
        comp_id: str,
        config: ProcessSettings,
        store: SessionStore,
        touched: set[Session],
        application: Callable[[Session, Message], None],
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.comp_id = comp_id
        self.definition: Definition | None = None
        self._config = config
        self._store = store
        self._touched = touched
        self._application = application
        self._clock = clock
        self.next_in, self.next_out = store.numbers(comp_id)
        self._link: Link | None = None
        self._awaits_logon = self._resets = False
        self._unsent: list[bytes] = []
        self._is_closing = False
        self._heartbeat = 30.0
        self._heard_at = self._sent_at = self._asked_at = self._closing_at = 0.0
        self._tested = False
        self._awaited = 0
        """The highest number seen beyond a gap; 0 without one."""
        self._tokens = 0.0
        self._tokens_at = 0.0

    # --- the connection --------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self._link is not None

    @property
    def is_logged_on(self) -> bool:
        return self._link is not None and not self._awaits_logon and not self._is_closing

    def open(self, link: Link, heartbeat: int, credentials: Fields, *, reset: bool = False) -> None:
        """Log on to an acceptor; the session is logged on when its answer was received."""
        self._begin(link)
        if reset:
            self._start_anew()
        self._awaits_logon, self._resets = True, reset
        self._heartbeat = float(heartbeat)
        self._session_message(LOGON, [(98, 0), (108, heartbeat), *([(141, "Y")] if reset else []), *credentials])

    def _begin(self, link: Link) -> None:
        self._link = link
        self._is_closing = self._awaits_logon = False
        self._heard_at = self._sent_at = time.monotonic()
        self._tested, self._awaited = False, 0

    def _start_anew(self) -> None:
        self.next_in = self.next_out = 1
        self._store.forget_sent(self.comp_id)

    def logon(self, message: Message, definition: Definition, link: Link, minimum_heartbeat: int = 1) -> None:
        """Take a Logon whose credentials were checked."""
        self.definition = definition
        self._begin(link)
        sequence, heartbeat = message.sequence, number(message.get(108))
        resets = message.get(141) == "Y"
        problem = ""
        if message.get(98, "0") != "0":
            problem = "EncryptMethod(98) must be 0"
        elif heartbeat < minimum_heartbeat:
            problem = f"HeartBtInt(108) must be at least {minimum_heartbeat}"
        elif resets and sequence != 1:
            problem = "ResetSeqNumFlag(141) needs MsgSeqNum(34) 1"
        elif self._is_late(message):
            problem = "SendingTime(52) is missing or too far from this clock"
        elif sequence < self.next_in and not resets:
            problem = f"MsgSeqNum too low, expecting {self.next_in} but received {sequence}"
        if problem:
            self.logout(problem)
            self._close()
            return
        if resets:
            self._start_anew()
        self._heartbeat = float(heartbeat)
        self._session_message(LOGON, [(98, 0), (108, heartbeat), *([(141, "Y")] if resets else [])])
        if sequence == self.next_in:
            self._advance(sequence + 1)
        else:
            self._ask_from_gap(sequence)

    def detach(self) -> None:
        """The connection is gone."""
        self._link = None
        self._unsent.clear()
        self._is_closing = False

    def flush(self) -> None:
        """Send what the transaction made, after it; then close if that was asked for."""
        link, unsent = self._link, self._unsent
        if link is not None:
            if unsent:
                link.write(b"".join(unsent))
                self._sent_at = time.monotonic()
            if self._is_closing and self._closing_at <= time.monotonic():
                link.close()
        unsent.clear()

    def save(self) -> None:
        self._store.set_numbers(self.comp_id, self.next_in, self.next_out)

    def logout(self, text: str = "") -> None:
        """Say goodbye; the connection ends when the counterparty has answered, or soon after."""
        if self._link is not None and not self._is_closing:
            self._session_message(LOGOUT, [(58, text)])
            self._is_closing = True
            self._closing_at = time.monotonic() + LOGOUT_SECONDS

    def is_due(self) -> bool:
        """Whether `tick` has something to do."""
        now = time.monotonic()
        return self._link is not None and (
            now - self._sent_at >= self._heartbeat
            or now - self._heard_at >= 1.2 * self._heartbeat
            or (self._awaited > 0 and now - self._asked_at >= ASK_AGAIN_SECONDS)
            or self._is_closing
        )

    def tick(self) -> None:
        """Heartbeats, and an end to a silent connection; about once a second."""
        now = time.monotonic()
        silent = now - self._heard_at
        if self._is_closing:
            self._touched.add(self)
        elif silent >= 2.4 * self._heartbeat:
            self.logout("no heartbeat")
            self._close()
        elif silent >= 1.2 * self._heartbeat and not self._tested:
            self._tested = True
            self._session_message(TEST_REQUEST, [(112, f"T{self._clock()}")])
        elif now - self._sent_at >= self._heartbeat:
            self._session_message(HEARTBEAT, [])
        if self._awaited and now - self._asked_at >= ASK_AGAIN_SECONDS:
            self._ask_from_gap(self._awaited)

    def _close(self) -> None:
        self._is_closing = True
        self._closing_at = 0.0
        self._touched.add(self)

    # --- sending ---------------------------------------------------------------------------------------------------

    def send(self, msg_type: str, fields: Fields, *, possible_resend: bool = False) -> None:
        """Give an application message its number and keep it; it leaves at `flush`, or when it is asked for."""
        sequence, now, body = self._take_number(), self._clock(), encode_body(fields)
        self._store.add_sent(self.comp_id, Sent(sequence, msg_type, now, body))
        if self._link is not None:
            self._unsent.append(self._encoded(msg_type, sequence, now, body, possible_resend=possible_resend))

    def reject(self, message: Message, tag: int, reason: int, text: str) -> None:
        """Session-level Reject: the message is no valid one."""
        fields: list[tuple[int, str | int]] = [(45, message.sequence), (371, tag or ""), (372, message.type)]
        self._session_message(REJECT, [*fields, (373, reason), (58, text)])

    def _session_message(self, msg_type: str, fields: Fields) -> None:
        if self._link is not None:
            self._unsent.append(self._encoded(msg_type, self._take_number(), self._clock(), encode_body(fields)))

    def _take_number(self) -> int:
        self._touched.add(self)
        self.next_out += 1
        return self.next_out - 1

    def _encoded(
        self, msg_type: str, sequence: int, now: int, body: bytes, original: int | None = None, *,
        possible_resend: bool = False,
    ) -> bytes:  # fmt: skip
        return encode(
            msg_type, self._config.comp_id, self.comp_id, sequence, now, body, original, possible_resend=possible_resend
        )

    # --- receiving -------------------------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take a message of the connection, after the Logon."""
        if self._is_closing and not self._closing_at:
            return  # nothing counts any more
        self._heard_at = time.monotonic()
        self._tested = False
        self._touched.add(self)
        kind, sequence = message.type, message.sequence
        answers = self._awaits_logon and kind == LOGON
        if self._awaits_logon and (kind not in (LOGON, LOGOUT) or (message.get(141) == "Y" and not self._resets)):
            self.logout("a Logon without ResetSeqNumFlag(141) was expected" if answers else "a Logon was expected")
            self._close()
            return
        if answers:
            self._awaits_logon = False
        if message.get(8) != BEGIN_STRING or sequence < 0:
            self.logout("BeginString(8) must be FIX.4.4" if sequence >= 0 else "MsgSeqNum(34) is missing")
            self._close()
        elif kind == SEQUENCE_RESET and message.get(123) != "Y":  # whatever came before is given up
            self._set_next(message)
        elif sequence > self.next_in:
            if kind == RESEND_REQUEST:  # answered at once, or both sides would wait for each other
                self._resend(message)
            if kind == LOGOUT:
                self._take_logout()
            else:
                self._ask_from_gap(sequence)
        elif sequence < self.next_in:
            if not message.is_possible_duplicate:
                self.logout(f"MsgSeqNum too low, expecting {self.next_in} but received {sequence}")
                self._close()
        else:
            self._advance(sequence + 1)
            if not answers:
                self._take(message)

    def _take(self, message: Message) -> None:
        kind = message.type
        if message.flaw is not None:
            self.reject(message, *message.flaw)
        elif (message.get(49), message.get(56)) != (self.comp_id, self._config.comp_id):
            self.reject(message, 49 if message.get(49) != self.comp_id else 56, COMP_ID_PROBLEM, "not this session's")
            self.logout("SenderCompID(49) or TargetCompID(56) is not this session's")
            self._close()
        elif self._is_late(message):
            self.reject(message, 52, SENDING_TIME_PROBLEM, "SendingTime is missing or too far from this clock")
            self.logout("SendingTime(52) is missing or too far from this clock")
            self._close()
        elif kind == TEST_REQUEST:
            self._session_message(HEARTBEAT, [(112, message.get(112))])
        elif kind == RESEND_REQUEST:
            self._resend(message)
        elif kind == SEQUENCE_RESET:
            self._set_next(message)
        elif kind == LOGOUT:
            self._take_logout()
        elif kind == LOGON:
            self.reject(message, 35, WRONG_VALUE, "the session is logged on already")
        elif kind != HEARTBEAT:
            self._application(self, message)

    def _advance(self, next_in: int) -> None:
        self._touched.add(self)
        self.next_in = next_in
        if self.next_in > self._awaited:
            self._awaited = 0

    def _ask_from_gap(self, seen: int) -> None:
        now = time.monotonic()
        if not self._awaited or now - self._asked_at >= ASK_AGAIN_SECONDS:
            self._asked_at = now
            self._session_message(RESEND_REQUEST, [(7, self.next_in), (16, 0)])
        self._awaited = max(self._awaited, seen)

    def _set_next(self, message: Message) -> None:
        """SequenceReset: go on at NewSeqNo; as a gap fill it stands for session messages."""
        following = number(message.get(36))
        if following < self.next_in:
            self.reject(message, 36, WRONG_VALUE, f"NewSeqNo must be at least {self.next_in}")
        else:
            self._advance(following)

    def _resend(self, message: Message) -> None:
        first, last = number(message.get(7)), number(message.get(16))
        if first < 1 or last < 0:
            self.reject(message, 7 if first < 1 else 16, WRONG_VALUE, "no range of sequence numbers")
            return
        last = min(last or self.next_out - 1, self.next_out - 1)
        now, following = self._clock(), first
        for sent in self._store.sent(self.comp_id, first, last):
            self._fill_gap(following, sent.sequence, now)
            self._unsent.append(self._encoded(sent.msg_type, sent.sequence, now, sent.body, sent.sent_at))
            following = sent.sequence + 1
        self._fill_gap(following, last + 1, now)

    def _fill_gap(self, first: int, following: int, now: int) -> None:
        if first < following:
            body = encode_body([(123, "Y"), (36, following)])
            self._unsent.append(self._encoded(SEQUENCE_RESET, first, now, body, now))

    def _take_logout(self) -> None:
        self.logout()  # unless this answers ours
        self._close()

    def _is_late(self, message: Message) -> bool:
        sent_at = parse_time(message.get(52))
        return sent_at < 0 or abs(self._clock() - sent_at) > self._config.clock_skew * 1_000_000

    def takes_message(self) -> bool:
        """Whether the session's throttle lets another message pass; the bucket holds a second's worth."""
        rate = self.definition.messages_per_second if self.definition is not None else 0
        if rate == 0:
            return True
        now = time.monotonic()
        self._tokens = (
            min(float(rate), self._tokens + (now - self._tokens_at) * rate) if self._tokens_at else float(rate)
        )
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
