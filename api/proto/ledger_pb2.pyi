from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Uint128(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: int
    high: int
    def __init__(self, low: _Optional[int] = ..., high: _Optional[int] = ...) -> None: ...

class Account(_message.Message):
    __slots__ = ("id", "ledger", "code", "flags", "user_data_128", "user_data_64", "user_data_32", "timestamp")
    ID_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    USER_DATA_128_FIELD_NUMBER: _ClassVar[int]
    USER_DATA_64_FIELD_NUMBER: _ClassVar[int]
    USER_DATA_32_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    id: Uint128
    ledger: int
    code: int
    flags: int
    user_data_128: Uint128
    user_data_64: int
    user_data_32: int
    timestamp: int
    def __init__(self, id: _Optional[_Union[Uint128, _Mapping]] = ..., ledger: _Optional[int] = ..., code: _Optional[int] = ..., flags: _Optional[int] = ..., user_data_128: _Optional[_Union[Uint128, _Mapping]] = ..., user_data_64: _Optional[int] = ..., user_data_32: _Optional[int] = ..., timestamp: _Optional[int] = ...) -> None: ...

class Transfer(_message.Message):
    __slots__ = ("id", "debit_account_id", "credit_account_id", "amount", "pending_id", "user_data_128", "user_data_64", "user_data_32", "timeout", "ledger", "code", "flags", "timestamp")
    ID_FIELD_NUMBER: _ClassVar[int]
    DEBIT_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    CREDIT_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PENDING_ID_FIELD_NUMBER: _ClassVar[int]
    USER_DATA_128_FIELD_NUMBER: _ClassVar[int]
    USER_DATA_64_FIELD_NUMBER: _ClassVar[int]
    USER_DATA_32_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    id: Uint128
    debit_account_id: Uint128
    credit_account_id: Uint128
    amount: Uint128
    pending_id: Uint128
    user_data_128: Uint128
    user_data_64: int
    user_data_32: int
    timeout: int
    ledger: int
    code: int
    flags: int
    timestamp: int
    def __init__(self, id: _Optional[_Union[Uint128, _Mapping]] = ..., debit_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., credit_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., amount: _Optional[_Union[Uint128, _Mapping]] = ..., pending_id: _Optional[_Union[Uint128, _Mapping]] = ..., user_data_128: _Optional[_Union[Uint128, _Mapping]] = ..., user_data_64: _Optional[int] = ..., user_data_32: _Optional[int] = ..., timeout: _Optional[int] = ..., ledger: _Optional[int] = ..., code: _Optional[int] = ..., flags: _Optional[int] = ..., timestamp: _Optional[int] = ...) -> None: ...

class CreateAccountsRequest(_message.Message):
    __slots__ = ("accounts",)
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    accounts: _containers.RepeatedCompositeFieldContainer[Account]
    def __init__(self, accounts: _Optional[_Iterable[_Union[Account, _Mapping]]] = ...) -> None: ...

class CreateTransfersRequest(_message.Message):
    __slots__ = ("transfers",)
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    transfers: _containers.RepeatedCompositeFieldContainer[Transfer]
    def __init__(self, transfers: _Optional[_Iterable[_Union[Transfer, _Mapping]]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("result", "timestamp", "shard", "sequence")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    result: str
    timestamp: int
    shard: int
    sequence: int
    def __init__(self, result: _Optional[str] = ..., timestamp: _Optional[int] = ..., shard: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class CreateResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Result]
    def __init__(self, results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("ids", "ledger", "min_sequence")
    IDS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedCompositeFieldContainer[Uint128]
    ledger: int
    min_sequence: int
    def __init__(self, ids: _Optional[_Iterable[_Union[Uint128, _Mapping]]] = ..., ledger: _Optional[int] = ..., min_sequence: _Optional[int] = ...) -> None: ...

class AccountState(_message.Message):
    __slots__ = ("account", "debits_pending", "debits_posted", "credits_pending", "credits_posted", "sequence")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    DEBITS_PENDING_FIELD_NUMBER: _ClassVar[int]
    DEBITS_POSTED_FIELD_NUMBER: _ClassVar[int]
    CREDITS_PENDING_FIELD_NUMBER: _ClassVar[int]
    CREDITS_POSTED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    account: Account
    debits_pending: Uint128
    debits_posted: Uint128
    credits_pending: Uint128
    credits_posted: Uint128
    sequence: int
    def __init__(self, account: _Optional[_Union[Account, _Mapping]] = ..., debits_pending: _Optional[_Union[Uint128, _Mapping]] = ..., debits_posted: _Optional[_Union[Uint128, _Mapping]] = ..., credits_pending: _Optional[_Union[Uint128, _Mapping]] = ..., credits_posted: _Optional[_Union[Uint128, _Mapping]] = ..., sequence: _Optional[int] = ...) -> None: ...

class LookupAccountsResponse(_message.Message):
    __slots__ = ("accounts",)
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    accounts: _containers.RepeatedCompositeFieldContainer[AccountState]
    def __init__(self, accounts: _Optional[_Iterable[_Union[AccountState, _Mapping]]] = ...) -> None: ...

class LookupTransfersResponse(_message.Message):
    __slots__ = ("transfers",)
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    transfers: _containers.RepeatedCompositeFieldContainer[Transfer]
    def __init__(self, transfers: _Optional[_Iterable[_Union[Transfer, _Mapping]]] = ...) -> None: ...

class GetStatementRequest(_message.Message):
    __slots__ = ("account_id", "ledger", "since", "until", "limit", "min_sequence")
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    account_id: Uint128
    ledger: int
    since: int
    until: int
    limit: int
    min_sequence: int
    def __init__(self, account_id: _Optional[_Union[Uint128, _Mapping]] = ..., ledger: _Optional[int] = ..., since: _Optional[int] = ..., until: _Optional[int] = ..., limit: _Optional[int] = ..., min_sequence: _Optional[int] = ...) -> None: ...

class StatementEntry(_message.Message):
    __slots__ = ("timestamp", "entry", "transfer_id", "direction", "counterparty_account_id", "amount", "code", "flags", "pending_id", "debits_pending", "debits_posted", "credits_pending", "credits_posted")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    COUNTERPARTY_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    PENDING_ID_FIELD_NUMBER: _ClassVar[int]
    DEBITS_PENDING_FIELD_NUMBER: _ClassVar[int]
    DEBITS_POSTED_FIELD_NUMBER: _ClassVar[int]
    CREDITS_PENDING_FIELD_NUMBER: _ClassVar[int]
    CREDITS_POSTED_FIELD_NUMBER: _ClassVar[int]
    timestamp: int
    entry: str
    transfer_id: Uint128
    direction: str
    counterparty_account_id: Uint128
    amount: Uint128
    code: int
    flags: int
    pending_id: Uint128
    debits_pending: Uint128
    debits_posted: Uint128
    credits_pending: Uint128
    credits_posted: Uint128
    def __init__(self, timestamp: _Optional[int] = ..., entry: _Optional[str] = ..., transfer_id: _Optional[_Union[Uint128, _Mapping]] = ..., direction: _Optional[str] = ..., counterparty_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., amount: _Optional[_Union[Uint128, _Mapping]] = ..., code: _Optional[int] = ..., flags: _Optional[int] = ..., pending_id: _Optional[_Union[Uint128, _Mapping]] = ..., debits_pending: _Optional[_Union[Uint128, _Mapping]] = ..., debits_posted: _Optional[_Union[Uint128, _Mapping]] = ..., credits_pending: _Optional[_Union[Uint128, _Mapping]] = ..., credits_posted: _Optional[_Union[Uint128, _Mapping]] = ...) -> None: ...

class GetStatementResponse(_message.Message):
    __slots__ = ("entries", "next_since")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_SINCE_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[StatementEntry]
    next_since: int
    def __init__(self, entries: _Optional[_Iterable[_Union[StatementEntry, _Mapping]]] = ..., next_since: _Optional[int] = ...) -> None: ...

class ImportResponse(_message.Message):
    __slots__ = ("events", "results", "refused")
    class ResultsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    events: int
    results: _containers.ScalarMap[str, int]
    refused: _containers.RepeatedCompositeFieldContainer[Refused]
    def __init__(self, events: _Optional[int] = ..., results: _Optional[_Mapping[str, int]] = ..., refused: _Optional[_Iterable[_Union[Refused, _Mapping]]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("index", "id", "result")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: Uint128
    result: str
    def __init__(self, index: _Optional[int] = ..., id: _Optional[_Union[Uint128, _Mapping]] = ..., result: _Optional[str] = ...) -> None: ...

class GetCrossTransferRequest(_message.Message):
    __slots__ = ("id", "min_sequence", "wait_seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: Uint128
    min_sequence: int
    wait_seconds: int
    def __init__(self, id: _Optional[_Union[Uint128, _Mapping]] = ..., min_sequence: _Optional[int] = ..., wait_seconds: _Optional[int] = ...) -> None: ...

class CrossTransfer(_message.Message):
    __slots__ = ("id", "phase", "reason", "debit_account_id", "debit_ledger", "credit_account_id", "credit_ledger", "debit_clearing_account_id", "credit_clearing_account_id", "amount", "credit_amount", "code", "user_data_128", "requested_at", "changed_at", "sequence")
    ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEBIT_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    DEBIT_LEDGER_FIELD_NUMBER: _ClassVar[int]
    CREDIT_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    CREDIT_LEDGER_FIELD_NUMBER: _ClassVar[int]
    DEBIT_CLEARING_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    CREDIT_CLEARING_ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CREDIT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    USER_DATA_128_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_AT_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    id: Uint128
    phase: str
    reason: str
    debit_account_id: Uint128
    debit_ledger: int
    credit_account_id: Uint128
    credit_ledger: int
    debit_clearing_account_id: Uint128
    credit_clearing_account_id: Uint128
    amount: Uint128
    credit_amount: Uint128
    code: int
    user_data_128: Uint128
    requested_at: int
    changed_at: int
    sequence: int
    def __init__(self, id: _Optional[_Union[Uint128, _Mapping]] = ..., phase: _Optional[str] = ..., reason: _Optional[str] = ..., debit_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., debit_ledger: _Optional[int] = ..., credit_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., credit_ledger: _Optional[int] = ..., debit_clearing_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., credit_clearing_account_id: _Optional[_Union[Uint128, _Mapping]] = ..., amount: _Optional[_Union[Uint128, _Mapping]] = ..., credit_amount: _Optional[_Union[Uint128, _Mapping]] = ..., code: _Optional[int] = ..., user_data_128: _Optional[_Union[Uint128, _Mapping]] = ..., requested_at: _Optional[int] = ..., changed_at: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...
