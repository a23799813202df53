"""Words of a FeatureVector's row, as the compiled stages write them; the kernel checks them against the schema."""

from __future__ import annotations

from typing import Final

from pipelines.fraud.records import CARD_WINDOW_NAMES

__all__ = ["FEATURE_WORDS"]

STATUS: Final = 3
EVENT_TIME: Final = 4
CUSTOMER_ID: Final = 5
TERMINAL_ID: Final = 6
AMOUNT: Final = 7
WEEKEND: Final = 8
NIGHT: Final = 9
CARD_DAYS: Final = 10
"""cn1, cs1, cn7, cs7, cn30, cs30."""
TERMINAL_DAYS: Final = 16
"""tn1, tf1, tn7, tf7, tn30, tf30."""
CARD_VELOCITY: Final = 22
"""cn1m, cs1m, cn10m, cs10m, cn1h, cs1h."""
SINCE_LAST: Final = 28
AMOUNT_RATIO: Final = 29
MERCHANTS_30: Final = 30
NEW_DEVICE: Final = 31
NEW_COUNTRY: Final = 32
NEW_MERCHANT: Final = 33
WORDS: Final = 34

FEATURE_WORDS: Final[dict[str, int]] = {
    "transaction_id": 1,
    "status": STATUS,
    "event_time": EVENT_TIME,
    "customer_id": CUSTOMER_ID,
    "terminal_id": TERMINAL_ID,
    "amount": AMOUNT,
    "weekend": WEEKEND,
    "night": NIGHT,
    **{
        f"{letters}{name}": (CARD_DAYS if window < 3 else CARD_VELOCITY - 6) + 2 * window + word
        for window, name in enumerate(CARD_WINDOW_NAMES)
        for word, letters in enumerate(("cn", "cs"))
    },
    **{
        f"{letters}{name}": TERMINAL_DAYS + 2 * window + word
        for window, name in enumerate(("1", "7", "30"))
        for word, letters in enumerate(("tn", "tf"))
    },
    "since_last": SINCE_LAST,
    "amount_ratio": AMOUNT_RATIO,
    "merchants30": MERCHANTS_30,
    "new_device": NEW_DEVICE,
    "new_country": NEW_COUNTRY,
    "new_merchant": NEW_MERCHANT,
}
"""Field of FeatureVector to the word it starts at."""
