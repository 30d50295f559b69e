"""The agent as one file: a zip that Python runs. The same sources always give the same bytes."""

from __future__ import annotations

import hashlib
import io
import threading
import tokenize
import zipfile
from functools import cache
from pathlib import Path

# The oldest date a zip can bear.
_DATE = (1980, 1, 1, 0, 0, 0)
_MAIN = "zipmain.py"
_packing = threading.Lock()


def agent_zipapp() -> tuple[bytes, str]:
    """The zipapp of the agent and its sha256 in hex. Start it with ``python3 FILE serve``."""
    with _packing:  # a fleet greets dozens of boards at once, and each would make it anew
        return packed()


@cache
def packed() -> tuple[bytes, str]:
    """As `agent_zipapp`, for one thread alone."""
    package = Path(__file__).parent
    sources = [package / f"{name}.py" for name in ("__init__", "codec", "errors", "schema")]
    sources += (package / "agent").rglob("*.py")
    texts = {source: bare(source.read_bytes()) for source in sources}
    files = {"__main__.py": texts.pop(package / "agent" / _MAIN)}
    files |= {f"edgepipe/{source.relative_to(package).as_posix()}": text for source, text in texts.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, compresslevel=9)
    content = buffer.getvalue()
    return content, hashlib.sha256(content).hexdigest()


def bare(source: bytes) -> bytes:
    """A Python source without its comments and docstrings; every line of code keeps its number."""
    lines = source.decode().split("\n")
    tokens = [token for token in tokenize.tokenize(io.BytesIO(source).readline) if token.type != tokenize.NL]
    opens = {tokenize.ENCODING, tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE, tokenize.COMMENT}
    cuts = []
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if token.type == tokenize.COMMENT:
            cuts.append((token.start, token.end, ""))
        elif token.type == tokenize.STRING and before.type in opens and after.type == tokenize.NEWLINE:
            cuts.append((token.start, token.end, '""'))
    for (first, left), (last, right), instead in reversed(cuts):
        rest = lines[last - 1][right:]
        lines[first - 1 : last] = [lines[first - 1][:left] + instead + rest, *[""] * (last - first)]
    return "\n".join(line.rstrip() for line in lines).encode()
