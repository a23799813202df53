from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CaptureMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUTOMATIC: _ClassVar[CaptureMode]
    MANUAL: _ClassVar[CaptureMode]
AUTOMATIC: CaptureMode
MANUAL: CaptureMode

class Uint128(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: int
    high: int
    def __init__(self, low: _Optional[int] = ..., high: _Optional[int] = ...) -> None: ...

class NewPayment(_message.Message):
    __slots__ = ("payment_id", "payer_account_id", "payee_account_id", "ledger", "currency", "amount", "capture", "requested_at", "execute_at", "hold_seconds", "end_to_end_id", "reference", "customer_id", "terminal_id", "device", "country", "merchant")
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    PAYER_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    PAYEE_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_AT_FIELD_NUMBER: _ClassVar[int]
    EXECUTE_AT_FIELD_NUMBER: _ClassVar[int]
    HOLD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    END_TO_END_ID_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_FIELD_NUMBER: _ClassVar[int]
    MERCHANT_FIELD_NUMBER: _ClassVar[int]
    payment_id: Uint128
    payer_account_id: Uint128
    payee_account_id: Uint128
    ledger: int
    currency: str
    amount: int
    capture: CaptureMode
    requested_at: int
    execute_at: int
    hold_seconds: int
    end_to_end_id: str
    reference: str
    customer_id: int
    terminal_id: int
    device: str
    country: str
    merchant: str
    def __init__(self, payment_id: _Optional[_Union[Uint128, _Mapping]] = ..., payer_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., payee_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., ledger: _Optional[int] = ..., currency: _Optional[str] = ..., amount: _Optional[int] = ..., capture: _Optional[_Union[CaptureMode, str]] = ..., requested_at: _Optional[int] = ..., execute_at: _Optional[int] = ..., hold_seconds: _Optional[int] = ..., end_to_end_id: _Optional[str] = ..., reference: _Optional[str] = ..., customer_id: _Optional[int] = ..., terminal_id: _Optional[int] = ..., device: _Optional[str] = ..., country: _Optional[str] = ..., merchant: _Optional[str] = ...) -> None: ...

class ProcessPaymentRequest(_message.Message):
    __slots__ = ("idempotency_key", "payment", "wait_seconds")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    payment: NewPayment
    wait_seconds: int
    def __init__(self, idempotency_key: _Optional[str] = ..., payment: _Optional[_Union[NewPayment, _Mapping]] = ..., wait_seconds: _Optional[int] = ...) -> None: ...

class ProcessPaymentResponse(_message.Message):
    __slots__ = ("payment", "replayed")
    PAYMENT_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    payment: Payment
    replayed: bool
    def __init__(self, payment: _Optional[_Union[Payment, _Mapping]] = ..., replayed: bool = ...) -> None: ...

class GetPaymentRequest(_message.Message):
    __slots__ = ("payment_id", "ledger")
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    payment_id: Uint128
    ledger: int
    def __init__(self, payment_id: _Optional[_Union[Uint128, _Mapping]] = ..., ledger: _Optional[int] = ...) -> None: ...

class Payment(_message.Message):
    __slots__ = ("payment_id", "ledger", "status", "reason", "iso_status", "iso_reason", "version", "payer_account_id", "payee_account_id", "currency", "amount", "held", "captured", "released", "refunded", "capture", "requested_at", "execute_at", "end_to_end_id", "reference", "original_payment_id", "changed_at", "timeline")
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ISO_STATUS_FIELD_NUMBER: _ClassVar[int]
    ISO_REASON_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PAYER_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    PAYEE_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    REFUNDED_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_AT_FIELD_NUMBER: _ClassVar[int]
    EXECUTE_AT_FIELD_NUMBER: _ClassVar[int]
    END_TO_END_ID_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    payment_id: Uint128
    ledger: int
    status: str
    reason: str
    iso_status: str
    iso_reason: str
    version: int
    payer_account_id: Uint128
    payee_account_id: Uint128
    currency: str
    amount: int
    held: int
    captured: int
    released: int
    refunded: int
    capture: CaptureMode
    requested_at: int
    execute_at: int
    end_to_end_id: str
    reference: str
    original_payment_id: Uint128
    changed_at: int
    timeline: _containers.RepeatedCompositeFieldContainer[TimelineEntry]
    def __init__(self, payment_id: _Optional[_Union[Uint128, _Mapping]] = ..., ledger: _Optional[int] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., iso_status: _Optional[str] = ..., iso_reason: _Optional[str] = ..., version: _Optional[int] = ..., payer_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., payee_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., currency: _Optional[str] = ..., amount: _Optional[int] = ..., held: _Optional[int] = ..., captured: _Optional[int] = ..., released: _Optional[int] = ..., refunded: _Optional[int] = ..., capture: _Optional[_Union[CaptureMode, str]] = ..., requested_at: _Optional[int] = ..., execute_at: _Optional[int] = ..., end_to_end_id: _Optional[str] = ..., reference: _Optional[str] = ..., original_payment_id: _Optional[_Union[Uint128, _Mapping]] = ..., changed_at: _Optional[int] = ..., timeline: _Optional[_Iterable[_Union[TimelineEntry, _Mapping]]] = ...) -> None: ...

class TimelineEntry(_message.Message):
    __slots__ = ("version", "at", "cause", "previous_status", "status", "reason", "iso_status", "iso_reason", "action_amount")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_STATUS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ISO_STATUS_FIELD_NUMBER: _ClassVar[int]
    ISO_REASON_FIELD_NUMBER: _ClassVar[int]
    ACTION_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    version: int
    at: int
    cause: str
    previous_status: str
    status: str
    reason: str
    iso_status: str
    iso_reason: str
    action_amount: int
    def __init__(self, version: _Optional[int] = ..., at: _Optional[int] = ..., cause: _Optional[str] = ..., previous_status: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., iso_status: _Optional[str] = ..., iso_reason: _Optional[str] = ..., action_amount: _Optional[int] = ...) -> None: ...

class PaymentResult(_message.Message):
    __slots__ = ("idempotency_key", "processed", "refusal")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    PROCESSED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    processed: ProcessPaymentResponse
    refusal: Refusal
    def __init__(self, idempotency_key: _Optional[str] = ..., processed: _Optional[_Union[ProcessPaymentResponse, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "problem", "detail", "retry_after")
    CODE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    code: str
    problem: str
    detail: str
    retry_after: int
    def __init__(self, code: _Optional[str] = ..., problem: _Optional[str] = ..., detail: _Optional[str] = ..., retry_after: _Optional[int] = ...) -> None: ...
