"""A wrong command line or configuration: one clear message, exit code 2, nothing touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.fix_orders import CliResult
from tests.fix_pairs import RunHere, assert_refused

# Nothing listens there: what is refused for its configuration must not even try to connect.
NOWHERE = "postgresql://someone:not-a-secret@127.0.0.1:1/nowhere"
GOOD = f"""
[monolith]
dsn = "{NOWHERE}"
[service]
dsn = "{NOWHERE}"
[[tables]]
name = "public.orders"
"""


@pytest.fixture
def status(run_here: RunHere, tmp_path: Path) -> CliRunner:
    return CliRunner(run_here, tmp_path / "ordermigrate.toml")


class CliRunner:
    """Runs `status` with a configuration file of any content."""

    def __init__(self, run_here: RunHere, path: Path) -> None:
        self._run_here = run_here
        self.path = path

    def __call__(self, text: str | bytes | None, *args: str) -> CliResult:
        """Write the file, unless it is None, and run."""
        if text is not None:
            self.path.write_bytes(text.encode() if isinstance(text, str) else text)
        return self._run_here(*(args or ("status",)))


def test_no_configuration_says_how_to_write_one(status: CliRunner) -> None:
    done = status(None)
    assert_refused(
        done,
        2,
        ["no configuration file ordermigrate.toml", "ordermigrate init --family hub_orders"],
    )


def test_a_named_file_that_is_not_there_is_named(run_here: RunHere) -> None:
    done = run_here("status", "--config", "elsewhere.toml")
    assert_refused(done, 2, ["elsewhere.toml"])
    done = run_here("status", env={"ORDERMIGRATE_CONFIG": "by-environment.toml"})
    assert_refused(done, 2, ["by-environment.toml"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(
            GOOD.replace("name =", "nane ="),
            ["tables[0].nane is not a key (did you mean name?)", "tables[0].name is missing"],
            id="a misspelt key of a table",
        ),
        pytest.param(
            GOOD + "[limits]\nworker = 3\n",
            ["limits.worker is not a key (did you mean workers?)"],
            id="a misspelt limit",
        ),
        pytest.param(
            GOOD + "[limits.monolith]\nmax_conections = 3\n",
            ["limits.monolith.max_conections is not a key (did you mean max_connections?)"],
            id="a misspelt limit of one side",
        ),
        pytest.param(
            GOOD + "[tables.columns.side]\nsq = 'upper(side)'\n",
            ["tables[0].columns.side.sq is not a key (did you mean sql?)"],
            id="a misspelt key of a column",
        ),
        pytest.param(
            GOOD + "[zebra]\n",
            ["zebra is not a key (known here: monolith, service, family, tables, limits, traffic)"],
            id="a key like no other",
        ),
        pytest.param(GOOD + "[[tables]\n", ["not valid TOML", "line 8"], id="not TOML"),
        pytest.param(b"\xff\xfe\x00n", ["cannot be read", "UTF-8"], id="not text"),
        pytest.param("", ["tables is missing"], id="an empty file"),
        pytest.param(
            GOOD + '[limits]\nworkers = "four"\n',
            ["limits.workers", "integer"],
            id="a word for a number",
        ),
        pytest.param(GOOD + "[limits]\nworkers = 0\n", ["limits.workers", "1"], id="no workers"),
        pytest.param(
            GOOD + "[limits]\nworkers = 30\n",
            ["30 workers", "32 connections", "monolith.max_connections allows 25"],
            id="more workers than connections",
        ),
        pytest.param(
            GOOD.replace('"public.orders"', '"orders"'),
            ["tables[0].name", "'orders'", "with its schema", "public.orders"],
            id="a table without its schema",
        ),
        pytest.param(
            GOOD.replace('"public.orders"', "17"), ["tables[0].name", "string"], id="a number"
        ),
        pytest.param(
            GOOD + '[[tables]]\nname = "public.orders"\n',
            ["public.orders stands more than once for the monolith"],
            id="a table twice",
        ),
        pytest.param(
            GOOD + '[[tables]]\nname = "public.others"\nto = "public.orders"\n',
            ["public.orders stands more than once for the service"],
            id="two tables to one",
        ),
        pytest.param(
            GOOD + "[tables.columns.a]\nsql = 'b'\nfrozen = true\n"
            "depends = { table = 'public.u', columns = ['x'], keys = 'SELECT 1' }\n",
            ["tables[0].columns.a", "either frozen or depends"],
            id="frozen and dependent at once",
        ),
        pytest.param(
            "[[tables]]\nname = 'public.orders'\n",
            ["no DSN for the monolith", "ORDERMIGRATE_MONOLITH_DSN"],
            id="no DSN",
        ),
    ],
)
def test_a_wrong_file_is_explained_by_its_key(
    status: CliRunner, text: str | bytes, says: list[str]
) -> None:
    assert_refused(status(text), 2, says)


def test_a_file_without_a_dsn_for_the_service_names_the_service(status: CliRunner) -> None:
    text = f"[monolith]\ndsn = '{NOWHERE}'\n[[tables]]\nname = 'public.orders'\n"
    assert_refused(status(text), 2, ["no DSN for the service", "ORDERMIGRATE_SERVICE_DSN"])


@pytest.mark.parametrize(
    "dsn", ["postgresql://user:sesame@host:port:5432/db", "host=a dbname", "hots=a", "a b c"]
)
def test_a_dsn_that_does_not_parse_is_refused_without_being_repeated(
    status: CliRunner, dsn: str
) -> None:
    done = status(GOOD.replace(f'"{NOWHERE}"', json.dumps(dsn), 1))
    assert_refused(done, 2, ["monolith's DSN cannot be parsed", "libpq URI", "percent-encoded"])
    assert "sesame" not in done.stderr
    assert dsn not in done.stderr


def test_a_file_that_may_not_be_read_says_so(status: CliRunner, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        status.path.mkdir()  # root may read every file, but nobody reads a directory
    else:
        status.path.write_text(GOOD)
        status.path.chmod(0)
    done = status(None)
    assert done.exit_code == 2
    assert "Traceback" not in done.stderr
    assert "ordermigrate.toml" in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("copy", "--wrokers", "3"), "--workers"),
        (("copi",), "copi"),
        (("copy", "--workers", "many"), "many"),
        (("validate", "--algorithm", "crc32"), "crc32"),
        (("validate", "--max-differences", "-1"), "-1"),
        (("init",), "--family"),
        (("status", "--log-format", "xml"), "xml"),
        (("status", "superfluous"), "superfluous"),
    ],
)
def test_a_wrong_command_line_is_explained(
    status: CliRunner, args: tuple[str, ...], says: str
) -> None:
    done = status(GOOD, *args)
    assert done.exit_code == 2
    assert says in done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr


def test_a_limit_given_as_a_flag_is_checked_like_one_in_the_file(status: CliRunner) -> None:
    assert_refused(status(GOOD, "copy", "--workers", "0"), 2, ["limits.workers"])
    assert_refused(status(GOOD, "copy", "--chunk-mib", "0"), 2, ["limits.chunk_mib"])


@pytest.mark.parametrize(
    "args",
    [
        ("status", "--json"),
        ("validate", "--json", "--checksums"),
        ("copy", "--json"),
        ("prepare", "--json"),
        ("copy", "--json", "--wrokers", "3"),
        ("validate", "--json", "--algorithm", "crc32"),
    ],
)
def test_with_json_an_error_is_one_document_too(status: CliRunner, args: tuple[str, ...]) -> None:
    done = status("[[tables]]\nname = 'public.orders'\n", *args)
    assert done.exit_code == 2
    document = done.json
    assert document["schema"] == 1
    assert document["command"] == args[0]
    assert document["outcome"] == "usage"
    assert document["exit_code"] == 2
    assert document["run"] is None
    assert document["tables"] == []
    assert document["message"]
    for step in document["next_steps"]:
        assert step.keys() == {"command", "reason"}


def test_init_writes_a_family_that_it_can_read_and_never_over_a_file(
    run_here: RunHere, tmp_path: Path
) -> None:
    assert_refused(run_here("init", "--family", "hub"), 2, ["no family named hub", "hub_orders"])
    assert run_here("init", "--family", "hub_orders").exit_code == 0
    path = tmp_path / "ordermigrate.toml"
    path.write_text(path.read_text() + "# mine\n")
    mine = path.read_text()
    assert_refused(run_here("init", "--family", "hub_orders"), 2, ["ordermigrate.toml", "--force"])
    assert path.read_text() == mine
    assert run_here("init", "--family", "hub_orders", "--force").exit_code == 0
    assert path.read_text() == mine.removesuffix("# mine\n")
    assert_refused(run_here("status"), 2, ["no DSN for the monolith"])  # so it was understood
    done = run_here("init", "--family", "hub_orders", "--config", "no/such/folder/x.toml")
    assert_refused(done, 2, ["no/such/folder/x.toml cannot be written", "No such file"])


def test_the_environment_goes_over_the_file_and_flags_over_both(status: CliRunner) -> None:
    text = GOOD.replace(NOWHERE, "not a dsn")
    assert_refused(status(text), 2, ["monolith's DSN"])
    env = {"ORDERMIGRATE_MONOLITH_DSN": NOWHERE}
    done = status._run_here("status", env=env)
    assert_refused(done, 2, ["service's DSN"])
    status.path.with_name("good.toml").write_text(GOOD + "[nonsense]\n")
    env["ORDERMIGRATE_CONFIG"] = "ordermigrate.toml"
    done = status._run_here("status", "--config", "good.toml", env=env)
    assert_refused(done, 2, ["good.toml", "nonsense"])
