"""Copy rows by ordermigrate's library, and nothing else: a process that waits for its start.

It runs the copy as the command does and listens to its events. When the indexes are off the
target it says "ready" on stdout and waits for a line on stdin; when the last chunk is committed
it says "done" and is gone. In between lies what belongs to the rows: connections, snapshot, plan,
chunks, their ledger. The command line has no option for rows alone, hence this.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import uvloop

from ordermigrate import config, migration
from ordermigrate.progress import Event, IndexesDropped, RowsCopied


class _Gate:
    """Holds the copy up before its first row, and ends the process after its last one."""

    def report(self, event: Event) -> None:
        """Wait for the start, or tell of the end; the family has one table, so one event each."""
        if isinstance(event, IndexesDropped):
            _say("ready")
            if not sys.stdin.readline():
                os._exit(1)  # whoever started this has gone
        elif isinstance(event, RowsCopied):
            _say("done")
            os._exit(0)


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    chosen = config.load(Path(sys.argv[1]), dict(os.environ))
    uvloop.run(migration.copy(chosen, _Gate()))
