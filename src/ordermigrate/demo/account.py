"""Who runs the servers: ourselves, or when we are root, an unprivileged user.

PostgreSQL refuses to run as root. So its programs are run, and its files owned, by the user
`postgres` or `nobody`, and kept where that user can walk to.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ordermigrate.errors import Unavailable

_COMMAND_TIMEOUT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user that runs the servers when we are root."""

    name: str
    uid: int
    gid: int


def find_account() -> Account | None:
    """Return the user that servers run as: None for ourselves, unless we are root.

    Raises:
        Unavailable: We are root and the machine has no `postgres` and no `nobody`.

    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise Unavailable(
        "We are root, and there is neither a user postgres nor a user nobody",
        wanted="PostgreSQL refuses to run as root, so an unprivileged user has to run it",
        todo="Create one of the two users, or run this as another user than root",
    )


def run_program(
    argv: Sequence[str], account: Account | None, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a short-lived program to its end, as the given user, and capture what it says."""
    return subprocess.run(
        argv,
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        cwd="/",
        env=dict(environment),
        timeout=_COMMAND_TIMEOUT_SECONDS,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def hand_over(tree: Path, account: Account | None) -> None:
    """Give a tree of files to the user that will run the server."""
    if account is None:
        return
    for folder, _, files in os.walk(tree):
        os.chown(folder, account.uid, account.gid)
        for name in files:
            os.chown(Path(folder, name), account.uid, account.gid, follow_symlinks=False)


def is_reachable(path: Path, account: Account | None) -> bool:
    """Tell whether the servers' user may walk down to a directory."""
    if account is None:
        return True
    for folder in [path, *path.parents]:
        found = folder.stat()
        if found.st_uid == account.uid:
            allowed = found.st_mode & stat.S_IXUSR
        elif found.st_gid == account.gid:
            allowed = found.st_mode & stat.S_IXGRP
        else:
            allowed = found.st_mode & stat.S_IXOTH
        if not allowed:
            return False
    return True


def last_lines(text: str, count: int = 8) -> str:
    """Return the last lines of a program's output, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or "it said nothing"
