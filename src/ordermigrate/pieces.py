"""Pieces: what `pg_dump --schema-only` says of some tables, statement by statement.

Each piece stands under a heading of pg_dump's own, which names it, so that one can be left out or
written anew without reading SQL. Settings between the pieces are meant for a whole restore, and
are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ordermigrate import programs
from ordermigrate.control import Session, outlive
from ordermigrate.errors import Refused
from ordermigrate.model import TableName

APPLICATION_NAME = "ordermigrate schema"
_HEADING = re.compile(
    r"^--\n-- Name: (?P<name>.*); Type: (?P<kind>[A-Z ]+); Schema: (?P<schema>.*); Owner: .*\n--\n",
    re.MULTILINE,
)
_END = "--\n-- PostgreSQL database dump complete\n"
_SETTING = re.compile(
    r"^(SET default_(?:tablespace|table_access_method) = .*;|\\(?:un)?restrict .*)\n+", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One heading and what stands under it.

    `name` is as pg_dump writes it: of what belongs to a table, the table's comes first.
    """

    kind: str
    schema: str
    name: str
    text: str


async def dump(
    session: Session, dsn: str, names: Sequence[TableName], stall_seconds: float
) -> list[Piece]:
    """Have pg_dump describe tables, parts and sequences, none of their rows and no rights.

    Raises:
        Refused: There is no pg_dump that can read the server.
        Unavailable: It has failed.

    """
    version = session.identity.server_version
    found = programs.find_programs(version)
    if found is None:
        raise Refused(
            f"There is no pg_dump of version {version // 10000} or later",
            wanted=f"PostgreSQL's client programs, to describe the {session.side}'s tables",
            todo=f"Install them (on Debian postgresql-client-{version // 10000}), or have the PATH "
            "lead to them",
        )
    arguments, environment = programs.describe_call(session, dsn, APPLICATION_NAME)
    command = [
        found.dump,
        "--schema-only",
        "--no-owner",
        "--no-privileges",
        "--no-tablespaces",
        "--no-publications",
        "--no-subscriptions",
        "--no-security-labels",
        f"--lock-wait-timeout={session.route.settings['lock_timeout']}",
        *(f"--table={programs.as_pattern(each)}" for each in names),
        f"--dbname={arguments}",
    ]
    printed = await outlive(
        programs.run_program(
            command,
            environment,
            wanted=f"A description of the {session.side}'s tables",
            todo="Mend what it names (rights on the tables, a lock that somebody holds), then run "
            "the same command again",
        ),
        session.route,
        session.pid,
        stall_seconds,
    )
    return split(printed)


def split(printed: str) -> list[Piece]:
    """Cut what pg_dump has printed into its pieces."""
    headings = list(_HEADING.finditer(printed))
    ends = [each.start() for each in headings[1:]] + [len(printed)]
    return [
        Piece(
            each["kind"],
            each["schema"],
            each["name"],
            _SETTING.sub("", printed[each.end() : end].partition(_END)[0]).strip(),
        )
        for each, end in zip(headings, ends, strict=True)
    ]
