"""Backup: the monolith's tables in one file, by PostgreSQL's own programs, read back whole.

A file of the final name is there only when it is complete: `pg_dump` writes another one, which is
flushed to disk, listed and read to its end by `pg_restore`, and then given the name. What was
written is known by size and SHA-256, so a file that has changed since is not taken for it. A
password goes into the programs' environment, never into their arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ordermigrate import config
from ordermigrate.control import Session, outlive
from ordermigrate.errors import Refused, Unavailable
from ordermigrate.model import TableName

APPLICATION_NAME = "ordermigrate cleanup: backup"
DIRECTORY = "ordermigrate-backup"
# Where packages put PostgreSQL's programs that is not on the PATH.
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin")
_SAID_BYTES = 2000
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A table or a part of one, and whether it holds rows of its own."""

    oid: int
    name: TableName
    has_rows: bool
    is_root: bool


@dataclass(frozen=True, slots=True)
class Programs:
    """`pg_dump` and `pg_restore` of one version."""

    dump: str
    restore: str
    major: int


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


def find_obstacles(session: Session, dsn: str, directory: Path) -> list[str]:
    """Say in sentences why no backup could be made; empty where one could."""
    said: list[str] = []
    version = session.identity.server_version
    if find_programs(version) is None:
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
    programs = find_programs(session.identity.server_version)
    if obstacles or programs is None:
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
    arguments, environment = _describe_call(session, dsn)
    dumped = _run(
        [
            programs.dump,
            "--format=custom",
            f"--lock-wait-timeout={session.route.settings['lock_timeout']}",
            *(f"--table={_as_pattern(each.name)}" for each in members),
            f"--file={part}",
            f"--dbname={arguments}",
        ],
        environment,
    )
    await outlive(dumped, session.route, session.pid, stall_seconds)
    backup = await _read_back(programs, members, part, file)
    return backup, time.monotonic() - started


def _make_room(part: Path) -> None:
    """Make an empty file that only its owner can read; what a killed backup left goes."""
    part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)


async def _read_back(
    programs: Programs, members: Sequence[Member], part: Path, file: Path
) -> Backup:
    """See that a dump is complete and on disk, and give it its name."""
    await asyncio.to_thread(_flush, part)
    environment = _inherit()
    listed = await _run([programs.restore, "--list", str(part)], environment)
    missing = find_missing(listed, members)
    if missing:
        raise Refused(
            f"The backup lacks {', '.join(missing)}",
            wanted="A backup with every table and its rows, before anything is dropped",
            todo="Run the command again; if the same is missing again, report this as a bug",
            findings=missing,
        )
    # The list stands at the file's beginning; that its end is there only shows when all is read.
    await _run([programs.restore, f"--file={os.devnull}", str(part)], environment)
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


def _as_pattern(name: TableName) -> str:
    """Write a name as pg_dump takes it: in double quotes nothing is a wildcard."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in (name.schema, name.name))


def _describe_call(session: Session, dsn: str) -> tuple[str, dict[str, str]]:
    """Return a connection string without a password, and the environment that has it."""
    options: dict[str, Any] = {
        key: value for key, value in conninfo_to_dict(dsn).items() if key != "password"
    }
    if "," in str(options.get("host", "")):  # the one of them that our own session has reached
        options.pop("hostaddr", None)
        options |= {key: session.route.options[key] for key in ("host", "port")}
    options |= {
        "application_name": APPLICATION_NAME,
        "keepalives_idle": "15",
        "keepalives_interval": "5",
        "keepalives_count": "3",
    }
    environment = _inherit()
    if session.route.options.get("password"):
        environment["PGPASSWORD"] = session.route.options["password"]
    return make_conninfo("", **options), environment


def _inherit() -> dict[str, str]:
    return {
        key: value
        for key, value in config.environment().items()
        if not key.startswith("ORDERMIGRATE_")
    }


async def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
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
            wanted="A complete backup of the monolith's tables, before anything is dropped",
            todo="Mend what it names (room on the disk, rights on the tables), then run the same "
            "command again",
        )
    return printed.decode("utf-8", "replace")


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
