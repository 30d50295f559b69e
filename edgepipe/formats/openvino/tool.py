"""NNCF without torch beside it."""

from __future__ import annotations

import sys
from typing import Any


def load_nncf() -> Any:
    """The module ``nncf``. Where torch was not imported yet, this process will not import it any more.

    NNCF imports torch wherever it is installed: 1.3 s and 180 MB that OpenVINO files have no use for. So call this in
    a child process that does nothing else.
    """
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]  # as the import system marks what can't be imported
    import nncf

    return nncf
