"""Where edgepipe keeps what it keeps: results, board homes and pins (precious), the work cache (not), shipped data."""

from __future__ import annotations

import os
from pathlib import Path


def data_home() -> Path:
    """Results, pinned host keys and the homes of the built-in boards: ``$EDGEPIPE_HOME``, else the XDG data folder."""
    home = os.environ.get("EDGEPIPE_HOME")
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) if home else Path(base) / "edgepipe"


def cache_home() -> Path:
    """Work that can be made again: ``$EDGEPIPE_CACHE``, else below ``$EDGEPIPE_HOME``, else the XDG cache folder."""
    cache, home = os.environ.get("EDGEPIPE_CACHE"), os.environ.get("EDGEPIPE_HOME")
    if cache:
        return Path(cache)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "cache" if home else Path(base) / "edgepipe"


def config_home() -> Path:
    """The user's own targets: the XDG configuration folder."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgepipe"


def search(kind: str) -> list[Path]:
    """Folders that may hold ``kind`` ("targets" or "models"), first match wins: working folder, user's, shipped."""
    package = Path(__file__).parent
    shipped = package / "_shipped" / kind
    checkout = package.parent / kind
    return [Path.cwd() / kind, config_home() / kind, shipped if shipped.is_dir() else checkout]
