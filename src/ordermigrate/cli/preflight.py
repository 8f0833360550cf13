"""`ordermigrate preflight`."""

from __future__ import annotations

from pathlib import Path

import click

from ordermigrate import checks_servers, console, migration, outcomes
from ordermigrate.cli import options
from ordermigrate.errors import EXIT_OK, Refused
from ordermigrate.findings import Severity
from ordermigrate.outcomes import Preflight
from ordermigrate.phases import NextStep


@click.command(name="preflight")
@click.option(
    "--skip",
    "skipped",
    multiple=True,
    metavar="KEY",
    help="Leave this check out; can be given several times.",
)
@options.shared
def command(
    config_path: Path | None, log_format: str, skipped: tuple[str, ...], *, is_json: bool
) -> int:
    """Tell whether this migration can work, and what stands in the way; nothing is changed.

    Every finding has a key and a severity: stop (exit code 3), warn (decide before the cutover) or
    note. All checks run, whatever one of them finds. Catalogs are read, and no lock is kept.

    \b
    Example:
      ordermigrate preflight
      ordermigrate preflight --skip triggers-out --json | jq '.findings[].key'
    """
    config = options.load_config(config_path)
    found = options.run_verb(
        "preflight", log_format, lambda _: migration.preflight(config, skipped), is_quiet=True
    )
    exit_code = Refused.exit_code if found.count(Severity.STOP) else EXIT_OK
    steps = _find_next_steps(found)
    sizes = [each.bytes for each in found.sizes if each.bytes is not None]
    low, high = checks_servers.estimate_seconds(sum(sizes))
    document = options.make_document(
        "preflight",
        found.outcome,
        exit_code,
        run=found.run,
        phase=found.phase.value if found.phase else None,
        owner=found.owner,
        tables=[
            {
                "name": each.name,
                "to": each.target,
                "rows_estimate": each.rows_estimate,
                "bytes": each.bytes,
            }
            for each in found.sizes
        ],
        steps=steps,
        counts={severity.value: found.count(severity) for severity in Severity},
        findings=[
            {
                "key": each.key,
                "severity": each.severity.value,
                "side": each.side.value if each.side else None,
                "said": each.said,
                "meaning": each.meaning,
                "todo": each.todo,
            }
            for each in found.findings
        ],
        unchecked=[
            {"key": each.key, "side": each.side.value if each.side else None, "reason": each.reason}
            for each in found.unchecked
        ],
        skipped=list(found.skipped),
        copy_seconds_estimate={"low": round(low, 1), "high": round(high, 1)} if sizes else None,
    )
    if is_json:
        options.print_document(document)
    else:
        console.show_preflight(document)
        console.show_next_steps(steps)
    return exit_code


def _find_next_steps(found: Preflight) -> list[NextStep]:
    if found.phase is None or found.outcome == "stopped":
        return [NextStep("ordermigrate preflight", "again, when what stops it is settled")]
    return outcomes.find_next_steps(found.phase, None)
