"""Run client programs and learn what they cost.

A contestant is one or more pipelines of programs that run at once. Each process is reaped by
wait4, so its CPU seconds and peak memory are the kernel's own figures. The peak is an upper bound:
on Linux a process starts with the peak of the one that forked it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

TIMEOUT_SECONDS: Final = 1800.0
STOP_SECONDS: Final = 60.0
INTERRUPTED: Final = 130

Command = Sequence[str]
Pipeline = Sequence[Command]


@dataclass(frozen=True, slots=True)
class Usage:
    """What client processes cost together; the peak is that of the largest one."""

    cpu_seconds: float = 0.0
    peak_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu_seconds + other.cpu_seconds, max(self.peak_bytes, other.peak_bytes))


@dataclass(frozen=True, slots=True)
class Ended:
    """How a pipeline ended: the exit code and standard output of its last program."""

    exit_code: int
    output: str
    usage: Usage


class ProgramFailed(RuntimeError):
    """A program ended with an exit code that was not expected; what it said is in the message."""


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without PG* and ORDERMIGRATE_* variables, and with `extra`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "ORDERMIGRATE_"))
    }
    return {**kept, **(extra or {})}


def python() -> str:
    """Return the Python that runs this, for processes of ours."""
    return sys.executable


def run(
    *pipelines: Pipeline,
    environment: Mapping[str, str],
    folder: Path,
    expected: tuple[int, ...] = (0,),
) -> list[Ended]:
    """Run pipelines side by side to their end.

    Raises:
        ProgramFailed: One ended with another exit code than `expected`, or did not end in time.

    """
    started: list[_Started] = []
    killer = threading.Timer(TIMEOUT_SECONDS, _kill, [started])
    killer.daemon = True
    killer.start()
    try:
        for pipeline in pipelines:
            started.append(_Started(pipeline, environment, folder))  # noqa: PERF401  killed so far
        return [one.wait(expected) for one in started]
    finally:
        killer.cancel()
        _kill(started)


class _Started:
    """The processes of one running pipeline."""

    def __init__(self, pipeline: Pipeline, environment: Mapping[str, str], folder: Path) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._output = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by wait
        self._errors = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by wait
        before: IO[bytes] | None = None
        for number, command in enumerate(pipeline, 1):
            process = subprocess.Popen(
                command,
                stdin=before if before is not None else subprocess.DEVNULL,
                stdout=self._output if number == len(pipeline) else subprocess.PIPE,
                stderr=self._errors,
                env=dict(environment),
                cwd=folder,
            )
            if before is not None:
                before.close()  # or the program before would not notice that this one has gone
            before = process.stdout
            self.processes.append(process)

    def wait(self, expected: tuple[int, ...]) -> Ended:
        """Reap every process; all but the last must end with 0."""
        usage = Usage()
        for process in self.processes:
            usage += reap(process)
        self._output.seek(0)
        output = self._output.read().decode(errors="replace")
        self._errors.seek(0)
        errors = self._errors.read().decode(errors="replace")
        self.close()
        for process in self.processes:
            allowed = expected if process is self.processes[-1] else (0,)
            if process.returncode not in allowed:
                name = Path(str(process.args[0])).name  # type: ignore[index]
                said = (errors + output).strip()[-2000:]
                raise ProgramFailed(f"{name} ended with {process.returncode}: {said}")
        return Ended(self.processes[-1].returncode, output, usage)

    def close(self) -> None:
        """Let go of what the programs said."""
        self._output.close()
        self._errors.close()


class Running:
    """A program at work beside what is measured, until it is told to stop."""

    def __init__(self, command: Command, environment: Mapping[str, str], folder: Path) -> None:
        self._started = _Started([command], environment, folder)
        self._process = self._started.processes[0]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def check(self) -> None:
        """Raise if it has ended by itself.

        Raises:
            ProgramFailed: It has; what it said is in the message.

        """
        # Not poll(), which would take its exit code away from wait4.
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            self._started.wait(())

    def stop(self) -> Usage:
        """Interrupt it as Ctrl-C does, and return what it has cost.

        Raises:
            ProgramFailed: It had ended before, or ended with neither 0 nor 130.

        """
        self.check()
        self._process.send_signal(signal.SIGINT)
        killer = threading.Timer(STOP_SECONDS, self._process.kill)
        killer.start()
        try:
            return self._started.wait((0, INTERRUPTED)).usage
        finally:
            killer.cancel()

    def close(self) -> None:
        """End it at once, if it is still there."""
        if self._process.returncode is None:
            self._process.kill()
            reap(self._process)
        self._started.close()


@contextmanager
def running(command: Command, *, environment: Mapping[str, str], folder: Path) -> Iterator[Running]:
    """Start a program, and leave nothing of it behind."""
    one = Running(command, environment, folder)
    try:
        yield one
    finally:
        one.close()


def reap(process: subprocess.Popen[bytes]) -> Usage:
    """Wait for a process's end and return what it and the children that it reaped have cost."""
    _, status, rusage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(rusage.ru_utime + rusage.ru_stime, rusage.ru_maxrss * unit)


def _kill(started: Sequence[_Started]) -> None:
    for one in started:
        for process in one.processes:
            if process.returncode is None:
                process.kill()
