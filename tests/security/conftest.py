from __future__ import annotations

from tests.faults.conftest import board, own_home

__all__ = ["board", "own_home"]
