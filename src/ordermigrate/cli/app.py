"""The group of commands, loaded one by one as they are needed, and the edge of the program.

The edge alone turns errors into messages and exit codes. Commands are imported when they are
called: `--help` should not wait for database drivers.
"""

from __future__ import annotations

import io
import sys
import traceback
from importlib import import_module

import click

from ordermigrate import __version__
from ordermigrate.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    OrdermigrateError,
    Refused,
    UsageError,
)

COMMANDS = {
    "init": "Write a commented ordermigrate.toml.",
    "preflight": "Tell whether it can work, and what stands in the way.",
    "schema": "Derive, create, compare or verify the service's tables.",
    "prepare": "Capture the monolith's writes, fence the service off.",
    "copy": "Copy every row; goes on where it was cut off.",
    "sync": "Apply what the monolith writes, until stopped.",
    "validate": "Prove that both sides hold the same rows.",
    "cutover": "Make the service the owner of the tables.",
    "rollback": "Make the monolith the owner again.",
    "traffic": "Lead users' reads over to the service, step by step.",
    "status": "Tell where the migration stands and what comes next.",
    "cleanup": "End: back up and drop the monolith's tables, remove every trace.",
    "cancel": "Remove every trace of the migration.",
    "demo": "Show it all on two PostgreSQL servers of its own.",
}
OUTCOMES = {
    1: "bug",
    2: "usage",
    3: "refused",
    5: "unavailable",
    6: "busy",
    7: "undone",
    8: "stranded",
    EXIT_INTERRUPTED: "interrupted",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which one uses them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"ordermigrate.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 a bug, 2 usage, 3 refused, 4 different, "
    "5 unavailable (run again), 6 busy, 7 undone, 8 stranded (see the message), "
    "9 done with rows in quarantine, 130 interrupted (run again).",
)
@click.version_option(__version__, message="ordermigrate %(version)s")
def cli() -> None:
    """Move a family of tables out of a monolith's PostgreSQL into a service's own, and prove it.

    \b
    Example:
      ordermigrate init --family hub_orders
      export ORDERMIGRATE_MONOLITH_DSN=postgresql://app@monolith:5432/hub
      export ORDERMIGRATE_SERVICE_DSN=postgresql://app@orders:5432/orders
      ordermigrate copy && ordermigrate sync --until-caught-up
      ordermigrate validate --checksums
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        # Values may hold letters that the terminal's encoding lacks; that must not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = cli.main(args=given, prog_name="ordermigrate", standalone_mode=False)
    except OrdermigrateError as error:
        return _fail(given, error.exit_code, error)
    except click.ClickException as error:
        error.show(sys.stderr)
        _print_failure(given, 2, UsageError(error.format_message()))
        return 2
    except (click.Abort, KeyboardInterrupt):
        note = OrdermigrateError(
            "Interrupted",
            todo="Run the same command again; copy and sync go on where they stopped",
        )
        return _fail(given, EXIT_INTERRUPTED, note)
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        sys.stderr.close()
        return EXIT_BROKEN_PIPE
    except Exception as bug:  # noqa: BLE001  the edge of the program
        traceback.print_exc()
        said = f"A bug: {type(bug).__name__}: {bug}"
        return _fail(given, 1, OrdermigrateError(said, todo="Report it with the lines above"))
    return code if isinstance(code, int) else 0


def _fail(given: list[str], exit_code: int, error: OrdermigrateError) -> int:
    click.echo(f"ordermigrate: {error}", err=True)
    _print_failure(given, exit_code, error)
    return exit_code


def _print_failure(given: list[str], exit_code: int, error: OrdermigrateError) -> None:
    """Print the document that `--json` promises, also where there is only an error to tell."""
    if "--json" in given:
        command = next((each for each in given if each in COMMANDS), None)
        # What was wrong with the command or the configuration is wrong with `status` too.
        step = (
            f"ordermigrate {command}"
            if exit_code in {5, EXIT_INTERRUPTED}
            else "ordermigrate status"
        )
        steps = [] if exit_code == UsageError.exit_code else [step]
        document = {
            "schema": 1,
            "run": None,
            "command": command,
            "outcome": OUTCOMES.get(exit_code, "failed"),
            "exit_code": exit_code,
            "phase": None,
            "owner": None,
            "tables": [],
            "message": str(error),
            "findings": list(error.findings) if isinstance(error, Refused) else [],
            "next_steps": [{"command": each, "reason": error.todo or error.fact} for each in steps],
        }
        from ordermigrate.cli import options  # noqa: PLC0415  slow to import

        options.print_document(document)
