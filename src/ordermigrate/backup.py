"""Backup: the monolith's tables in one file, by PostgreSQL's own programs, read back whole.

A file of the final name is there only when it is complete: `pg_dump` writes another one, which is
flushed to disk, listed and read to its end by `pg_restore`, and then given the name. What was
written is known by size and SHA-256, so a file that has changed since is not taken for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from psycopg.conninfo import conninfo_to_dict

from ordermigrate import programs
from ordermigrate.control import Session, outlive
from ordermigrate.errors import Refused
from ordermigrate.model import TableName
from ordermigrate.programs import Programs

APPLICATION_NAME = "ordermigrate cleanup: backup"
DIRECTORY = "ordermigrate-backup"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A table or a part of one, and whether it holds rows of its own."""

    oid: int
    name: TableName
    has_rows: bool
    is_root: bool


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was complete when it was made."""

    file: str
    bytes: int
    sha256: str

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `as_json` gave."""
        return cls(**value)


def find_obstacles(session: Session, dsn: str, directory: Path) -> list[str]:
    """Say in sentences why no backup could be made; empty where one could."""
    said: list[str] = []
    version = session.identity.server_version
    if programs.find_programs(version) is None:
        said.append(
            f"there is no pg_dump and pg_restore of version {version // 10000} or later, which the "
            f"monolith's backup needs: install PostgreSQL's client programs (on Debian "
            f"postgresql-client-{version // 10000}), or have the PATH lead to them"
        )
    if conninfo_to_dict(dsn).get("sslpassword"):
        said.append(
            "the monolith's DSN holds sslpassword, which pg_dump would show to everyone on this "
            "machine: move it into a service file and name that by service="
        )
    place = next(each for each in (directory, *directory.absolute().parents) if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        said.append(f"no file can be written in {directory}: name another directory with --backup")
    return said


def find_file(directory: Path, run: str) -> Path:
    """Return where a run's backup belongs."""
    return directory.absolute() / f"ordermigrate-{run}.dump"


def find_list(file: Path) -> Path:
    """Return where the list of what is to be restored belongs: our own triggers are not in it."""
    return file.with_suffix(".list")


async def find_whole(backup: Backup, directory: Path) -> Path | None:
    """Return where a backup is as it was made, in a directory or in its own; None if nowhere."""
    return await asyncio.to_thread(_find_whole, backup, directory)


def _find_whole(backup: Backup, directory: Path) -> Path | None:
    made = Path(backup.file)
    for file in dict.fromkeys([directory.absolute() / made.name, made]):
        with contextlib.suppress(OSError):
            if file.stat().st_size == backup.bytes and _hash(file) == backup.sha256:
                return file
    return None


async def end_left(session: Session) -> None:
    """End what an earlier backup has left at work: it outlives a command that is killed.

    The caller keeps other cleanups out meanwhile.
    """
    await session.fetch_all("backup", "end_old_backups", APPLICATION_NAME)


async def make(
    session: Session, dsn: str, members: Sequence[Member], file: Path, stall_seconds: float
) -> tuple[Backup, float]:
    """Back the tables up into a file, and return it with the seconds that it took.

    Args:
        session: On the monolith; another session looks by it whether the server is still there.
        dsn: How the monolith is reached.
        members: The tables and all parts of them.
        file: Where to; one that is there is replaced when the new one is complete.
        stall_seconds: How often to look.

    Raises:
        Refused: There are no programs, or no place; or what was written is not complete.
        Unavailable: `pg_dump` has failed.

    """
    started = time.monotonic()
    obstacles = find_obstacles(session, dsn, file.parent)
    found = programs.find_programs(session.identity.server_version)
    if obstacles or found is None:
        raise Refused(
            f"The monolith's tables cannot be backed up: {'; '.join(obstacles)}",
            wanted="A backup before anything is dropped",
            findings=obstacles,
        )
    part = file.with_suffix(".partial")
    try:
        await asyncio.to_thread(_make_room, part)
    except OSError as error:
        raise Refused(
            f"No file can be written in {file.parent}: {error.strerror}",
            wanted="A place for the monolith's tables, before anything is dropped",
            todo="Name another directory with --backup",
        ) from None
    arguments, environment = programs.describe_call(session, dsn, APPLICATION_NAME)
    dumped = _run(
        [
            found.dump,
            "--format=custom",
            f"--lock-wait-timeout={session.route.settings['lock_timeout']}",
            *(f"--table={programs.as_pattern(each.name)}" for each in members),
            f"--file={part}",
            f"--dbname={arguments}",
        ],
        environment,
    )
    await outlive(dumped, session.route, session.pid, stall_seconds)
    backup = await _read_back(found, members, part, file)
    return backup, time.monotonic() - started


def _make_room(part: Path) -> None:
    """Make an empty file that only its owner can read; what a killed backup left goes."""
    part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)


async def _read_back(found: Programs, members: Sequence[Member], part: Path, file: Path) -> Backup:
    """See that a dump is complete and on disk, and give it its name."""
    await asyncio.to_thread(_flush, part)
    environment = programs.inherit_environment()
    listed = await _run([found.restore, "--list", str(part)], environment)
    missing = find_missing(listed, members)
    if missing:
        raise Refused(
            f"The backup lacks {', '.join(missing)}",
            wanted="A backup with every table and its rows, before anything is dropped",
            todo="Run the command again; if the same is missing again, report this as a bug",
            findings=missing,
        )
    # The list stands at the file's beginning; that its end is there only shows when all is read.
    await _run([found.restore, f"--file={os.devnull}", str(part)], environment)
    return await asyncio.to_thread(_give_name, part, file, listed)


def _give_name(part: Path, file: Path, listed: str) -> Backup:
    """Give a complete dump its name, with a list beside it of what is to be restored."""
    sha256 = _hash(part)
    # A table's trigger whose function is gone could not be restored without an error.
    wanted = [line for line in listed.splitlines() if " ordermigrate_" not in line]
    find_list(file).write_text("\n".join(wanted) + "\n", "utf-8")
    part.replace(file)
    _flush(find_list(file))
    _flush(file.parent)
    return Backup(str(file), file.stat().st_size, sha256)


def find_missing(listed: str, members: Sequence[Member]) -> list[str]:
    """Say what of the tables does not stand in the list of a dump's contents."""
    return [
        f"{what.lower()} of {each.name}" if what == "TABLE DATA" else f"table {each.name}"
        for each in members
        for what in ("TABLE", *(["TABLE DATA"] if each.has_rows else []))
        if f" {what} {each.name.schema} {each.name.name} " not in listed
    ]


async def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    return await programs.run_program(
        command,
        environment,
        wanted="A complete backup of the monolith's tables, before anything is dropped",
        todo="Mend what it names (room on the disk, rights on the tables), then run the same "
        "command again",
    )


def _hash(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or a directory's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
