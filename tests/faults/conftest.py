"""What the fault tests share."""

from __future__ import annotations

from tests.faults.fix_copying import make_copying

__all__ = ["make_copying"]
