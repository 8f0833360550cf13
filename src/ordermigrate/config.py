"""The configuration: `ordermigrate.toml` and the environment, checked before anything is touched.

Flags win over the environment, the environment over the file. What is wrong is said with the
key's full path; a key that does not exist is said with the nearest one that does. A DSN is kept
as a secret: its text never appears in a message, a log or a `repr`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from ordermigrate.errors import UsageError
from ordermigrate.model import Side, TableName

DEFAULT_FILE = "ordermigrate.toml"
DSN_VARIABLES = {
    Side.MONOLITH: "ORDERMIGRATE_MONOLITH_DSN",
    Side.SERVICE: "ORDERMIGRATE_SERVICE_DSN",
}


def _read_table_name(value: object) -> TableName:
    if isinstance(value, TableName):
        return value
    if not isinstance(value, str):
        message = 'a table is named by a string such as "public.orders"'
        raise ValueError(message)  # noqa: TRY004  pydantic turns ValueError into its message
    return TableName.parse(value)


Qualified = Annotated[TableName, PlainValidator(_read_table_name)]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class Depends(_Strict):
    """What a column expression reads besides its own row, so that changes there are noticed."""

    table: Qualified = Field(description="The other table.")
    columns: list[str] = Field(min_length=1, description="Its columns that the expression reads.")
    keys: str = Field(
        min_length=1,
        description="A query for the keys of the table's rows that change with a row of the other; "
        "`changed` holds that one's primary key.",
    )


class ColumnRule(_Strict):
    """A target column that is computed on the source."""

    sql: str = Field(min_length=1, description="An expression over the monolith's row.")
    depends: Depends | None = Field(
        default=None, description="What else it reads, so that sync follows changes there."
    )
    frozen: bool = Field(
        default=False, description="Copied once and left out of comparisons, which is reported."
    )

    @model_validator(mode="after")
    def _one_way_to_stay_right(self) -> Self:
        if self.frozen and self.depends is not None:
            message = "is either frozen or depends on another table, not both"
            raise ValueError(message)
        return self


class TableConfig(_Strict):
    """One table of the family."""

    name: Qualified = Field(
        description="The table on the monolith, with its schema; quoted inside the string as in "
        "SQL where it has capitals or spaces."
    )
    to: Qualified | None = Field(
        default=None, description="The table on the service; the same name when left out."
    )
    status: str | None = Field(
        default=None, description="Column of the service's table for the status distribution."
    )
    user: str | None = Field(
        default=None, description="Column for the order count per user, and for orphans."
    )
    created: str | None = Field(default=None, description="Column for the latest orders.")
    updated: str | None = Field(
        default=None,
        description="Column that says when a row changed, for `rollback --since`; `created`, too.",
    )
    where: str = Field(
        default="true", min_length=1, description="Only these rows are copied and compared."
    )
    missing_partition: Literal["create", "stop"] = Field(
        default="stop",
        description="What sync does where the side that it writes to has no partition for a row: "
        "create one as wide as its neighbours (ranges of one column), or stop and say which.",
    )
    columns: dict[str, ColumnRule] = Field(
        default_factory=dict,
        description="By the service's column name: an SQL expression over the monolith's row, or "
        "a table with the keys below.",
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {
            name: {"sql": rule} if isinstance(rule, str) else rule for name, rule in value.items()
        }

    @property
    def target(self) -> TableName:
        """The table's name on the service."""
        return self.to or self.name


class SideConfig(_Strict):
    """How one database is reached."""

    dsn: SecretStr | None = Field(
        default=None,
        description="libpq URI or keyword string; `service=` and password files work.",
    )


class SideLimits(_Strict):
    """What our sessions on one side may cost it."""

    max_connections: int = Field(default=25, ge=3, description="The most connections open at once.")
    min_connections: int = Field(
        default=5, ge=0, description="To come: how many are kept open when idle."
    )
    max_idle_minutes: float = Field(
        default=10,
        gt=0,
        description="To come: an idle one above that number is closed after this.",
    )
    connect_timeout_seconds: float = Field(
        default=5, gt=0, description="How long a connection may take to open."
    )
    statement_timeout_seconds: float = Field(
        default=30,
        gt=0,
        description="The limit of a control statement; streams have stall_timeout_seconds.",
    )


class Limits(_Strict):
    """The limits that a migration keeps."""

    workers: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Chunks copied, and indexes built, at the same time.",
    )
    chunk_mib: int = Field(
        default=64, ge=1, le=65536, description="Size of a chunk on the monolith's disk, in MiB."
    )
    max_snapshot_age_minutes: float = Field(
        default=60,
        gt=0,
        description="Age at which a copy lets its snapshot go and takes a new one, and beyond "
        "which no statement of a validation goes on.",
    )
    max_lag_seconds: float = Field(
        default=5,
        gt=0,
        description="How far behind the service may be where more reads are to go to it; where it "
        "stays so, sync leads all of them back. At a change of owner, how far the other side may.",
    )
    max_pause_seconds: float = Field(
        default=5,
        gt=0,
        description="How long a change of owner may keep writers waiting; then it is undone.",
    )
    validation_age_minutes: float = Field(
        default=60,
        gt=0,
        description="How old the last validation may be where more reads are to go to the service, "
        "and at a cutover.",
    )
    lock_timeout_seconds: float = Field(
        default=30, gt=0, description="How long to wait for a lock before giving up."
    )
    stall_timeout_seconds: float = Field(
        default=60, gt=0, description="A stream that has not moved for this long counts as cut."
    )
    cleanup_after_days: float = Field(
        default=30,
        ge=0,
        description="How long the service has to have owned the tables before `cleanup` removes "
        "the monolith's.",
    )
    cleanup_wait_hours: float = Field(
        default=24,
        ge=0,
        description="How long `cleanup` leaves the monolith's tables under another name before "
        "it drops them.",
    )
    retry_deadline_seconds: float = Field(
        default=60,
        ge=0,
        description="How long in all to try again without progress when a database is unavailable.",
    )
    monolith: SideLimits = SideLimits()
    service: SideLimits = SideLimits()

    def side(self, side: Side) -> SideLimits:
        """Return the block of one side."""
        return self.monolith if side is Side.MONOLITH else self.service

    @model_validator(mode="after")
    def _workers_fit(self) -> Self:
        for side in Side:
            block = self.side(side)
            if block.min_connections > block.max_connections:
                message = f"{side}.min_connections is more than {side}.max_connections"
                raise ValueError(message)
            if self.workers + 2 > block.max_connections:
                message = (
                    f"{self.workers} workers and 2 control connections need "
                    f"{self.workers + 2} connections; {side}.max_connections allows "
                    f"{block.max_connections}"
                )
                raise ValueError(message)
        return self


class TrafficConfig(_Strict):
    """Who asks where to read."""

    readers: list[str] = Field(
        default_factory=list,
        description="Roles of applications that may ask, on either side, whether a user's reads go "
        "to the service; as the catalog spells them.",
    )


class Config(_Strict):
    """The whole configuration."""

    monolith: SideConfig = SideConfig()
    service: SideConfig = SideConfig()
    family: str | None = Field(
        default=None,
        description="A family that comes with the program: its SQL creates the service's tables "
        "where there are none.",
    )
    tables: list[TableConfig] = Field(min_length=1)
    limits: Limits = Limits()
    traffic: TrafficConfig = TrafficConfig()

    @model_validator(mode="after")
    def _each_table_once(self) -> Self:
        for names, where in (
            ([table.name for table in self.tables], "the monolith"),
            ([table.target for table in self.tables], "the service"),
        ):
            twice = sorted({str(name) for name in names if names.count(name) > 1})
            if twice:
                message = f"{', '.join(twice)} stands more than once for {where}"
                raise ValueError(message)
        return self

    def dsn(self, side: Side) -> str:
        """Return the DSN of one side. It may hold a password: never print, log or store it.

        Raises:
            UsageError: There is none.

        """
        secret = (self.monolith if side is Side.MONOLITH else self.service).dsn
        if secret is None or not secret.get_secret_value().strip():
            raise UsageError(
                f"There is no DSN for the {side}",
                wanted="Both databases have to be named",
                todo=f"Set {DSN_VARIABLES[side]}, or dsn under [{side}] in {DEFAULT_FILE}",
            )
        return secret.get_secret_value()


def load(path: Path | None, environ: Mapping[str, str], **limits: object) -> Config:
    """Read the configuration file, lay environment and flags over it, and check it.

    Args:
        path: The file from `--config`; otherwise `ORDERMIGRATE_CONFIG`, otherwise
            `ordermigrate.toml` in the working directory.
        environ: The process's environment.
        limits: Values of flags for keys of `[limits]`; None stands for a flag not given.

    Raises:
        UsageError: The file is missing, is not TOML, or says something that cannot be.

    """
    given = path or Path(environ.get("ORDERMIGRATE_CONFIG") or DEFAULT_FILE)
    document = _read_toml(given)
    for side, variable in DSN_VARIABLES.items():
        if environ.get(variable):
            block = document.setdefault(side.value, {})
            if isinstance(block, dict):
                block["dsn"] = environ[variable]
    chosen = {key: value for key, value in limits.items() if value is not None}
    if chosen:
        block = document.setdefault("limits", {})
        if isinstance(block, dict):
            block.update(chosen)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise UsageError(
            f"{given} cannot be used: " + "; ".join(_explain(error)),
            todo="Correct the file; `ordermigrate init` writes a commented one to compare with",
        ) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"There is no configuration file {path}",
            wanted="A file that names the tables of the family and the two databases",
            todo="Write one with `ordermigrate init --family hub_orders`, or name yours with "
            "--config FILE or ORDERMIGRATE_CONFIG",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(
            f"The configuration file {path} cannot be read: {reason}",
            todo="Check its permissions and that it is a text file",
        ) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}", todo="Correct the line that it names"
        ) from None


def _explain(error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_input=False):
        location = detail["loc"]
        key = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in location
        ).lstrip(".")
        if detail["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            yield f"{key} is not a key ({hint})"
        elif detail["type"] == "missing":
            yield f"{key} is missing"
        else:
            said = detail["msg"].removeprefix("Value error, ")
            yield f"{key or 'the file'}: {said[:1].lower()}{said[1:]}"


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    rest = list(path)
    while rest:
        part = rest.pop(0)
        if isinstance(part, int) or part not in model.model_fields:
            continue
        annotation = model.model_fields[part].annotation
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def environment() -> Mapping[str, str]:
    """Return the process's environment; the one place that reads it."""
    return os.environ
