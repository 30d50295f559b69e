"""A runtime's own Python packages on the board: a folder of hard links to blobs, put in place in one step.

``sites/<runtime>`` is a link to ``sites/.<runtime>-<hash>/``, since a link can be replaced in one step and a folder
can't. ``site.json`` in it lists the blobs it needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from typing import List, Optional, Set

from edgepipe.agent.store import Store, check_name
from edgepipe.codec import canonical, to_dict
from edgepipe.errors import IntegrityError
from edgepipe.schema import FileRef

_COMPONENT = re.compile(r"[A-Za-z0-9_+~@(-][A-Za-z0-9._+~@ ,()\-]{0,199}\Z")
_LIST = "site.json"
_DEPTH = 16


def check_path(text: str) -> str:
    """Return ``text`` if it is a relative posix path of plain names as wheels have them.

    Raises:
        IntegrityError: it is empty, absolute, too deep, has a ``..``, a leading dot or a strange character.
    """
    parts = text.split("/")

    if len(parts) > _DEPTH or not all(_COMPONENT.match(part.lstrip(".")) and part not in (".", "..") for part in parts):
        raise IntegrityError(f"not a path inside a site: {text[:200]!r}", "request")
    return text


def path(store: Store, runtime: str) -> Optional[str]:
    """The folder of a runtime's site, else of its virtual environment's packages, or None if it has neither.

    Virtual environments are made by ansible/ where boards have a network: ``venvs/<runtime>``.
    """
    folder = store.path("sites", check_name(runtime))
    if os.path.isfile(os.path.join(folder, _LIST)):
        return os.path.realpath(folder)
    own = "python{}.{}".format(*sys.version_info[:2])
    packages = store.path("venvs", runtime, "lib", own, "site-packages")
    return packages if os.path.isdir(packages) else None


def install(store: Store, runtime: str, files: List[FileRef], note: str, dry_run: bool = False) -> bool:
    """Make ``sites/<runtime>`` of these files, whole or not; the one before is removed.

    Returns whether that changes anything; with ``dry_run`` nothing is done, and no blob need be here.

    Raises:
        IntegrityError: a name or blob is not good.
    """
    link = store.path("sites", check_name(runtime))
    names = [check_path(ref.name) for ref in files]
    if len(set(names)) != len(names) or _LIST in names:
        raise IntegrityError("two files of one name", f"site {runtime}")
    content = canonical(
        {"note": note[:200], "files": [to_dict(ref) for ref in sorted(files, key=lambda ref: ref.name)]}
    )
    folder = store.path("sites", f".{runtime}-{hashlib.sha256(content).hexdigest()[:16]}")
    here = os.path.realpath(link) == os.path.realpath(folder) and os.path.isfile(os.path.join(folder, _LIST))
    if not here and not dry_run:
        _build(store, folder, files, content)
        store.disk.remove(link + ".new")
        store.disk.symlink(os.path.basename(folder), link + ".new")
        store.disk.rename(link + ".new", link)
        store.disk.sync(store.path("sites"))
        tidy(store)
    return not here


def _build(store: Store, folder: str, files: List[FileRef], content: bytes) -> None:
    store.disk.remove(folder)
    store.disk.mkdir(folder)
    made = [folder]
    for ref in files:
        blob = store.blob(ref.sha256)
        if os.path.getsize(blob) != ref.bytes:
            raise IntegrityError(f"{ref.name} is not {ref.bytes} bytes long", f"blob {ref.sha256}")
        target = os.path.join(folder, *ref.name.split("/"))
        missing = []
        parent = os.path.dirname(target)
        while not os.path.isdir(parent):
            missing.append(parent)
            parent = os.path.dirname(parent)
        for each in reversed(missing):
            store.disk.mkdir(each)
            made.append(each)
        store.disk.link(blob, target)
    listing = os.path.join(folder, _LIST)
    store.disk.write(listing, content)
    store.disk.sync(listing)
    for each in reversed(made):
        store.disk.sync(each)
    store.disk.sync(store.path("sites"))


def needed(store: Store) -> Set[str]:
    """The blobs that sites are made of."""
    found: Set[str] = set()
    for runtime in store.listing("sites"):
        try:
            with open(store.path("sites", runtime, _LIST), "rb") as file:
                found |= {str(ref["sha256"]) for ref in json.loads(file.read().decode())["files"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def tidy(store: Store) -> None:
    """Remove folders of sites that no link names."""
    folder = store.path("sites")
    named = {os.path.basename(os.path.realpath(store.path("sites", name))) for name in store.listing("sites")}
    for name in os.listdir(folder):
        if name.startswith(".") and name not in named:
            store.disk.remove(os.path.join(folder, name))
