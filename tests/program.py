"""The program, imported once and forked for each command that a test runs.

To start an interpreter and import everything takes half a second of processor time, and the tests
run thousands of commands. A fork of a server that has it all imported is a process like any other:
with an exit code, streams and signals of its own, to be killed, stopped and interrupted.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import multiprocessing.connection
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

import ordermigrate

_MODULES = [found.name for found in pkgutil.walk_packages(ordermigrate.__path__, "ordermigrate.")]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([*(m for m in _MODULES if not m.endswith("__main__")), __name__])
# Each start looks at all that run: how one has ended can be read once only.
_LOCK = threading.Lock()
# What an interpreter reads when it starts, and never again.
_AT_START = ("PYTHON", "LC_", "LANG")


class Forked:
    """A command in a process of its own; what of `subprocess.Popen` the tests use."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        streams = [_CONTEXT.Pipe(duplex=False) for _ in range(2)]
        self._process = _CONTEXT.Process(
            target=_run, args=(args, dict(env), str(cwd), *(out for _, out in streams)), daemon=True
        )
        with _LOCK:
            self._process.start()
        self.stdout, self.stderr = (_open_reader(*each) for each in streams)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid or 0

    def poll(self) -> int | None:
        """Return how it has ended, or None."""
        with _LOCK:
            return self._process.exitcode

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for its end and return the exit code; raise `TimeoutExpired` if it takes longer."""
        multiprocessing.connection.wait([self._process.sentinel], timeout_seconds)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("ordermigrate", timeout_seconds or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end, with SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once with SIGKILL."""
        self.send_signal(signal.SIGKILL)


Command = Forked | subprocess.Popen[str]


def start(args: Sequence[str], env: Mapping[str, str], cwd: Path) -> Command:
    """Run a command: by a fork, unless the interpreter itself is to be told something."""
    told = {key for key in env if key.startswith(_AT_START)} - {"PYTHONUNBUFFERED"}
    if all(os.environ.get(key) == env[key] for key in told):
        return Forked(args, env, cwd)
    return subprocess.Popen(
        [sys.executable, "-m", "ordermigrate", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=cwd,
        env=env,
    )


def _open_reader(reader: Connection, writer: Connection) -> IO[str]:
    with reader, writer:
        return os.fdopen(os.dup(reader.fileno()), encoding="utf-8")


def _run(
    args: Sequence[str], env: dict[str, str], cwd: str, stdout: Connection, stderr: Connection
) -> None:
    """Become the command, in the forked process."""
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, stream in ((1, stdout), (2, stderr)):
        with stream:
            os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = (_open_writer(number) for number in (1, 2))
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    sys.argv = [str(Path(ordermigrate.__file__).with_name("__main__.py")), *args]
    runpy.run_module("ordermigrate", run_name="__main__")


def _open_writer(number: int) -> io.TextIOWrapper:
    raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115  for as long as it runs
    return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
