from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Side(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIDE_UNSPECIFIED: _ClassVar[Side]
    BUY: _ClassVar[Side]
    SELL: _ClassVar[Side]

class OrderType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIMIT: _ClassVar[OrderType]
    MARKET: _ClassVar[OrderType]
    STOP: _ClassVar[OrderType]
    STOP_LIMIT: _ClassVar[OrderType]

class TimeInForce(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GTC: _ClassVar[TimeInForce]
    DAY: _ClassVar[TimeInForce]
    GTD: _ClassVar[TimeInForce]
    IOC: _ClassVar[TimeInForce]
    FOK: _ClassVar[TimeInForce]

class SelfTradePrevention(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCOUNT_DEFAULT: _ClassVar[SelfTradePrevention]
    NONE: _ClassVar[SelfTradePrevention]
    CANCEL_NEWEST: _ClassVar[SelfTradePrevention]
    CANCEL_OLDEST: _ClassVar[SelfTradePrevention]
    CANCEL_BOTH: _ClassVar[SelfTradePrevention]
    DECREMENT: _ClassVar[SelfTradePrevention]
SIDE_UNSPECIFIED: Side
BUY: Side
SELL: Side
LIMIT: OrderType
MARKET: OrderType
STOP: OrderType
STOP_LIMIT: OrderType
GTC: TimeInForce
DAY: TimeInForce
GTD: TimeInForce
IOC: TimeInForce
FOK: TimeInForce
ACCOUNT_DEFAULT: SelfTradePrevention
NONE: SelfTradePrevention
CANCEL_NEWEST: SelfTradePrevention
CANCEL_OLDEST: SelfTradePrevention
CANCEL_BOTH: SelfTradePrevention
DECREMENT: SelfTradePrevention

class PlaceOrderRequest(_message.Message):
    __slots__ = ("order_id", "account", "symbol", "side", "order_type", "time_in_force", "price", "quantity", "stop_price", "display_quantity", "minimum_quantity", "post_only", "self_trade_prevention", "expire_at", "budget", "reserve_price", "session", "transact_time", "destination")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    ORDER_TYPE_FIELD_NUMBER: _ClassVar[int]
    TIME_IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    STOP_PRICE_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    POST_ONLY_FIELD_NUMBER: _ClassVar[int]
    SELF_TRADE_PREVENTION_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_AT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    RESERVE_PRICE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TRANSACT_TIME_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    account: str
    symbol: str
    side: Side
    order_type: OrderType
    time_in_force: TimeInForce
    price: int
    quantity: int
    stop_price: int
    display_quantity: int
    minimum_quantity: int
    post_only: bool
    self_trade_prevention: SelfTradePrevention
    expire_at: int
    budget: int
    reserve_price: int
    session: int
    transact_time: int
    destination: str
    def __init__(self, order_id: _Optional[int] = ..., account: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ..., order_type: _Optional[_Union[OrderType, str]] = ..., time_in_force: _Optional[_Union[TimeInForce, str]] = ..., price: _Optional[int] = ..., quantity: _Optional[int] = ..., stop_price: _Optional[int] = ..., display_quantity: _Optional[int] = ..., minimum_quantity: _Optional[int] = ..., post_only: bool = ..., self_trade_prevention: _Optional[_Union[SelfTradePrevention, str]] = ..., expire_at: _Optional[int] = ..., budget: _Optional[int] = ..., reserve_price: _Optional[int] = ..., session: _Optional[int] = ..., transact_time: _Optional[int] = ..., destination: _Optional[str] = ...) -> None: ...

class CancelOrderRequest(_message.Message):
    __slots__ = ("order_id", "account", "symbol", "session", "transact_time")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TRANSACT_TIME_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    account: str
    symbol: str
    session: int
    transact_time: int
    def __init__(self, order_id: _Optional[int] = ..., account: _Optional[str] = ..., symbol: _Optional[str] = ..., session: _Optional[int] = ..., transact_time: _Optional[int] = ...) -> None: ...

class AmendOrderRequest(_message.Message):
    __slots__ = ("order_id", "account", "symbol", "price", "quantity", "stop_price", "session", "transact_time", "total_quantity")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    STOP_PRICE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TRANSACT_TIME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    account: str
    symbol: str
    price: int
    quantity: int
    stop_price: int
    session: int
    transact_time: int
    total_quantity: int
    def __init__(self, order_id: _Optional[int] = ..., account: _Optional[str] = ..., symbol: _Optional[str] = ..., price: _Optional[int] = ..., quantity: _Optional[int] = ..., stop_price: _Optional[int] = ..., session: _Optional[int] = ..., transact_time: _Optional[int] = ..., total_quantity: _Optional[int] = ...) -> None: ...

class OrderResponse(_message.Message):
    __slots__ = ("place", "reports")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    place: Place
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    def __init__(self, place: _Optional[_Union[Place, _Mapping]] = ..., reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("shard", "offset", "trace")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    shard: int
    offset: int
    trace: str
    def __init__(self, shard: _Optional[int] = ..., offset: _Optional[int] = ..., trace: _Optional[str] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("kind", "exec_type", "order_status", "order_id", "account", "symbol", "side", "price", "quantity", "leaves_quantity", "cumulative_quantity", "execution_id", "reason", "shard", "venue_execution_id")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        EXECUTION: _ClassVar[Report.Kind]
        CANCEL_REJECT: _ClassVar[Report.Kind]
        ROUTE_REQUEST: _ClassVar[Report.Kind]
    EXECUTION: Report.Kind
    CANCEL_REJECT: Report.Kind
    ROUTE_REQUEST: Report.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXEC_TYPE_FIELD_NUMBER: _ClassVar[int]
    ORDER_STATUS_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    LEAVES_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    VENUE_EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    kind: Report.Kind
    exec_type: str
    order_status: str
    order_id: int
    account: str
    symbol: str
    side: Side
    price: int
    quantity: int
    leaves_quantity: int
    cumulative_quantity: int
    execution_id: int
    reason: str
    shard: int
    venue_execution_id: str
    def __init__(self, kind: _Optional[_Union[Report.Kind, str]] = ..., exec_type: _Optional[str] = ..., order_status: _Optional[str] = ..., order_id: _Optional[int] = ..., account: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ..., price: _Optional[int] = ..., quantity: _Optional[int] = ..., leaves_quantity: _Optional[int] = ..., cumulative_quantity: _Optional[int] = ..., execution_id: _Optional[int] = ..., reason: _Optional[str] = ..., shard: _Optional[int] = ..., venue_execution_id: _Optional[str] = ...) -> None: ...

class OrderRequests(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[OrderRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[OrderRequest, _Mapping]]] = ...) -> None: ...

class OrderRequest(_message.Message):
    __slots__ = ("request_id", "place", "cancel", "amend", "listen")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    AMEND_FIELD_NUMBER: _ClassVar[int]
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    place: PlaceOrderRequest
    cancel: CancelOrderRequest
    amend: AmendOrderRequest
    listen: Listen
    def __init__(self, request_id: _Optional[int] = ..., place: _Optional[_Union[PlaceOrderRequest, _Mapping]] = ..., cancel: _Optional[_Union[CancelOrderRequest, _Mapping]] = ..., amend: _Optional[_Union[AmendOrderRequest, _Mapping]] = ..., listen: _Optional[_Union[Listen, _Mapping]] = ...) -> None: ...

class Listen(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: str
    def __init__(self, account: _Optional[str] = ...) -> None: ...

class OrderEvents(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[OrderEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[OrderEvent, _Mapping]]] = ...) -> None: ...

class OrderEvent(_message.Message):
    __slots__ = ("request_id", "report", "refusal", "listening")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    report: Report
    refusal: Refusal
    listening: Listening
    def __init__(self, request_id: _Optional[int] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., listening: _Optional[_Union[Listening, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "detail")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    code: str
    detail: str
    def __init__(self, code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Listening(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: str
    def __init__(self, account: _Optional[str] = ...) -> None: ...
