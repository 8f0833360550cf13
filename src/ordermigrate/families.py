"""The families of tables that come with the program: SQL that people run or read."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

_INCLUDED = re.compile(r"^\\ir (\S+)$", re.MULTILINE)


def find_family(name: str) -> Path | None:
    """Return the folder of a family's SQL, in the installed package or in a checkout."""
    installed = Path(str(resources.files("ordermigrate"))) / "families" / name
    checkout = Path(__file__).parents[2] / "sql" / "families" / name
    return next((folder for folder in (installed, checkout) if folder.is_dir()), None)


def list_families() -> list[str]:
    """Return the names of the families that `init` knows."""
    package = Path(str(resources.files("ordermigrate")))
    for folder in (package / "families", Path(__file__).parents[2] / "sql" / "families"):
        if folder.is_dir():
            return sorted(each.name for each in folder.iterdir() if each.is_dir())
    return []


def read_script(path: Path) -> str:
    r"""Return a family's SQL as one text, with the files that it takes in by psql's `\ir`."""
    return _INCLUDED.sub(
        lambda found: read_script(path.parent / found[1]).rstrip("\n"), path.read_text("utf-8")
    )
