"""PostgreSQL's own client programs: found, called without a password in sight, run to their end.

A password goes into a program's environment, never into its arguments, which everyone on the
machine can read.
"""

from __future__ import annotations

import asyncio
import glob
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ordermigrate import config
from ordermigrate.control import Session
from ordermigrate.errors import Unavailable
from ordermigrate.model import TableName

# Where packages put PostgreSQL's programs that is not on the PATH.
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin")
_SAID_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Programs:
    """`pg_dump` and `pg_restore` of one version."""

    dump: str
    restore: str
    major: int


def find_programs(server_version: int) -> Programs | None:
    """Return programs that can read a server of this version; None where there are none.

    Newer ones read an older server, never the other way round.
    """
    found = [each for place in _find_places() if (each := _probe(place)) is not None]
    fitting = [each for each in found if each.major >= server_version // 10000]
    return min(fitting, key=lambda each: each.major, default=None)


def _find_places() -> Iterator[Path]:
    on_path = shutil.which("pg_dump")
    if on_path:
        yield Path(on_path).parent
    for pattern in _PLACES:
        yield from map(Path, sorted(glob.glob(pattern)))  # noqa: PTH207  an absolute pattern


def _probe(place: Path) -> Programs | None:
    programs = [str(place / name) for name in ("pg_dump", "pg_restore")]
    if not all(os.access(each, os.X_OK) for each in programs):
        return None
    majors = set()
    for each in programs:
        try:
            done = subprocess.run(  # noqa: S603  a program by its path
                [each, "--version"], check=False, capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.SubprocessError):
            return None
        match = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
        if done.returncode != 0 or match is None:
            return None
        majors.add(int(match[1]))
    return Programs(programs[0], programs[1], min(majors))


def as_pattern(name: TableName) -> str:
    """Write a name as pg_dump takes it: in double quotes nothing is a wildcard."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in (name.schema, name.name))


def describe_call(session: Session, dsn: str, application_name: str) -> tuple[str, dict[str, str]]:
    """Return a connection string without a password, and the environment that has it."""
    options: dict[str, Any] = {
        key: value for key, value in conninfo_to_dict(dsn).items() if key != "password"
    }
    if "," in str(options.get("host", "")):  # the one of them that our own session has reached
        options.pop("hostaddr", None)
        options |= {key: session.route.options[key] for key in ("host", "port")}
    options |= {
        "application_name": application_name,
        "keepalives_idle": "15",
        "keepalives_interval": "5",
        "keepalives_count": "3",
    }
    environment = inherit_environment()
    if session.route.options.get("password"):
        environment["PGPASSWORD"] = session.route.options["password"]
    return make_conninfo("", **options), environment


def inherit_environment() -> dict[str, str]:
    """Return our own environment for a program, without what is meant for us alone."""
    return {
        key: value
        for key, value in config.environment().items()
        if not key.startswith("ORDERMIGRATE_")
    }


async def run_program(
    command: Sequence[str], environment: Mapping[str, str], *, wanted: str, todo: str
) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        Unavailable: It has failed; the message has its last words.

    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**environment, "LC_ALL": "C"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        printed, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        words = " ".join(said.decode("utf-8", "replace")[-_SAID_BYTES:].split())
        raise Unavailable(
            f"{Path(command[0]).name} has failed: {words or f'exit code {process.returncode}'}",
            wanted=wanted,
            todo=todo,
        )
    return printed.decode("utf-8", "replace")
