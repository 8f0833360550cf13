"""Tells the demo's story on stdout: numbered steps, short paragraphs, figures in columns.

In a terminal there is colour and a bar that moves; elsewhere the same words as plain lines.
"""

from __future__ import annotations

import contextlib
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

_WIDEST = 88
_NARROWEST = 20
_INDENT = "  "
# A number stays on the line of its unit.
_UNIT = re.compile(r"(?<=\d) (?=(?:ms|s|min|h|B|[KMGT]iB|rows)\b)")
_NO_BREAK = "\N{NO-BREAK SPACE}"


class Narrator:
    """Says things in order; each is on the screen before the next begins."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._width = max(_NARROWEST, min(self._console.width, _WIDEST))
        self._step = 0

    def title(self, text: str) -> None:
        """Say what this is."""
        for line in _wrap(text, self._width):
            self._print(Text(line, "bold"))

    def step(self, text: str) -> None:
        """Begin the next step."""
        self._step += 1
        self._print(Text(), Text.assemble((f"{self._step}. ", "bold cyan"), (text, "bold")))

    def say(self, *sentences: str) -> None:
        """Say a paragraph."""
        self._print(*(Text(line) for line in _wrap(" ".join(sentences), self._width)))

    def command(self, text: str) -> None:
        """Show what one would type to have the same done."""
        self._print(Text(), Text.assemble(("$ ", "dim"), (text, "bold green")))

    def figures(self, figures: Mapping[str, str]) -> None:
        """Show labelled values, one a line."""
        margin = max(map(len, figures)) + 2
        for label, value in figures.items():
            first, *rest = _wrap(value, max(_NARROWEST, self._width - len(_INDENT) - margin))
            self._print(Text.assemble(_INDENT, (label.ljust(margin), "dim"), first))
            self._print(*(Text(_INDENT + " " * margin + line) for line in rest))

    def row(self, text: str) -> None:
        """Show a line of a list whose lines come one after the other."""
        self._print(Text(_INDENT + text))

    def verbatim(self, *lines: str) -> None:
        """Show lines that are to be copied, however long they are."""
        self._print(*(Text(_INDENT + line, "green") for line in lines))

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress | None]:
        """Show a bar while something is made; None where there is no terminal to draw it on."""
        if not self._is_live:
            yield None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            bar.add_task(what, total=total)
            yield bar

    @contextlib.contextmanager
    def moving_row(self) -> Iterator[Callable[[str], None]]:
        """Show a line that moves, below what is said meanwhile; none where there is no terminal."""
        if not self._is_live:
            yield lambda _: None
            return
        with Live(Text(), console=self._console, transient=True, refresh_per_second=10) as live:
            yield lambda text: live.update(
                Text(_INDENT + text, "cyan", no_wrap=True, overflow="ellipsis")
            )

    def _print(self, *lines: Text) -> None:
        for line in lines:
            self._console.print(line, soft_wrap=True)
        # A reader of a pipe sees it before the next line of stderr.
        self._console.file.flush()


def _wrap(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(_UNIT.sub(_NO_BREAK, text), width, break_on_hyphens=False)
    return [line.replace(_NO_BREAK, " ") for line in lines] or [""]
