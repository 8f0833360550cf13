"""What PostgreSQL's error codes mean to us: one table, used for both drivers.

The codes are those of the manual's appendix A. A code decides, never the text of a message:
servers speak many languages.
"""

from __future__ import annotations

from dataclasses import dataclass

from ordermigrate.errors import LockTimeout, OrdermigrateError, Refused, Unavailable, UsageError
from ordermigrate.model import Side

TRANSIENT = frozenset(
    {
        "08000",  # connection_exception
        "08001",  # sqlclient_unable_to_establish_sqlconnection
        "08003",  # connection_does_not_exist
        "08004",  # sqlserver_rejected_establishment_of_sqlconnection
        "08006",  # connection_failure
        "25P03",  # idle_in_transaction_session_timeout
        "53300",  # too_many_connections
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "57P05",  # idle_session_timeout
    }
)
# Two transactions were in each other's way; alone, ours would have gone through.
COLLISIONS = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
    }
)
# A table, a column, a schema or another object is not there.
MISSING = frozenset({"42P01", "42703", "3F000", "42704"})


@dataclass(frozen=True, slots=True)
class ServerError:
    """The parts of an error report that we use; empty where the server said nothing."""

    sqlstate: str
    message: str
    detail: str = ""
    hint: str = ""
    where: str = ""


class ConnectionLost(Unavailable):
    """The connection broke, or the server undid our transaction: worth another try."""


def to_error(side: Side, said: ServerError) -> OrdermigrateError:
    """Return our error for what the server of one side reported, with its SQLSTATE."""
    error = _to_error(side, said)
    error.sqlstate = said.sqlstate
    return error


def _to_error(side: Side, said: ServerError) -> OrdermigrateError:  # noqa: C901, PLR0911, PLR0912  a table
    state, text = said.sqlstate, said.message.strip().rstrip(".")
    quoted = f"{text} (SQLSTATE {state})" if state else text
    if not state or state in TRANSIENT or state.startswith("08"):
        return ConnectionLost(
            f"The {side}'s database is not available: {quoted}",
            todo="Run the same command again when it is; it goes on where it stopped",
        )
    if state in COLLISIONS:
        return ConnectionLost(
            f"The {side} undid a transaction of ours in favour of another one: {quoted}",
            todo="Run the same command again; it goes on where it stopped",
        )
    if state in {"28P01", "28000"}:
        return UsageError(
            f"The {side} does not let us in: {quoted}",
            wanted="A user and password that it accepts",
            todo=f"Check the {side}'s DSN, its password file and pg_hba.conf",
        )
    if state in {"3D000", "57P04"}:
        return UsageError(
            f"The {side}'s server has no such database: {quoted}",
            todo=f"Create it, or correct the {side}'s DSN",
        )
    if state == "42501":
        return Refused(
            f"The {side} denies us a right: {quoted}",
            wanted="The rights of the tables' owner, and CREATE on the database",
            todo="Grant what the message names, or connect as the tables' owner",
        )
    if state == "25006":
        return Refused(
            f"The {side}'s server takes no writes: {quoted}",
            wanted="The primary server, on both sides: the monolith gets a row of ours, too",
            todo=f"Correct the {side}'s DSN; target_session_attrs=primary helps",
        )
    if state in {"53000", "53100", "53200", "53400", "58030", "58P01"}:
        return Unavailable(
            f"The {side}'s server has run out of room: {quoted}",
            wanted="Disk and memory for the tables, their indexes and the write-ahead log",
            todo="Make room and run the same command again; it goes on where it stopped",
        )
    if state in {"55000", "55006"}:
        return Unavailable(
            f"Something on the {side} is in use or not ready: {quoted}",
            todo="See what the message names; then run the command again",
        )
    if state == "0A000":
        return Refused(
            f"The {side}'s server cannot do what was asked of it: {quoted}",
            todo="See what the message names; it may have to be taken off the table first",
        )
    if state == "2BP01":
        return Refused(
            f"Something on the {side} depends on what is to go: {quoted}"
            + (f" ({said.detail.rstrip('.')})" if said.detail else ""),
            wanted="Nothing outside the family that hangs on it",
            todo="Drop what is named, or have it depend on something else; then run the command "
            "again",
        )
    if state == "55P03":
        return LockTimeout(
            f"A lock on the {side} could not be had in time: {quoted}",
            todo="Look for the session that holds it in pg_locks; then run the command again",
        )
    if state == "57014":
        return Unavailable(
            f"The {side} cancelled a statement of ours: {quoted}",
            todo="If the server is merely slow, raise statement_timeout_seconds under "
            f"[limits.{side}], or max_snapshot_age_minutes for a scan; then run the command again",
        )
    if state in MISSING:
        return Refused(
            f"Something that was there before is missing on the {side}: {quoted}",
            wanted="Tables and columns as they were when the migration was prepared",
            todo="Undo the change of the schema, or adapt the configuration and prepare again",
        )
    if state[:2] in {"22", "23"}:
        return Refused(
            f"The {side} cannot take or give a value: {quoted}"
            + (f". {said.detail.rstrip('.')}" if said.detail else "")
            + (f" [{said.where.splitlines()[0]}]" if said.where else ""),
            wanted="Columns and constraints on the service that every row of the monolith fits",
            todo="Adapt the service's column or constraint, correct the row, or map the column "
            "under [tables.columns]",
        )
    return OrdermigrateError(
        f"The {side} reported an error that was not expected: {quoted}"
        + (f". {said.detail.rstrip('.')}" if said.detail else ""),
        todo="Report this as a bug, with the command that led to it",
    )
