"""Run real PostgreSQL servers of our own, and leave nothing of them behind.

Promise: a server starts in a fraction of a second on a free port of 127.0.0.1, with a random
password and a system identifier of its own. fsync stays on. It can be stopped, killed like a
machine that loses power, and restarted on the same port.

Invariant: a server and its data directory end with the process that made them, however that
process ends. A guard, a shell in a session of its own, holds the reading end of a pipe; when the
last writer is gone (close, exception, SIGTERM, SIGKILL) it stops the server and removes the files.
Processes are ended by their own ids only. PostgreSQL programs come from `binaries`.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from ordermigrate.demo.account import find_account, hand_over, is_reachable, last_lines
from ordermigrate.demo.binaries import Binaries, find_binaries
from ordermigrate.demo.data_directory import (
    SUPERUSER,
    Setting,
    data_template,
    make_data_directory,
)
from ordermigrate.errors import Unavailable

StopMode = Literal["smart", "fast", "immediate"]

HOST: Final = "127.0.0.1"

# Below the ephemeral ports of Linux (32768) and macOS (49152), so that no outgoing connection
# takes the port of a server that is down for a moment.
_PORTS = range(20_000, 32_000)
_PORT_ATTEMPTS = 20
_POLL_SECONDS = 0.01
_SIGNALS: Final = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_BASE_SETTINGS: Final[Mapping[str, Setting]] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "30min",
    "logging_collector": False,
    "log_line_prefix": "%m [%p] %q%a ",
}

# $1 is the server's directory. The command line of the process is compared before any signal is
# sent: the id in postmaster.pid may be another process by now. A server that we miss while it
# starts ends by itself within a minute, when it finds its data directory gone.
_GUARD_SCRIPT: Final = """
read -r _
data=$1/data
pid=$(head -n 1 "$data/postmaster.pid" 2>/dev/null)
is_ours() {
    [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 1
    if [ -r "/proc/$pid/cmdline" ]; then line=$(tr '\\0' ' ' <"/proc/$pid/cmdline")
    else line=$(ps -p "$pid" -o command=); fi
    case $line in *"$data"*) return 0 ;; esac
    return 1
}
if is_ours; then
    kill -CONT "$pid"; kill -QUIT "$pid"; tries=0
    while [ $tries -lt 100 ] && is_ours; do sleep 0.1; tries=$((tries + 1)); done
    if is_ours; then kill -KILL "$pid"; fi
fi
rm -rf -- "$1"
"""


@dataclass(frozen=True, slots=True)
class TwoServers:
    """The two sides of a migration."""

    monolith: Server
    service: Server


class Server:
    """One PostgreSQL server that belongs to this process.

    Args:
        name: What people read in messages, such as "monolith".
        binaries: The programs to use; looked for when left out.
        settings: Lines of postgresql.conf, over ours.
        encoding: The databases' encoding, such as UTF8, LATIN1, SQL_ASCII.
        locale: The databases' locale; C fits every encoding.
        parent: Where the temporary directory is made; the system's own place when left out.

    """

    def __init__(
        self,
        name: str = "server",
        *,
        binaries: Binaries | None = None,
        settings: Mapping[str, Setting] | None = None,
        encoding: str = "UTF8",
        locale: str = "C",
        parent: Path | None = None,
    ) -> None:
        self.name = name
        self.host = HOST
        self.port = 0
        self.user = SUPERUSER
        self.password = ""
        self.binaries = binaries or find_binaries()
        self.encoding = encoding
        self.locale = locale
        self._settings = {**_BASE_SETTINGS, **(settings or {})}
        self._account = find_account()
        self._made_by = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._root = _make_directory(parent, self)
        self._guard = _start_guard(self._root)
        atexit.register(self.close)

    @property
    def data_dir(self) -> Path:
        """Where the server keeps its data, until it is closed."""
        return self._root / "data"

    @property
    def log_path(self) -> Path:
        """The file that the server writes its log to."""
        return self._root / "log"

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster; None when it does not run."""
        return self._process.pid if self._process and self.is_running else None

    @property
    def is_running(self) -> bool:
        """Whether the postmaster lives."""
        return self._process is not None and self._process.poll() is None

    def dsn(
        self, dbname: str = SUPERUSER, *, user: str | None = None, password: str | None = None
    ) -> str:
        """Return a libpq URI; the superuser's, unless another role is named."""
        login = self.user if user is None else user
        secret = self.password if user is None and password is None else password
        userinfo = quote(login, safe="") + (f":{quote(secret, safe='')}" if secret else "")
        return f"postgresql://{userinfo}@{self.host}:{self.port}/{quote(dbname, safe='')}"

    def log_tail(self, count: int = 12) -> str:
        """Return the last lines of the server's log."""
        with suppress(OSError):
            lines = self.log_path.read_text(errors="replace").splitlines()
            return "\n".join(lines[-count:])
        return ""

    def start(self, *, timeout_seconds: float = 60.0) -> Self:
        """Start the server and wait until it takes connections; nothing to do if it runs.

        Raises:
            Unavailable: It did not start; the end of its log is in the message.

        """
        if self.is_running:
            return self
        if self._guard.stdin is None or self._guard.stdin.closed:
            raise Unavailable(
                f"The server {self.name} was closed, its data is gone", todo="Make a new one"
            )
        deadline = time.monotonic() + timeout_seconds
        if self.port:
            # Clients know the port: wait for it rather than take another one.
            while not self._try_start(deadline):
                time.sleep(_POLL_SECONDS * 10)
            return self
        template = data_template(self.binaries, encoding=self.encoding, locale=self.locale)
        make_data_directory(self.binaries, self.data_dir, template, self._settings)
        for _ in range(_PORT_ATTEMPTS):
            self.port = find_free_port()
            if self._try_start(deadline):
                self._replace_password(template.password)
                return self
        raise Unavailable(
            f"No free port was found for the server {self.name} in {_PORT_ATTEMPTS} attempts",
            wanted=f"A port of {HOST} between {_PORTS.start} and {_PORTS.stop}",
        )

    def stop(self, mode: StopMode = "fast", *, timeout_seconds: float = 30.0) -> None:
        """Stop the server as `pg_ctl stop -m` does; nothing to do if it does not run.

        Raises:
            Unavailable: It still runs after the timeout (clients are connected to a smart stop).

        """
        process = self._process
        if process is None or not self.is_running:
            return
        process.send_signal(_SIGNALS[mode])
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(
                f"The server {self.name} (process {process.pid}) still runs "
                f"{timeout_seconds:g} s after a {mode} stop",
                wanted="No client that holds it up" if mode == "smart" else "",
                todo="Stop it with the mode immediate",
            ) from error

    def kill(self) -> None:
        """End all processes of the server at once with SIGKILL, as a power failure does."""
        process = self._process
        if process is None or not self.is_running:
            return
        # While the postmaster stands still it reaps no child and starts none: their ids stay
        # theirs, and none is missed.
        process.send_signal(signal.SIGSTOP)
        children = _children_of(process.pid)
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while _children_of(process.pid) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        process.kill()
        process.wait()

    def restart(self, mode: StopMode = "fast") -> Self:
        """Stop the server and start it again on the same port and data."""
        self.stop(mode)
        return self.start()

    def close(self) -> None:
        """End the server and remove its files; nothing to do the second time."""
        if os.getpid() != self._made_by:
            return  # a forked child must not close what its parent uses
        atexit.unregister(self.close)
        try:
            self.stop("immediate", timeout_seconds=10)
        except Unavailable:
            self.kill()
        shutil.rmtree(self._root, ignore_errors=True)
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait()

    def __enter__(self) -> Self:
        """Start the server; close it on the way out."""
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        """Close the server."""
        self.close()

    def _try_start(self, deadline: float) -> bool:
        """Start the postmaster; False when another program has the port."""
        with self.log_path.open("ab") as log:
            log_begins = log.tell()
            process = self._process = self._spawn(log)
        pid_path = self.data_dir / "postmaster.pid"
        while process.poll() is None:
            if _is_ready(pid_path, process.pid):
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise self._failure("did not become ready in time")
            time.sleep(_POLL_SECONDS)
        said = self.log_path.read_bytes()[log_begins:]
        if b"could not bind" in said and time.monotonic() < deadline:
            return False
        raise self._failure(f"did not start (exit status {process.returncode})")

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        account = self._account
        argv = (
            self.binaries.program("postgres"),
            *("-D", str(self.data_dir), "-p", str(self.port)),
        )
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=self.binaries.environment(),
            start_new_session=True,  # Ctrl-C in the terminal is ours to answer, not the server's
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )

    def _replace_password(self, first_password: str) -> None:
        password = secrets.token_urlsafe(18)
        with psycopg.connect(
            self.dsn(user=self.user, password=first_password), autocommit=True
        ) as connection:
            verifier = connection.pgconn.encrypt_password(
                password.encode(), self.user.encode(), b"scram-sha-256"
            )
            connection.execute(
                sql.SQL("ALTER ROLE {role} PASSWORD {verifier}").format(
                    role=sql.Identifier(self.user), verifier=sql.Literal(verifier.decode())
                )
            )
        self.password = password

    def _failure(self, what: str) -> Unavailable:
        return Unavailable(
            f"The server {self.name} {what}; its log ends: {last_lines(self.log_tail())}",
            wanted=f"PostgreSQL {self.binaries.version_text} on {self.host}:{self.port}",
            todo="Correct the setting that the log names, or free memory or disk space",
        )


@contextmanager
def run_server(
    name: str = "server",
    *,
    binaries: Binaries | None = None,
    settings: Mapping[str, Setting] | None = None,
    encoding: str = "UTF8",
    locale: str = "C",
    parent: Path | None = None,
) -> Iterator[Server]:
    """Run one server for the length of a with block; the arguments are those of `Server`."""
    with Server(
        name,
        binaries=binaries,
        settings=settings,
        encoding=encoding,
        locale=locale,
        parent=parent,
    ) as server:
        yield server


@contextmanager
def two_servers(
    *,
    binaries: Binaries | None = None,
    service_binaries: Binaries | None = None,
    settings: Mapping[str, Setting] | None = None,
    parent: Path | None = None,
) -> Iterator[TwoServers]:
    """Run a monolith's and a service's server, started side by side.

    Where no programs are given for the service, they are the monolith's.
    """
    ours = binaries or find_binaries()
    theirs = service_binaries or ours
    # Made first, or both would make it.
    for programs in {ours, theirs}:
        data_template(programs, encoding="UTF8", locale="C")
    with (
        closing(Server("monolith", binaries=ours, settings=settings, parent=parent)) as monolith,
        closing(Server("service", binaries=theirs, settings=settings, parent=parent)) as service,
    ):
        with ThreadPoolExecutor(2) as pool:
            for started in [pool.submit(one.start) for one in (monolith, service)]:
                started.result()
        yield TwoServers(monolith, service)


def find_free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on right now."""
    for _ in range(200):
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        with socket.socket() as probe:
            # As PostgreSQL does it: connections that linger in TIME_WAIT are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise Unavailable(
        f"No free port was found on {HOST}",
        wanted=f"One between {_PORTS.start} and {_PORTS.stop}",
    )


def _make_directory(parent: Path | None, server: Server) -> Path:
    """Make the server's directory where the server's user can reach it."""
    account = find_account()
    usual = (tempfile.gettempdir(), "/tmp", "/var/tmp")  # noqa: S108  mkdtemp makes a name there
    candidates = [parent] if parent else [Path(place) for place in usual]
    for candidate in candidates:
        if candidate.is_dir() and is_reachable(candidate, account):
            root = Path(tempfile.mkdtemp(prefix=f"ordermigrate-{server.name}-", dir=candidate))
            hand_over(root, account)
            return root
    raise Unavailable(
        f"The user {account.name if account else ''} cannot reach {candidates[0]}",
        wanted="A directory for temporary files that every user may walk into",
        todo="Set TMPDIR to such a directory, /tmp for example",
    )


def _start_guard(root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD_SCRIPT, "ordermigrate-guard", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def _is_ready(pid_path: Path, pid: int) -> bool:
    """Tell whether the postmaster says so, in the eighth line of its lock file."""
    try:
        lines = pid_path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    status_line = 8
    if len(lines) < status_line:
        return False
    return lines[0].strip() == str(pid) and lines[status_line - 1].strip() == "ready"


def _children_of(parent: int) -> list[int]:
    """Return the ids of a process's children that live; the dead that nobody reaped are not."""
    if Path("/proc/self/stat").exists():
        return [pid for pid, owner, state in _read_proc() if owner == parent and state != "Z"]
    done = subprocess.run(
        ["/bin/ps", "-axo", "pid=,ppid=,state="], check=True, capture_output=True, text=True
    )
    rows = (line.split() for line in done.stdout.splitlines())
    return [
        int(pid) for pid, owner, state in rows if int(owner) == parent and not state.startswith("Z")
    ]


def _read_proc() -> Iterator[tuple[int, int, str]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                stat = Path(entry.path, "stat").read_text(errors="replace")
                # The name, in parentheses, may hold anything.
                state, owner = stat.rpartition(")")[2].split()[:2]
                yield int(entry.name), int(owner), state
