"""A cache directory that several processes fill and read at the same time.

Invariant: what stands in the cache under its final name is complete. It is made under a name of
its own and renamed, so of two processes that make the same thing one wins and both go on with it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ordermigrate.demo.account import Account, is_reachable
from ordermigrate.errors import Unavailable

CACHE_VARIABLE = "ORDERMIGRATE_CACHE_DIR"

_ABANDONED_AFTER_SECONDS = 3600


def find_cache(account: Account | None) -> Path:
    """Return our cache directory, made if need be, where the servers' user can reach it.

    Raises:
        Unavailable: No candidate can be written, or the one there belongs to someone else.

    """
    tried: list[str] = []
    for candidate in _cache_candidates(account):
        try:
            candidate.mkdir(parents=True, exist_ok=True)
            if account is not None:
                candidate.chmod(0o755)
            found = candidate.lstat()
        except OSError as error:
            tried.append(f"{candidate}: {error.strerror}")
            continue
        # A directory of this name that a stranger made could hold the stranger's programs.
        if found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
            tried.append(f"{candidate}: it is not ours alone")
        elif not is_reachable(candidate, account):
            tried.append(f"{candidate}: the user {account.name if account else ''} cannot reach it")
        else:
            return candidate
    raise Unavailable(
        f"No directory can hold the cached PostgreSQL ({'; '.join(tried)})",
        todo=f"Name a directory in {CACHE_VARIABLE}",
    )


def _cache_candidates(account: Account | None) -> Iterator[Path]:
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        yield Path(named).absolute()
        return
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and Path(xdg).is_absolute():
        yield Path(xdg, "ordermigrate")
    if account is not None:
        yield Path("/var/cache/ordermigrate")
        yield Path("/var/tmp/ordermigrate-root")  # noqa: S108  ownership is checked
    elif not xdg:
        yield Path.home() / ".cache" / "ordermigrate"
    if account is None:
        yield Path(tempfile.gettempdir(), f"ordermigrate-{os.geteuid()}")


def make_once(
    cache: Path, name: str, make: Callable[[Path], None], is_sound: Callable[[Path], bool]
) -> Path:
    """Return `cache/name`, made by `make` under another name and renamed when it is complete.

    Two processes that race both make it; the second rename fails, and the loser takes the
    winner's. What is there but not sound (a disk that lost power) is set aside and made anew.
    """
    final = cache / name
    if final.is_dir():
        if is_sound(final):
            return final
        _set_aside(final)
    with _workshop(cache) as workshop:
        made = workshop / name
        make(made)
        try:
            made.rename(final)
        except OSError:
            # Somebody else was faster: a directory that is not empty cannot be renamed over.
            if not final.is_dir():
                raise
    return final


def _set_aside(path: Path) -> None:
    with _workshop(path.parent) as workshop:
        try:
            path.rename(workshop / path.name)
        except FileNotFoundError:
            return  # another process has just set it aside


@contextmanager
def _workshop(cache: Path) -> Iterator[Path]:
    for left_behind in cache.glob(".making-*"):
        with suppress(FileNotFoundError):
            if time.time() - left_behind.lstat().st_mtime > _ABANDONED_AFTER_SECONDS:
                shutil.rmtree(left_behind, ignore_errors=True)
    workshop = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
    workshop.chmod(0o755)
    try:
        yield workshop
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
