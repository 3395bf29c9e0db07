"""Numbers, sizes and durations as people read them. Every function takes None and says '-' for it."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"


def is_number(value: Any) -> bool:
    """Tell whether `value` is a finite number (bool is not one)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    r"""Return a number with fixed decimals, whole numbers with thin spaces between thousands.

    >>> number(0.91849), number(12000), number(None)
    ('0.918', '12\u202f000', '–')
    """
    if isinstance(value, str):
        return value
    if not is_number(value):
        return MISSING
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if value != 0 and abs(value) < 10**-digits / 2:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def percent(value: Any) -> str:
    """Return a share in 0 to 1 as per cent.

    >>> percent(0.256)
    '25.6%'
    """
    return f"{100 * value:.1f}%" if is_number(value) else MISSING


def duration(seconds: Any) -> str:
    """Return a duration with the two units that matter.

    >>> duration(0.42), duration(75), duration(7260)
    ('0.4 s', '1 min 15 s', '2 h 1 min')
    """
    if not is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def num_bytes(value: Any) -> str:
    """Return a size in decimal units.

    >>> num_bytes(999), num_bytes(3_150_000)
    ('999 B', '3.1 MB')
    """
    if not is_number(value):
        return MISSING
    size = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def words(key: str) -> str:
    """Return a key as words.

    >>> words("balanced_accuracy"), words("auc")
    ('Balanced accuracy', 'AUC')
    """
    text = key.replace("_", " ").replace("-", " ").strip()
    text = " ".join(_ACRONYMS.get(word, word) for word in text.split(" "))
    return text[:1].upper() + text[1:]


_ACRONYMS = {"auc": "AUC", "kid": "KID", "l1": "L1", "l2": "L2", "s": "(s)", "px": "px", "ema": "EMA"}
