"""The agent as one file: a zip that Python runs. The same sources always give the same bytes."""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

# The oldest date a zip can bear.
_DATE = (1980, 1, 1, 0, 0, 0)
_MAIN = "import sys\nfrom edgepipe.agent.__main__ import main\n\nsys.exit(main(sys.argv[1:]))\n"


@cache
def agent_zipapp() -> tuple[bytes, str]:
    """The zipapp of the agent and its sha256 in hex. Start it with ``python3 FILE serve``."""
    package = Path(__file__).parent
    sources = [package / f"{name}.py" for name in ("__init__", "codec", "errors", "schema")]
    sources += (package / "agent").rglob("*.py")
    files = {f"edgepipe/{source.relative_to(package).as_posix()}": source.read_bytes() for source in sources}
    files["__main__.py"] = _MAIN.encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, compresslevel=9)
    content = buffer.getvalue()
    return content, hashlib.sha256(content).hexdigest()
