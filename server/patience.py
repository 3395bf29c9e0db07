"""Asking Flower's SuperLink until it answers: its database may be locked for a moment, or it is being started again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import httpx
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

PATIENCE_S = 300.0  # for one question
_PAUSES_S = (1.0, 20.0)  # the first, and the longest; doubled in between
_log = logging.getLogger(__name__)
T = TypeVar("T")


def patiently(call: Callable[[], T], *, sleep: Callable[[float], None]) -> T:
    """Return what `call` returns; where the SuperLink is in trouble that can pass, ask again for some minutes.

    Trouble that can pass: no connection, an answer of 500 or above, a message that was on its way when it went away.

    Raises:
        Exception: What the last try raised, or at once what no second try would change.
    """
    waited, pause = 0.0, _PAUSES_S[0]
    while True:
        try:
            return call()
        except (httpx.HTTPStatusError, httpx.TransportError, ObjectPushError) as error:
            for_good = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if for_good or waited >= PATIENCE_S:
                raise
            _log.warning("The SuperLink is in trouble (%s); it is asked again in %.0f s.", type(error).__name__, pause)
        sleep(pause)
        waited += pause
        pause = min(2 * pause, _PAUSES_S[1])
