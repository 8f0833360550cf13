"""The settings of every session of ours, on both sides: set and checked, never assumed.

A server, a database or a role can have other defaults, and some of them change what a value
looks like: with another DateStyle on one side, text COPY turns 3 April into 4 March. Timeouts
that an administrator meant for applications would cut off a long copy, so each is explicit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ordermigrate import queries
from ordermigrate.config import SideLimits
from ordermigrate.errors import Refused
from ordermigrate.model import Side

MEANING_OF_VALUES: Mapping[str, str] = {
    "client_encoding": "UTF8",
    "search_path": "",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmloption": "content",
    "lc_monetary": "C",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "transform_null_equals": "off",
    "array_nulls": "on",
    "row_security": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "jit": "off",
}

SET = queries.get("sessions", "set_settings")
READ = queries.get("sessions", "read_settings")


def settings(limits: SideLimits, lock_timeout_seconds: float) -> dict[str, str]:
    """Return every setting of a session, by name; times in milliseconds."""
    return {
        **MEANING_OF_VALUES,
        "statement_timeout": milliseconds(limits.statement_timeout_seconds),
        # The shorter one, so that a wait for a lock is told as what it is.
        "lock_timeout": milliseconds(
            min(lock_timeout_seconds, limits.statement_timeout_seconds / 2)
        ),
        "idle_in_transaction_session_timeout": milliseconds(
            limits.statement_timeout_seconds + lock_timeout_seconds
        ),
        "idle_session_timeout": "0",
        "transaction_timeout": "0",
        # A connection that dies without a word must not keep its locks for two hours.
        "tcp_keepalives_idle": "15",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "30000",
    }


def milliseconds(seconds: float) -> str:
    """Return a time as PostgreSQL's settings take it."""
    return str(max(1, round(seconds * 1000)))


def check(side: Side, told_pid: int, rows: Iterable[tuple[str, str, int]]) -> None:
    """Compare what a session says of itself with what was asked for.

    Args:
        side: Whose session it is.
        told_pid: The backend's process id as the connection's start-up told it.
        rows: Name, value and backend pid as a second transaction reads them.

    Raises:
        Refused: A pooler hands each transaction another server session, or a setting did not
            hold.

    """
    for name, value, pid in rows:
        wanted = MEANING_OF_VALUES.get(name)
        if pid != told_pid:
            raise Refused(
                f"A connection pooler stands between us and the {side} (start-up told of backend "
                f"{told_pid}, the server speaks of {pid})",
                wanted="Settings, locks and snapshots that stay with one server session",
                todo=f"Let the {side}'s DSN point at PostgreSQL itself; applications can go on "
                "using the pooler",
                finding="pooler",
            )
        if wanted is not None and value.replace('"', "") != wanted:
            raise Refused(
                f"On the {side}, {name} is {value!r} although {wanted!r} was set",
                wanted="Sessions in which values have one meaning on both sides",
                todo="Look for something that resets settings: a pooler, a login trigger",
                finding="session-settings",
            )
