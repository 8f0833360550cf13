"""Where an application reads a user's rows while its tables move: the client for its code.

The same answer as `ordermigrate.reads_from_service(user_key)` gives in either database, without a
query for each read: the percentage is asked for now and then and kept, a user's place is computed
here. A database that does not answer never makes a read fail. For a while the last answer counts,
then every read goes to the monolith, unless the service was the owner when it was last heard.

Imports nothing but the standard library and psycopg.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import psycopg

CACHE_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
_ASK = "SELECT f.percentage, f.is_service_owner FROM ordermigrate.traffic_in_force() AS f"
_LIMITS = {
    "connect_timeout": 2,
    "options": "-c statement_timeout=2000",
    "tcp_user_timeout": 4000,
    "application_name": "ordermigrate reads",
}
_log = logging.getLogger("ordermigrate.reads")


@dataclass(frozen=True, slots=True)
class Share:
    """How many of a hundred users read from the service, and whether the tables are its own."""

    percentage: int
    is_service_owner: bool = False


NONE = Share(0)


def find_place(user_key: str) -> int:
    """Return a user's place among a hundred, 0 to 99: always the same for the same key."""
    return int.from_bytes(hashlib.sha256(user_key.encode()).digest()[:3], "big") % 100


def is_among(user_key: str, percentage: int) -> bool:
    """Whether a user belongs to this share; who does, belongs to every larger one."""
    return find_place(user_key) < percentage


def ask_database(
    source: str | Callable[[], AbstractContextManager[psycopg.Connection[Any]]],
) -> Callable[[], Share]:
    """Return a function that asks a database.

    Args:
        source: A DSN, for a connection each time; or what lends one, such as a pool's
            `connection`. A lent one should have a short statement_timeout.

    """

    def connect() -> AbstractContextManager[psycopg.Connection[Any]]:
        if callable(source):
            return source()
        return psycopg.connect(source, autocommit=True, **_LIMITS)  # type: ignore[arg-type]

    def ask() -> Share:
        with connect() as connection:
            row = connection.execute(_ASK).fetchone()
        if row is None or row[0] is None:
            return NONE
        return Share(row[0], is_service_owner=row[1])

    return ask


class Reads:
    """Tells for each user whether to read from the service; safe to share between threads.

    Args:
        ask: What finds out the share, such as `ask_database(dsn)`; whatever it raises counts as
            no answer.
        cache_seconds: How long an answer, or that there was none, is kept.
        patience_seconds: How long the last answer counts while there is none.
        clock: Seconds that never go back.

    """

    def __init__(
        self,
        ask: Callable[[], Share],
        *,
        cache_seconds: float = CACHE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._cache_seconds = cache_seconds
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._asking = threading.Lock()
        # Together in one value, so that a thread sees a share with its own time.
        self._heard: tuple[Share, float] | None = None
        self._asked_at: float | None = None

    def reads_from_service(self, user_key: str) -> bool:
        """Whether this user's rows are to be read from the service's database."""
        share = self.find_share()
        return share.is_service_owner or is_among(user_key, share.percentage)

    def find_share(self) -> Share:
        """Return the share that counts now, asking for it where the last answer is too old."""
        # One thread asks; others go on with what is known, and wait only where nothing is.
        if self._is_due() and self._asking.acquire(blocking=self._heard is None):
            try:
                if self._is_due():
                    self._refresh()
            finally:
                self._asking.release()
        return self._known()

    def _is_due(self) -> bool:
        return self._asked_at is None or self._clock() - self._asked_at >= self._cache_seconds

    def _refresh(self) -> None:
        try:
            self._heard = self._ask(), self._clock()
        except Exception as error:  # noqa: BLE001  whatever it is, a read must not fail by it
            _log.warning("the share of reads is not to be had: %s", error)
        self._asked_at = self._clock()

    def _known(self) -> Share:
        if self._heard is None:
            return NONE
        share, heard_at = self._heard
        is_fresh = self._clock() - heard_at <= self._patience_seconds + self._cache_seconds
        return share if is_fresh or share.is_service_owner else NONE
