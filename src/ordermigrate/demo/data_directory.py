"""Data directories, each with an identity of its own, without running initdb for each.

Promise: initdb runs once for each set of programs and options, into the cache; a server gets a
copy of that. Invariant: no two copies share a system identifier, as no two clusters that initdb
made do, so that nothing ever takes one database for the other.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ordermigrate.demo.account import Account, find_account, hand_over, last_lines, run_program
from ordermigrate.demo.binaries import Binaries
from ordermigrate.demo.cache import find_cache, make_once
from ordermigrate.errors import Unavailable

SUPERUSER = "postgres"

Setting = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Template:
    """A data directory fresh from initdb, to be copied and never started.

    Attributes:
        data_dir: The directory to copy.
        password: The superuser's first password; each copy gets one of its own.

    """

    data_dir: Path
    password: str


def data_template(binaries: Binaries, *, encoding: str, locale: str) -> Template:
    """Return a data directory for these programs and options, made by initdb the first time.

    Raises:
        Unavailable: initdb failed; its own words are in the message.

    """
    account = find_account()
    program = Path(binaries.program("postgres"))
    told_apart_by = (
        str(binaries.bin_dir),
        str(program.stat().st_mtime_ns),
        account.name if account else str(os.geteuid()),
        encoding,
        locale,
    )
    digest = hashlib.sha256("\0".join(told_apart_by).encode()).hexdigest()[:12]
    name = f"data-{binaries.version_text}-{encoding}-{locale}-{digest}".lower()

    def is_sound(path: Path) -> bool:
        return (path / "data" / "global" / "pg_control").is_file()

    def make(path: Path) -> None:
        path.mkdir(mode=0o700)
        password_path = path / "password"
        password_path.write_text(secrets.token_hex(16))
        password_path.chmod(0o600)
        hand_over(path, account)
        run_initdb(
            binaries,
            account,
            data_dir=path / "data",
            password_path=password_path,
            encoding=encoding,
            locale=locale,
        )

    path = make_once(find_cache(account), name, make, is_sound)
    return Template(path / "data", (path / "password").read_text())


def run_initdb(
    binaries: Binaries,
    account: Account | None,
    *,
    data_dir: Path,
    password_path: Path,
    encoding: str,
    locale: str,
) -> None:
    """Make a data directory that asks for a password (SCRAM) from the first connection on."""
    argv = [
        *(binaries.program("initdb"), "--pgdata", str(data_dir), "--username", SUPERUSER),
        *("--pwfile", str(password_path), "--auth", "scram-sha-256", "--encoding", encoding),
        *("--locale", locale, "--lc-messages", "C", "--no-sync"),
    ]
    done = run_program(argv, account, binaries.environment())
    if done.returncode != 0:
        raise Unavailable(
            f"initdb of PostgreSQL {binaries.version_text} failed: {last_lines(done.stderr)}",
            wanted=f"A new database cluster, encoding {encoding}, locale {locale}",
            todo=f"Run {binaries.program('initdb')} by hand to see why",
        )


def make_data_directory(
    binaries: Binaries, data_dir: Path, template: Template, settings: Mapping[str, Setting]
) -> None:
    """Copy a template, give the copy an identity of its own, and write its settings.

    Raises:
        Unavailable: PostgreSQL cannot use the template.

    """
    account = find_account()
    shutil.copytree(template.data_dir, data_dir, ignore=_skip_wal)
    # The identifier is the first field of pg_control (src/include/catalog/pg_control.h).
    # pg_resetwal keeps it, makes the checksum right again and writes WAL to match.
    identifier = struct.pack("=Q", int(time.time()) << 32 | secrets.randbits(32))
    with (data_dir / "global" / "pg_control").open("r+b") as file:
        file.write(identifier)
    with (data_dir / "postgresql.conf").open("a") as file:
        file.writelines(f"{key} = {_quote_setting(value)}\n" for key, value in settings.items())
    hand_over(data_dir, account)
    argv = [binaries.program("pg_resetwal"), "-f", "-D", str(data_dir)]
    done = run_program(argv, account, binaries.environment())
    if done.returncode != 0:
        raise Unavailable(
            f"The data directory {data_dir} could not be made: {last_lines(done.stderr)}",
            todo=f"Remove {template.data_dir.parent} and try again",
        )


def _skip_wal(folder: str, names: list[str]) -> list[str]:
    """Leave out the template's WAL: pg_resetwal writes anew what the copy needs."""
    if Path(folder).name != "pg_wal":
        return []
    return [name for name in names if Path(folder, name).is_file()]


def _quote_setting(value: Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    escaped = str(value).replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
