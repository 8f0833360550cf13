"""A change of owner under way: between which sides, of which tables, by whom."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ordermigrate import catalog
from ordermigrate.commits import Transaction
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.model import Direction, OwnTrigger, Side, Table, TableMap
from ordermigrate.progress import Reporter


@dataclass(frozen=True, slots=True)
class Stand:
    """One side's tables, and the triggers of ours on them."""

    tables: list[Table]
    triggers: list[OwnTrigger]


@dataclass(slots=True)
class Change:
    """A change of owner under way: between which sides, of what, by whom."""

    config: Config
    direction: Direction
    run: str
    epoch: int
    maps: list[TableMap]
    source: Stand
    target: Stand
    max_pause_seconds: float
    reporter: Reporter
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    notes: list[str] = field(default_factory=list)
    # Until when the writers may wait, by the monotonic clock; known once they do.
    end: float = 0.0
    # Our triggers as the change has left them, on each side.
    switched: dict[Side, list[OwnTrigger]] = field(default_factory=dict)

    @property
    def names(self) -> dict[Side, list[Any]]:
        """The family's names on each side."""
        return {
            self.direction.source: [each.name for each in self.source.tables],
            self.direction.target: [each.name for each in self.target.tables],
        }

    def intent(self, let_go: Transaction | None, number: int) -> str:
        """Return what is written down of it, as JSON."""
        return json.dumps(
            {
                "token": self.token,
                "direction": self.direction.value,
                "epoch": self.epoch,
                "round": number,
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "transaction": let_go
                and {"pid": let_go.pid, "xid": let_go.xid, "timeline": let_go.timeline},
            }
        )


async def look(session: Session, tables: list[Table]) -> Stand:
    """Read the triggers of ours on a side's tables."""
    return Stand(tables, await catalog.read_own_triggers(session))
