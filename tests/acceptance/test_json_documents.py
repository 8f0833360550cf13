"""What `--json` prints is what docs/schemas promises, key for key, in every outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.fix_orders import Hub, RunCli, WriteToml, execute_behind_fence
from tests.fix_postgres import execute

SCHEMAS = Path(__file__).parent.parent.parent / "docs" / "schemas"


def strict(schema: Any) -> Any:  # noqa: ANN401  a piece of a schema
    """Return a schema that allows no key which it does not name."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(each) for key, each in schema.items()}
    if "required" in found:
        found["additionalProperties"] = False
    return found


def check(name: str, document: dict[str, Any]) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)
    jsonschema.Draft202012Validator(strict(schema)).validate(document)


class Cli:
    """The commands of one migration, each checked against its schema."""

    def __init__(self, run_cli: RunCli, hub: Hub) -> None:
        self._run = run_cli
        self._hub = hub

    def outcome(self, *args: str, exit_code: int = 0, schema: str = "") -> str:
        done = self._run(*args, "--json", monolith=self._hub.monolith, service=self._hub.service)
        assert done.exit_code == exit_code, done.stderr
        check(schema or args[0], done.json)
        assert done.json["exit_code"] == exit_code
        return str(done.json["outcome"])


@pytest.fixture
def cli(run_cli: RunCli, hub: Hub, ordermigrate_toml: WriteToml) -> Cli:
    ordermigrate_toml()
    return Cli(run_cli, hub)


def test_every_document_of_a_migration_is_as_its_schema_says(cli: Cli, hub: Hub) -> None:
    assert cli.outcome("status") == "ok"
    assert cli.outcome("preflight") == "warned"
    assert cli.outcome("prepare", "--dry-run") == "planned"
    assert cli.outcome("prepare") == "prepared"
    assert cli.outcome("prepare") == "already_prepared"
    assert cli.outcome("copy", "--dry-run") == "planned"
    assert cli.outcome("copy") == "copied"
    assert cli.outcome("copy") == "already_copied"
    execute(hub.monolith, "UPDATE public.orders SET retry_count = 1 WHERE status = 'FAILED'")
    assert cli.outcome("status") == "ok"
    assert cli.outcome("sync", "--once") == "caught_up"
    assert cli.outcome("sync", "--until-caught-up") == "caught_up"
    assert cli.outcome("validate") == "equal"
    assert cli.outcome("validate", "--checksums") == "equal"
    execute_behind_fence(hub.service, "DELETE FROM public.orders WHERE retry_count > 0")
    execute_behind_fence(
        hub.service, "UPDATE public.orders SET failure_reason = 'x' WHERE status = 'PENDING'"
    )
    assert cli.outcome("validate", "--checksums", exit_code=4) == "different"
    assert cli.outcome("status") == "ok"
    assert cli.outcome("validate", "--repair") == "equal"
    assert cli.outcome("cutover", "--dry-run") == "planned"
    assert cli.outcome("cutover") == "done"
    assert cli.outcome("cutover") == "already_done"
    assert cli.outcome("status") == "ok"
    assert cli.outcome("sync", "--until-caught-up") == "caught_up"
    assert cli.outcome("rollback") == "done"
    assert cli.outcome("cutover", "--abort") == "nothing_to_abort"
    assert cli.outcome("traffic") == "shown"
    assert cli.outcome("traffic", "5") == "set"
    assert cli.outcome("traffic", "5") == "unchanged"
    assert cli.outcome("traffic") == "shown"
    assert cli.outcome("status") == "ok"
    assert cli.outcome("traffic", "0") == "set"
    assert cli.outcome("cancel", "--dry-run") == "planned"
    assert cli.outcome("cancel") == "cancelled"
    assert cli.outcome("cancel") == "nothing_to_cancel"


def test_an_error_is_a_document_too(cli: Cli, hub: Hub) -> None:
    execute(
        hub.service,
        "INSERT INTO public.orders VALUES (gen_random_uuid(), 1, 'X', 'LIMIT', 'BUY', 1, 1)",
    )
    assert cli.outcome("copy", exit_code=3, schema="error") == "refused"
    assert cli.outcome("copy", "--workers", "0", exit_code=2, schema="error") == "usage"
    assert cli.outcome("traffic", "7", exit_code=2, schema="error") == "usage"
    assert cli.outcome("traffic", "5", exit_code=3, schema="error") == "refused"
    assert cli.outcome("copy", "--no-such-option", exit_code=2, schema="error") == "usage"
