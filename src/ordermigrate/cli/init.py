"""`ordermigrate init`."""

from __future__ import annotations

from pathlib import Path

import click

from ordermigrate.errors import UsageError


@click.command(name="init")
@click.option(
    "--family", metavar="NAME", required=True, help="A family that comes with the program."
)
@click.option("--force", "is_forced", is_flag=True, help="Overwrite a file that is there.")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("ordermigrate.toml"),
    show_default=True,
    envvar="ORDERMIGRATE_CONFIG",
    help="The file to write.",
)
def command(family: str, path: Path, *, is_forced: bool) -> None:
    """Write a commented configuration file.

    \b
    Example:
      ordermigrate init --family hub_orders
    """
    from ordermigrate.families import find_family, list_families  # noqa: PLC0415  slow to import

    folder = find_family(family)
    if folder is None:
        raise UsageError(
            f"There is no family named {family}",
            wanted=f"One of: {', '.join(list_families())}",
            todo="Choose one of these, or write ordermigrate.toml by hand",
        )
    if path.exists() and not is_forced:
        raise UsageError(
            f"{path} is there already",
            wanted="Not to overwrite what somebody wrote",
            todo="Use --force to overwrite it, or --config FILE to write another",
        )
    try:
        path.write_text((folder / "ordermigrate.toml").read_text("utf-8"), "utf-8")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", todo="Choose another place with --config"
        ) from None
    click.echo(f"wrote {path}")
    click.echo("next: set ORDERMIGRATE_MONOLITH_DSN and ORDERMIGRATE_SERVICE_DSN, then")
    click.echo("      ordermigrate copy --dry-run")
