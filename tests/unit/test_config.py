"""The configuration: what it takes, what it refuses, and that it keeps its secrets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ordermigrate import config
from ordermigrate.config import Config
from ordermigrate.errors import UsageError
from ordermigrate.model import Side, TableName

SECRET = "s3cret-Pa55word"
DSN = f"postgresql://app:{SECRET}@localhost:5432/hub"
TABLE = '[[tables]]\nname = "public.orders"\n'
COLUMN = f"{TABLE}[tables.columns.a]\nsql = 'x'\n"
FAMILIES = Path(__file__).parents[2] / "sql" / "families"


def load(tmp_path: Path, text: str, environ: Mapping[str, str] = {}, **limits: object) -> Config:
    path = tmp_path / "given.toml"
    path.write_text(text, "utf-8")
    return config.load(path, environ, **limits)


def refusal(tmp_path: Path, text: str, environ: Mapping[str, str] = {}) -> str:
    with pytest.raises(UsageError) as refused:
        load(tmp_path, text, environ)
    assert refused.value.exit_code == 2
    return str(refused.value)


def test_the_least_that_is_needed_is_one_table_and_everything_else_has_a_default(
    tmp_path: Path,
) -> None:
    loaded = load(tmp_path, TABLE)
    (table,) = loaded.tables
    assert table.name == table.target == TableName("public", "orders")
    assert (table.where, table.columns, table.status) == ("true", {}, None)
    limits = loaded.limits
    assert (limits.workers, limits.chunk_mib, limits.max_snapshot_age_minutes) == (2, 64, 60)
    for side in Side:
        block = limits.side(side)
        assert (block.max_connections, block.min_connections, block.max_idle_minutes) == (25, 5, 10)
        assert (block.connect_timeout_seconds, block.statement_timeout_seconds) == (5, 30)


@pytest.mark.parametrize("path", sorted(FAMILIES.glob("*/ordermigrate.toml")), ids=str)
def test_the_file_of_each_family_is_valid_and_writes_out_the_defaults(path: Path) -> None:
    loaded = config.load(path, {})
    assert loaded.family == path.parent.name
    assert loaded.limits == config.Limits()


def test_the_environments_dsn_goes_over_the_files(tmp_path: Path) -> None:
    text = f'[monolith]\ndsn = "dbname=file"\n[service]\ndsn = "dbname=service"\n{TABLE}'
    environ = {"ORDERMIGRATE_MONOLITH_DSN": "dbname=environment", "ORDERMIGRATE_SERVICE_DSN": ""}
    loaded = load(tmp_path, text, environ)
    assert loaded.dsn(Side.MONOLITH) == "dbname=environment"
    assert loaded.dsn(Side.SERVICE) == "dbname=service"  # an empty variable says nothing


def test_flags_go_over_the_file_and_a_flag_not_given_does_not(tmp_path: Path) -> None:
    text = f"{TABLE}[limits]\nworkers = 3\nchunk_mib = 7\n"
    loaded = load(tmp_path, text, workers=5, chunk_mib=None)
    assert (loaded.limits.workers, loaded.limits.chunk_mib) == (5, 7)
    assert load(tmp_path, TABLE, workers=4).limits.workers == 4


def test_a_flag_is_checked_like_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"limits\.workers"):
        load(tmp_path, TABLE, workers=0)


def test_the_file_is_found_by_flag_then_environment_then_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("flag", "environment", "ordermigrate"):
        (tmp_path / f"{name}.toml").write_text(f'family = "{name}"\n{TABLE}')
    environ = {"ORDERMIGRATE_CONFIG": "environment.toml"}
    assert config.load(Path("flag.toml"), environ).family == "flag"
    assert config.load(None, environ).family == "environment"
    assert config.load(None, {}).family == "ordermigrate"


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no configuration file.*ordermigrate init"):
        config.load(tmp_path / "none.toml", {})


def test_a_file_that_is_a_directory_or_not_utf8_or_not_toml_is_one_clear_message(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        config.load(tmp_path, {})
    path = tmp_path / "latin.toml"
    path.write_bytes(b'family = "\xe9"\n')
    with pytest.raises(UsageError, match="it is not UTF-8"):
        config.load(path, {})
    assert "not valid TOML" in refusal(tmp_path, "family = \n")


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        (f'famly = "x"\n{TABLE}', "famly", "family"),
        (f'{TABLE}staus = "status"\n', "tables[0].staus", "status"),
        (f"{TABLE}[limits]\nworker = 2\n", "limits.worker", "workers"),
        (
            f"{TABLE}[limits.monolith]\nmax_conections = 9\n",
            "limits.monolith.max_conections",
            "max_connections",
        ),
        (f'{TABLE}[tables.columns.side]\nsqll = "x"\n', "tables[0].columns.side.sqll", "sql"),
        (f'[servce]\ndsn = "x"\n{TABLE}', "servce", "service"),
        (
            f"{COLUMN}depends = {{tabel = 'public.users', columns = ['a'], keys = 'x'}}\n",
            "tables[0].columns.a.depends.tabel",
            "table",
        ),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest_known_neighbour(
    tmp_path: Path, text: str, key: str, near: str
) -> None:
    said = refusal(tmp_path, text)
    assert f"{key} is not a key (did you mean {near}?)" in said


def test_an_unknown_key_like_no_other_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    said = refusal(tmp_path, f"zzz = 1\n{TABLE}")
    assert (
        "zzz is not a key (known here: monolith, service, family, tables, limits, traffic)" in said
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "tables is missing"),
        ("tables = []\n", "tables: "),
        ("[[tables]]\n", "tables[0].name is missing"),
        ('[[tables]]\nname = "orders"\n', "tables[0].name: 'orders' is not the name of a table"),
        ("[[tables]]\nname = 7\n", "tables[0].name: a table is named by a string"),
        (f"{TABLE}{TABLE}", "public.orders stands more than once for the monolith"),
        (
            f'{TABLE}[[tables]]\nname = "a.b"\nto = "PUBLIC.Orders"\n',
            "public.orders stands more than once for the service",
        ),
        (f'{TABLE}where = ""\n', "tables[0].where: "),
        (f"{TABLE}status = 1\n", "tables[0].status: "),
        (f'{TABLE}[tables.columns]\nside = ""\n', "tables[0].columns.side.sql: "),
        (f"{TABLE}[tables.columns.a]\nfrozen = true\n", "tables[0].columns.a.sql is missing"),
        (
            f"{COLUMN}frozen = true\ndepends = {{table = 'a.b', columns = ['a'], keys = 'x'}}\n",
            "either frozen or depends",
        ),
        (
            f"{COLUMN}depends = {{table = 'public.u', columns = [], keys = 'x'}}\n",
            "tables[0].columns.a.depends.columns: ",
        ),
        (f"{TABLE}[limits]\nworkers = 0\n", "limits.workers: "),
        (f"{TABLE}[limits]\nworkers = 65\n", "limits.workers: "),
        (f'{TABLE}[limits]\nworkers = "2"\n', "limits.workers: "),
        (f"{TABLE}[limits]\nworkers = 2.0\n", "limits.workers: "),
        (f"{TABLE}[limits]\nworkers = true\n", "limits.workers: "),
        (f"{TABLE}[limits]\nchunk_mib = 0\n", "limits.chunk_mib: "),
        (f"{TABLE}[limits]\nmax_snapshot_age_minutes = 0\n", "limits.max_snapshot_age_minutes: "),
        (f"{TABLE}[limits]\nstall_timeout_seconds = nan\n", "limits.stall_timeout_seconds: "),
        (f"{TABLE}[limits]\nstall_timeout_seconds = inf\n", "limits.stall_timeout_seconds: "),
        (f"{TABLE}[limits]\nretry_deadline_seconds = -1\n", "limits.retry_deadline_seconds: "),
        (f"{TABLE}[limits]\nworkers = 24\n", "monolith.max_connections allows 25"),
        (
            f"{TABLE}[limits.service]\nmin_connections = 9\nmax_connections = 8\n",
            "service.min_connections is more than service.max_connections",
        ),
        (f"{TABLE}[monolith]\ndsn = 7\n", "monolith.dsn: "),
    ],
)
def test_what_cannot_be_is_said_with_the_full_path_of_its_key(
    tmp_path: Path, text: str, said: str
) -> None:
    assert said in refusal(tmp_path, text)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, f"famly = 1\n{TABLE}[limits]\nworkers = 0\nchunk_mib = 0\n")
    for key in ("famly", "limits.workers", "limits.chunk_mib"):
        assert key in said


def test_the_short_form_of_a_column_is_its_expression(tmp_path: Path) -> None:
    short = load(tmp_path, f'{TABLE}[tables.columns]\nside = "upper(order_side)"\n')
    long = load(tmp_path, f'{TABLE}[tables.columns.side]\nsql = "upper(order_side)"\n')
    assert short == long
    assert short.tables[0].columns["side"].sql == "upper(order_side)"


def test_a_missing_dsn_names_its_variable(tmp_path: Path) -> None:
    loaded = load(tmp_path, f'[service]\ndsn = "  "\n{TABLE}')
    with pytest.raises(UsageError, match="ORDERMIGRATE_MONOLITH_DSN"):
        loaded.dsn(Side.MONOLITH)
    with pytest.raises(UsageError, match="ORDERMIGRATE_SERVICE_DSN"):
        loaded.dsn(Side.SERVICE)


def test_a_password_is_in_no_text_that_the_configuration_gives_of_itself(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, f'[monolith]\ndsn = "{DSN}"\n{TABLE}', {"ORDERMIGRATE_SERVICE_DSN": DSN}
    )
    for text in (
        repr(loaded),
        str(loaded),
        f"{loaded.monolith}",
        loaded.monolith.model_dump_json(),
    ):
        assert SECRET not in text
    assert SECRET in loaded.dsn(Side.MONOLITH)


@pytest.mark.parametrize(
    "text",
    [
        f'[monolith]\ndsn = "{DSN}"\nfoo = 1\n{TABLE}',
        f'[monolith]\ndsn = ["{DSN}"]\n{TABLE}',
        f'monolith = "{DSN}"\n{TABLE}',
        f'[monolith]\ndsn = {{ uri = "{DSN}" }}\n{TABLE}',
        f'[monolith]\ndsn = "{DSN}"\n[[tables]]\nname = 1\n',
        f'[monolith]\ndsn = "{DSN}\n{TABLE}',
        f"[monolith]\ndsn = {DSN}\n{TABLE}",
    ],
)
def test_a_password_is_in_no_message_about_a_wrong_file(tmp_path: Path, text: str) -> None:
    said = refusal(tmp_path, text, {"ORDERMIGRATE_SERVICE_DSN": DSN})
    assert SECRET not in said


def test_the_error_of_a_wrong_file_leads_back_to_no_other_that_holds_the_secret(
    tmp_path: Path,
) -> None:
    # A traceback would print the whole chain.
    with pytest.raises(UsageError) as refused:
        load(tmp_path, f'[monolith]\ndsn = ["{DSN}"]\n{TABLE}')
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_the_environment_that_is_read_is_the_processs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERMIGRATE_CONFIG", "here.toml")
    assert config.environment()["ORDERMIGRATE_CONFIG"] == "here.toml"
