"""From an empty directory to proved equal, by the real program: what a newcomer would do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.fix_orders import (
    FAMILY,
    CliResult,
    Hub,
    MakeHub,
    RunCli,
    WriteToml,
    add_orders,
    execute_behind_fence,
    identical,
)
from tests.fix_pairs import RunHere, dsns, picture
from tests.fix_postgres import MakeDatabase, execute

ORDERS = 3_000

# docs and CLI.md promise these keys; more may be added.
STEPS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"command": {"type": "string"}, "reason": {"type": "string"}},
        "required": ["command", "reason"],
    },
}
DOCUMENT: Mapping[str, Any] = {
    "type": "object",
    "required": [
        "schema",
        "run",
        "command",
        "outcome",
        "exit_code",
        "phase",
        "owner",
        "tables",
        "next_steps",
    ],
    "properties": {
        "schema": {"const": 1},
        "run": {"type": ["string", "null"]},
        "command": {"enum": ["prepare", "copy", "sync", "validate", "status"]},
        "outcome": {"type": "string"},
        "exit_code": {"type": "integer"},
        "phase": {"enum": ["new", "prepared", "copying", "copied", "syncing"]},
        "owner": {"enum": ["monolith", "service", "none"]},
        "tables": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "to"],
                "properties": {
                    "name": {"type": "string"},
                    "to": {"type": "string"},
                    "rows": {"type": "integer"},
                },
            },
        },
        "next_steps": STEPS,
    },
}
VALUE = {"type": ["string", "null"]}
OF_TABLES: Mapping[str, Mapping[str, Any]] = {
    "prepare": {"required": ["name"]},
    "copy": {"required": ["name", "rows", "bytes"], "properties": {"bytes": {"type": "integer"}}},
    "status": {
        "required": ["name", "rows", "copied_rows", "total_rows_estimate"],
        "properties": {
            "copied_rows": {"type": "integer"},
            "total_rows_estimate": {"type": "integer"},
        },
    },
    "sync": {"required": ["name", "to"]},
    "validate": {
        "required": ["name", "rows", "source_rows", "target_rows", "checks", "differences"],
        "properties": {
            "source_rows": {"type": "integer"},
            "target_rows": {"type": "integer"},
            "differences_total": {"type": "integer"},
            "checks": {
                "type": "array",
                "minItems": 5,
                "items": {
                    "type": "object",
                    "required": ["name", "outcome", "summary", "details", "seconds"],
                    "properties": {
                        "name": {"type": "string"},
                        "outcome": {"enum": ["equal", "different", "attention", "skipped"]},
                        "summary": {"type": "string"},
                        "details": {"type": "array", "items": {"type": "object"}},
                        "seconds": {"type": "number"},
                    },
                },
            },
            "differences": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["key", "kind", "columns"],
                    "properties": {
                        "key": {"type": "object", "additionalProperties": VALUE},
                        "kind": {"enum": ["missing", "extra", "changed"]},
                        "columns": {
                            "type": "object",
                            "additionalProperties": {
                                "type": "object",
                                "required": ["source", "target"],
                                "properties": {"source": VALUE, "target": VALUE},
                            },
                        },
                    },
                },
            },
        },
    },
}
OF_COMMAND: Mapping[str, Mapping[str, Any]] = {
    "prepare": {},
    "copy": {"required": ["seconds"], "properties": {"seconds": {"type": "number"}}},
    "sync": {
        "required": ["rounds", "changes", "written", "deleted", "seconds"],
        "properties": {
            name: {"type": "integer"} for name in ("rounds", "changes", "written", "deleted")
        },
    },
    "validate": {
        "required": ["algorithm", "seconds"],
        "properties": {
            "algorithm": {"type": ["string", "null"]},
            "seconds": {"type": "number"},
            "notes": {"type": "array", "items": {"type": "string"}},
        },
    },
    "status": {
        "required": ["copied_rows", "total_rows_estimate", "last_validation"],
        "properties": {
            "copied_rows": {"type": "integer"},
            "total_rows_estimate": {"type": "integer"},
            "last_validation": {
                "type": ["object", "null"],
                "required": ["verdict", "algorithm", "finished_at", "age_seconds", "is_void"],
            },
        },
    },
}


def read_document(done: CliResult) -> dict[str, Any]:
    """Return the one document on stdout, after a look at every promise that is made of it."""
    document: dict[str, Any] = json.loads(done.stdout)  # which fails if there is anything else
    command = done.args[0]
    assert done.exit_code == document["exit_code"], done.stderr
    jsonschema.validate(document, DOCUMENT)
    jsonschema.validate(document, OF_COMMAND[command])
    assert document["command"] == command
    for table in document["tables"]:
        jsonschema.validate(table, OF_TABLES[command])
    for step in document["next_steps"]:
        assert step["command"].startswith("ordermigrate ")
        assert "--restart" not in step["command"]
    assert "Traceback" not in done.stderr
    return document


@pytest.fixture
def empty_service(hub: Hub, make_database: MakeDatabase) -> Hub:
    """A monolith with orders, and a service's database in which there is nothing yet."""
    return Hub(hub.monolith, make_database("service"))


@pytest.mark.matrix
def test_a_newcomer_moves_a_hub_with_a_few_commands(
    run_cli: RunCli, empty_service: Hub, tmp_path: Path
) -> None:
    """init, copy, sync, validate, status: words for people, exit codes for programs."""
    hub = empty_service
    both = dsns(hub)
    ((rows,),) = execute(hub.monolith, "SELECT count(*) FROM public.orders")
    sums = "SELECT count(*), sum(quantity), max(updated_at) FROM public.orders"
    sums_before = execute(hub.monolith, sums)

    done = run_cli("init", "--family", "hub_orders")
    assert (done.exit_code, (tmp_path / "ordermigrate.toml").is_file()) == (0, True)
    assert "ORDERMIGRATE_MONOLITH_DSN" in done.stdout

    done = run_cli("status", **both)
    assert done.exit_code == 0
    assert "none yet" in done.stdout
    assert "ordermigrate copy" in done.stdout

    done = run_cli("copy", **both)
    assert done.exit_code == 0, done.stderr
    assert f"copied: public.orders to public.orders, {rows:,} rows" in done.stdout
    assert "rows/s" in done.stderr
    assert "idx_orders_symbol_status" in done.stderr
    assert "ordermigrate sync" in done.stdout
    assert execute(hub.monolith, sums) == sums_before

    # What the monolith writes meanwhile is brought after it.
    add_orders(hub.monolith, orders=100, first=rows + 1)
    done = run_cli("sync", "--until-caught-up", **both)
    assert done.exit_code == 0, done.stderr
    assert "caught up: 100 changes" in done.stdout
    assert "100 rows written, 0 deleted" in done.stdout
    assert "ordermigrate validate --checksums" in done.stdout
    copied, rows = rows, rows + 100

    done = run_cli("validate", "--checksums", **both)
    assert done.exit_code == 0, done.stdout
    assert f"EQUAL: {rows:,} rows of the monolith, every row compared by md5" in done.stdout

    done = run_cli("status", **both)
    assert done.exit_code == 0
    assert "syncing" in done.stdout
    assert "equal" in done.stdout

    # The three standing checks.
    assert identical(hub.monolith, hub.service)
    assert execute(
        hub.service,
        "SELECT sum(copied_rows)::bigint, count(*) = count(copied_at) FROM ordermigrate.chunk",
    ) == [(copied, True)]
    assert read_document(run_cli("validate", "--checksums", "--json", **both))["outcome"] == "equal"

    # The schema is the family's, whole.
    wanted = execute(
        hub.service,
        "SELECT (SELECT count(*) FROM pg_indexes WHERE tablename = 'orders'), (SELECT count(*) "
        "FROM pg_constraint WHERE conrelid = 'public.orders'::regclass AND contype IN ('c', 'p'))",
    )
    assert wanted == [(7, 7)]


def test_each_document_is_one_on_stdout_with_the_promised_keys(
    run_here: RunHere, ordermigrate_toml: WriteToml, make_hub: MakeHub
) -> None:
    hub = make_hub(users=20, orders=ORDERS)
    ordermigrate_toml(limits={"chunk_mib": 1})
    both = dsns(hub)

    def run(*args: str) -> dict[str, Any]:
        return read_document(run_here(*args, "--json", **both))

    document = run("status")
    assert (document["run"], document["phase"], document["owner"]) == (None, "new", "monolith")
    assert document["copied_rows"] == 0
    assert document["total_rows_estimate"] == ORDERS

    assert run("prepare", "--dry-run")["outcome"] == "planned"
    document = run("prepare")
    assert (document["outcome"], document["phase"]) == ("prepared", "prepared")
    the_run = document["run"]
    assert run("prepare")["outcome"] == "already_prepared"

    assert run("copy", "--dry-run")["outcome"] == "planned"
    document = run("copy")
    assert (document["outcome"], document["phase"], document["run"]) == (
        "copied",
        "copied",
        the_run,
    )
    assert document["tables"][0]["rows"] == ORDERS
    assert document["next_steps"][0]["command"] == "ordermigrate sync"
    assert run("copy")["outcome"] == "already_copied"

    document = run("validate")
    assert (document["outcome"], document["algorithm"]) == ("equal", None)
    document = run("validate", "--checksums")
    assert (document["outcome"], document["algorithm"], document["run"]) == (
        "equal",
        "md5",
        the_run,
    )
    (table,) = document["tables"]
    assert (table["source_rows"], table["target_rows"]) == (ORDERS, ORDERS)

    document = run("status")
    assert (document["phase"], document["owner"]) == ("copied", "monolith")
    assert document["copied_rows"] == document["total_rows_estimate"] == ORDERS
    assert document["last_validation"]["verdict"] == "equal"
    assert document["tables"][0]["copied_rows"] == ORDERS

    execute(hub.monolith, "UPDATE public.orders SET retry_count = 7 WHERE user_id = 1")
    document = run("sync", "--until-caught-up")
    assert (document["outcome"], document["phase"]) == ("caught_up", "syncing")
    assert document["changes"] == document["written"] > 0
    assert run("sync", "--once")["changes"] == 0

    execute_behind_fence(hub.service, "UPDATE public.orders SET retry_count = 77 WHERE user_id = 1")
    document = run("validate", "--checksums", "--max-differences", "3")
    assert (document["outcome"], document["exit_code"]) == ("different", 4)
    assert len(document["tables"][0]["differences"]) == 3
    assert run("status")["last_validation"]["verdict"] == "different"


def test_a_command_that_has_been_done_says_so_and_changes_nothing(
    run_here: RunHere, ordermigrate_toml: WriteToml, make_hub: MakeHub
) -> None:
    hub = make_hub(users=3, orders=40)
    ordermigrate_toml()
    both = dsns(hub)
    for args, says in (
        (("prepare",), "already prepared"),
        (("copy",), "already copied"),
        (("prepare",), "already prepared"),
        (("copy",), "already copied"),
    ):
        assert run_here(*args, **both).exit_code == 0
        before = picture(hub.monolith), picture(hub.service)
        done = run_here(*args, **both)
        assert done.exit_code == 0
        assert says in done.stdout
        assert (picture(hub.monolith), picture(hub.service)) == before
    for _ in range(2):
        done = run_here("sync", "--until-caught-up", **both)
        assert done.exit_code == 0
        assert "caught up: 0 changes in 0 rounds" in done.stdout
    assert identical(hub.monolith, hub.service)


def test_a_dry_run_tells_the_steps_and_changes_nothing(
    run_here: RunHere, ordermigrate_toml: WriteToml, hub: Hub, tmp_path: Path
) -> None:
    ordermigrate_toml()
    both = dsns(hub)

    def plan(command: str, *says: str) -> None:
        before = picture(hub.monolith), picture(hub.service)
        done = run_here(command, "--dry-run", **both)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.startswith("would:")
        missing = [part for part in says if part not in done.stdout]
        assert not missing, done.stdout
        assert (picture(hub.monolith), picture(hub.service)) == before

    copying = ("drop 7 indexes", "copy ~5,000 rows of public.orders", "binary", "statistics")
    plan("prepare", "create the schema ordermigrate", "trigger_orders_updated_at")
    plan("copy", "create the schema ordermigrate", *copying)
    assert run_here("prepare", **both).exit_code == 0
    plan("copy", *copying)
    assert run_here("copy", **both).exit_code == 0
    plan("copy", "nothing: every row is copied already")
    before = picture(hub.service)
    done = run_here("copy", "--dry-run", "--restart", **both)
    assert "remove what earlier attempts have copied" in done.stdout
    assert picture(hub.service) == before


def test_a_dry_run_on_an_empty_service_creates_nothing(
    run_here: RunHere, empty_service: Hub, tmp_path: Path
) -> None:
    hub = empty_service
    run_here("init", "--family", "hub_orders")
    before = picture(hub.monolith), picture(hub.service)
    for command in ("prepare", "copy"):
        done = run_here(command, "--dry-run", monolith=hub.monolith, service=hub.service)
        assert done.exit_code == 0, done.stderr
        assert "create the service's tables by the family hub_orders" in done.stdout
    assert (picture(hub.monolith), picture(hub.service)) == before


def test_a_dry_run_tells_what_would_stop_the_command(
    run_here: RunHere, ordermigrate_toml: WriteToml, make_hub: MakeHub
) -> None:
    hub = make_hub(users=3, orders=10)
    execute(
        hub.service,
        "INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity) "
        "VALUES (gen_random_uuid(), 1, 'X', 'MARKET', 'BUY', 1)",
    )
    ordermigrate_toml()
    for command in ("prepare", "copy"):
        done = run_here(command, "--dry-run", monolith=hub.monolith, service=hub.service)
        assert done.exit_code == 3
        assert "public.orders on the service is not empty" in done.stderr


def test_the_installed_program_is_the_same_as_the_module(run_cli: RunCli) -> None:
    import subprocess  # noqa: PLC0415  the one place that runs the script
    import sys  # noqa: PLC0415

    script = Path(sys.executable).with_name("ordermigrate")
    if not script.exists():
        pytest.skip("ordermigrate is not installed as a script")
    for args in (["--version"], ["--help"], ["copy", "--help"]):
        installed = subprocess.run([script, *args], check=True, capture_output=True, text=True)
        assert installed.stdout == run_cli(*args, env={"COLUMNS": "80"}).stdout


@pytest.mark.parametrize(
    "command", ["init", "prepare", "copy", "sync", "validate", "status", "cancel"]
)
def test_help_has_an_example_that_stands_as_it_was_written(run_here: RunHere, command: str) -> None:
    done = run_here(command, "--help")
    assert done.exit_code == 0
    assert "Example:" in done.stdout
    assert "\n    ordermigrate " + command in done.stdout
    assert "\\b" not in done.stdout
    assert done.stderr == ""


def test_a_family_can_be_moved_whose_files_lie_in_the_package(
    run_here: RunHere, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """An empty hub: 0 rows are copied, compared and told as such."""
    monolith = make_database("monolith", script=(FAMILY / "monolith.sql").read_text())
    service = make_database("service")
    run_here("init", "--family", "hub_orders")
    assert run_here("copy", monolith=monolith, service=service).exit_code == 0
    done = run_here("validate", "--checksums", monolith=monolith, service=service)
    assert done.exit_code == 0
    assert "0 rows compared" in done.stdout
    add_orders(monolith, users=2, orders=5)
    done = run_here("validate", "--checksums", monolith=monolith, service=service)
    assert done.exit_code == 0
    assert "5 rows of the monolith" in done.stdout
    assert identical(monolith, service)
