"""Text that came from a runtime, made safe to send and to show."""

from __future__ import annotations

import re

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")


def clean(text: str, limit: int = 400, *, tail: bool = False) -> str:
    """One printable line of at most ``limit`` characters: no escape sequences, no control characters.

    With ``tail`` the end is kept rather than the start, as the last words of a crash say most.
    """
    text = _ESCAPES.sub(" ", text)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if len(text) <= limit:
        return text
    return "..." + text[3 - limit :] if tail else text[: limit - 3] + "..."


def error_text(error: BaseException) -> str:
    """The message of an exception, or its class where it has none."""
    return clean(str(error)) or type(error).__name__
