"""The ways in which a command can end other than well.

Every error that a user may see is an `OrdermigrateError`: it says what is true, what was
wanted, and what to do, and carries the exit code of the process. `db` and `streams` translate
the drivers' errors into these; the command line alone turns them into text and an exit status.
Anything else that reaches the edge is a bug, and exits with 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class OrdermigrateError(Exception):
    """A failure with a message for people and an exit code for programs.

    Args:
        fact: What is true, as one sentence without its full stop.
        wanted: What was wanted instead; may be left out where the fact says it.
        todo: What to do about it: a command, a statement, a setting.
        finding: The key under which `preflight` would have told of it before.

    `sqlstate` is the server's code where a server's report is behind it.
    """

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "a bug"
    owner_of_writes: ClassVar[str] = "unchanged unless `status` says otherwise"
    sqlstate = ""

    def __init__(self, fact: str, *, wanted: str = "", todo: str = "", finding: str = "") -> None:
        super().__init__(fact)
        self.fact = fact
        self.wanted = wanted
        self.todo = todo
        self.finding = finding

    def __str__(self) -> str:
        """Join the parts into one paragraph."""
        parts = [part for part in (self.fact, self.wanted, self.todo) if part]
        return ". ".join(part.rstrip(".") for part in parts) + "."


class UsageError(OrdermigrateError):
    """The command line or the configuration is wrong, or names what does not exist."""

    exit_code = 2
    meaning = "usage or configuration"
    owner_of_writes = "untouched"


class Refused(OrdermigrateError):
    """A gate is shut: going on would be unsafe.

    Args:
        fact: What is true.
        wanted: What was wanted.
        todo: What to do.
        findings: Each reason by itself, where there are several.
        finding: As above.

    """

    exit_code = 3
    meaning = "refused by a gate: wrong phase, preflight, lag, no fresh validation, drift"
    owner_of_writes = "untouched"

    def __init__(
        self,
        fact: str,
        *,
        wanted: str = "",
        todo: str = "",
        findings: Sequence[str] = (),
        finding: str = "",
    ) -> None:
        super().__init__(fact, wanted=wanted, todo=todo, finding=finding)
        self.findings = tuple(findings)


class Unavailable(OrdermigrateError):
    """A database cannot be reached, or cannot go on, and the retries are spent."""

    exit_code = 5
    meaning = "a database is unavailable, retries spent; run again to resume"
    owner_of_writes = "untouched"


class LockTimeout(Unavailable):
    """A lock could not be had within lock_timeout."""


class Undone(OrdermigrateError):
    """The change of owner failed and was undone, or was not begun."""

    exit_code = 7
    meaning = "the change of owner failed and was undone"
    owner_of_writes = "as before, writes flowing"


class Stranded(OrdermigrateError):
    """Nobody, or everybody, owns the tables, and the program cannot tell or mend it by itself."""

    exit_code = 8
    meaning = "stranded: a person must look; the message lists the exact next command"
    owner_of_writes = "read `status`"


class Busy(OrdermigrateError):
    """Another process works on the same migration."""

    exit_code = 6
    meaning = "another run is active"
    owner_of_writes = "theirs"


EXIT_OK = 0
EXIT_DIFFERENT = 4
EXIT_QUARANTINED = 9
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as a shell says of a program that SIGPIPE has ended
