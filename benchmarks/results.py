"""Results: what was to be reached and what was, as Markdown for people and JSON for programs.

The machine is described by its shape alone: no host name, no path.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.ground import Ground
from benchmarks.measure import Series, core_count

FOLDER: Final = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Target:
    """One mark, and what was measured.

    Attributes:
        name: What is compared with what.
        measured: The median, None where it could not be measured.
        limit: The mark.
        is_ceiling: Whether the mark may not be passed; otherwise it must be reached.
        spread: The least and the greatest round, where there are rounds.
        unit: What the figures are, for people.

    """

    name: str
    measured: float | None
    limit: float
    is_ceiling: bool = True
    spread: tuple[float, float] | None = None
    unit: str = "×"

    @property
    def is_met(self) -> bool | None:
        """Whether the mark is reached; None where nothing was measured."""
        if self.measured is None:
            return None
        return self.measured <= self.limit if self.is_ceiling else self.measured >= self.limit


@dataclass(frozen=True, slots=True)
class Table:
    """Figures that are nobody's times: a name for each row, then as many numbers as columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One job: everybody's samples, or a table of figures, and the marks."""

    title: str
    about: str
    series: tuple[Series, ...]
    targets: tuple[Target, ...]
    notes: tuple[str, ...] = ()
    table: Table | None = None


def compare(
    job: str,
    ours: Series,
    other: Series,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Target:
    """Return the ratio of two contestants as a target: ours over theirs, or theirs over ours.

    `at_least` speaks of how many times faster ours is, `at_most` of how many times slower.
    """
    is_ceiling = at_most is not None
    ratios = ours.ratios(other) if is_ceiling else other.ratios(ours)
    first, second = (ours, other) if is_ceiling else (other, ours)
    limit = at_most if at_most is not None else at_least
    if limit is None:
        message = "one of at_most and at_least is needed"
        raise ValueError(message)
    return Target(
        f"{job}: {first.name} / {second.name}",
        statistics.median(ratios),
        limit,
        is_ceiling,
        (min(ratios), max(ratios)),
    )


def describe_machine(ground: Ground, rounds: int) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "cores": core_count(),
        "memory_gib": _memory_gib(),
        "processor": _processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "postgresql": ground.service.binaries.version_text,
        "locale": ground.locale,
        "settings": dict(ground.settings),
        "rows": ground.rows,
        "rounds": rounds,
    }


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (OSError, ValueError):
        return None


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def to_markdown(machine: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Return the tables for people."""
    settings = ", ".join(f"{name} = {value}" for name, value in machine["settings"].items())
    lines = [
        "# Benchmarks",
        "",
        (
            f"{machine['date']}, {machine['cores']} cores ({machine['processor']}), "
            f"{machine['memory_gib']} GiB, {machine['system']}, "
            f"PostgreSQL {machine['postgresql']}, Python {machine['python']}."
        ),
        (
            f"{machine['rows']:,} hub orders, rounds in turn: {machine['rounds']}, after one that "
            "does not count; both servers and all clients on the one machine; "
            f"locale {machine['locale']}; {settings}."
        ),
        "Times are medians in seconds; ratios are medians of the ratios of each round.",
    ]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.about]
        if section.series:
            lines += ["", *_series_table(section)]
        if section.table:
            lines += ["", *figures_table(section.table)]
        if section.targets:
            lines += ["", *_target_table(section.targets)]
        if section.notes:
            lines += ["", *(f"- {note}" for note in section.notes)]
    return "\n".join(lines) + "\n"


def _series_table(section: Section) -> list[str]:
    head = ("", "seconds", "range", "client CPU s", "servers CPU s", "client MB", "what runs")
    rows = [
        (
            series.name,
            f"{series.seconds:.2f}",
            _range_text([sample.seconds for sample in series.samples]),
            f"{series.client_cpu_seconds:.2f}",
            "" if series.server_cpu_seconds is None else f"{series.server_cpu_seconds:.2f}",
            f"{series.client_peak_bytes / 1e6:.0f}",
            series.note,
        )
        for series in section.series
    ]
    return _table(head, rows)


def figures_table(table: Table) -> list[str]:
    """Return figures as the lines of a Markdown table."""
    rows = [(name, *(f"{value:,.3f}" for value in values)) for name, values in table.rows]
    return _table(("", *table.columns), rows)


def _range_text(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _target_table(targets: Sequence[Target]) -> list[str]:
    words = {True: "yes", False: "**no**", None: "not measured"}
    rows = [
        (
            target.name,
            "" if target.measured is None else f"{target.measured:.2f} {target.unit}",
            _range_text(target.spread) if target.spread else "",
            f"{'at most' if target.is_ceiling else 'at least'} {target.limit:g} {target.unit}",
            words[target.is_met],
        )
        for target in targets
    ]
    return _table(("mark", "measured", "range", "wanted", "reached"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(each) + " |" for each in (head, ["---"] * len(head), *rows)]


def to_document(machine: Mapping[str, Any], sections: Sequence[Section]) -> dict[str, Any]:
    """Return everything that was measured, for programs."""
    return {
        "schema": 1,
        "machine": dict(machine),
        "sections": [
            {
                "title": section.title,
                "about": section.about,
                "notes": list(section.notes),
                "contestants": [_describe_series(series) for series in section.series],
                "table": _describe_table(section.table),
                "targets": [_describe_target(target) for target in section.targets],
            }
            for section in sections
        ],
    }


def _describe_series(series: Series) -> dict[str, Any]:
    server = series.server_cpu_seconds
    return {
        "name": series.name,
        "note": series.note,
        "median_seconds": round(series.seconds, 3),
        "seconds": [round(sample.seconds, 3) for sample in series.samples],
        "median_client_cpu_seconds": round(series.client_cpu_seconds, 3),
        "median_server_cpu_seconds": None if server is None else round(server, 3),
        "client_peak_bytes": series.client_peak_bytes,
    }


def _describe_table(table: Table | None) -> list[dict[str, Any]]:
    if table is None:
        return []
    return [
        {"name": name, **dict(zip(table.columns, (round(one, 4) for one in values), strict=True))}
        for name, values in table.rows
    ]


def _describe_target(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "measured": None if target.measured is None else round(target.measured, 4),
        "spread": None if target.spread is None else [round(each, 4) for each in target.spread],
        "at_most" if target.is_ceiling else "at_least": target.limit,
        "unit": target.unit,
        "is_met": target.is_met,
    }


def write(machine: Mapping[str, Any], sections: Sequence[Section], folder: Path = FOLDER) -> str:
    """Write both files and return the Markdown."""
    folder.mkdir(exist_ok=True)
    markdown = to_markdown(machine, sections)
    (folder / "latest.md").write_text(markdown, "utf-8")
    document = json.dumps(to_document(machine, sections), indent=2, ensure_ascii=False)
    (folder / "latest.json").write_text(document + "\n", "utf-8")
    return markdown
