"""Releases in the store: staged from blobs, activated and rolled back by moving two links, then collected."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Optional, Set, Tuple

from edgepipe.agent import rules, sites
from edgepipe.agent.rules import Links
from edgepipe.agent.store import Store, check_name
from edgepipe.codec import canonical, from_dict
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.schema import Manifest

_ID_DIGITS = 32
_MANIFEST_BYTES = 1 << 20


def check(manifest: Manifest) -> Manifest:
    """Return the manifest if each of its names may be a file's and its main file is among its files.

    Raises:
        IntegrityError: a name is not flat, occurs twice, or the main file is missing.
    """
    names = [check_name(ref.name) for ref in manifest.artifact.files]
    check_name(manifest.name)
    check_name(manifest.runtime)
    if len(set(names)) != len(names) or "manifest.json" in names:
        raise IntegrityError("two files of one name", f"release {manifest.name}")
    if main_name(manifest) not in names:
        raise IntegrityError("the main file is not among the files", f"release {manifest.name}")
    return manifest


def main_name(manifest: Manifest) -> str:
    """The name of the model's main file; ``artifact.path`` is where it lay on the host."""
    return os.path.basename(manifest.artifact.path)


class Releases:
    """The releases of a store."""

    def __init__(self, store: Store) -> None:
        self.store, self.disk = store, store.disk

    def folder(self, name: str) -> str:
        """The folder of a release."""
        return self.store.path("releases", name)

    def model(self, manifest: Manifest) -> str:
        """The path of a staged release's main file."""
        return os.path.join(self.folder(manifest.id), main_name(manifest))

    def read(self, name: Optional[str]) -> Manifest:
        """The manifest of a release, of the current one if ``name`` is None.

        Raises:
            UsageError: there is no such release.
        """
        wanted = name or self.links().current
        if wanted is None or not self._exists(wanted):
            raise UsageError(
                f"no release {wanted[:64]!r} on the board" if wanted else "no release is active on the board",
                self.store.path("releases"),
                "deploy one first; status lists what is there",
            )
        with open(os.path.join(self.folder(wanted), "manifest.json"), "rb") as file:
            return from_dict(Manifest, json.loads(file.read(_MANIFEST_BYTES).decode()))

    def _exists(self, name: str) -> bool:
        good = len(name) == _ID_DIGITS and name.isalnum()
        return good and os.path.isfile(os.path.join(self.folder(name), "manifest.json"))

    def links(self) -> Links:
        """What the two links name; a link that does not resolve counts as none."""
        current, previous = (self._link(name) for name in ("current", "previous"))
        return Links(current=current, previous=previous)

    def _link(self, name: str) -> Optional[str]:
        try:
            target = os.path.basename(os.readlink(self.store.path(name)))
        except OSError:
            return None
        return target if self._exists(target) else None

    def activated_at(self) -> Optional[float]:
        """When the current release became so: the board's clock, seconds since 1970."""
        try:
            return os.lstat(self.store.path("current")).st_mtime
        except OSError:
            return None

    def all(self) -> List[Dict[str, Any]]:
        """Each release: id, name, format, recipe and bytes."""
        found = []
        for name in self.store.listing("releases"):
            if self._exists(name):
                manifest = self.read(name)
                art = manifest.artifact
                found.append(
                    {
                        "id": name,
                        "name": manifest.name,
                        "format": art.format,
                        "recipe": art.recipe,
                        "bytes": art.bytes,
                    }
                )
        return found

    def verify(self, manifest: Manifest) -> None:
        """Hash every blob of a release.

        Raises:
            IntegrityError: one is absent, changed, or not as long as the manifest says.
        """
        for ref in check(manifest).artifact.files:
            if os.path.getsize(self.store.verified(ref.sha256)) != ref.bytes:
                raise IntegrityError(f"{ref.name} is not {ref.bytes} bytes long", f"blob {ref.sha256}")
        if manifest.selftest:
            self.store.verified(manifest.selftest.inputs)
            self.store.verified(manifest.selftest.outputs)

    def stage(self, manifest: Manifest) -> None:
        """Make the folder of a release out of blobs, whole or not at all. One that is there is mended if need be."""
        check(manifest)
        wanted = {ref.name: self.store.blob(ref.sha256) for ref in manifest.artifact.files}
        folder = self.folder(manifest.id)
        if self._exists(manifest.id):
            self._mend(folder, wanted)
            return
        staging = self.store.path("releases", f".{manifest.id}")
        self.disk.remove(staging)
        self.disk.remove(folder)
        self.disk.mkdir(staging)
        try:
            for name, blob in wanted.items():
                self.disk.link(blob, os.path.join(staging, name))
            path = os.path.join(staging, "manifest.json")
            self.disk.write(path, canonical(manifest))
            self.disk.sync(path)
            self.disk.sync(staging)
            self.disk.rename(staging, folder)
        except OSError:
            self.disk.remove(staging)
            raise
        self.disk.sync(self.store.path("releases"))

    def _mend(self, folder: str, wanted: Dict[str, str]) -> None:
        """Link anew each file that is not its blob any more: a corrupt blob was dropped and sent again."""
        mended = False
        for name, blob in wanted.items():
            path = os.path.join(folder, name)
            if not os.path.exists(path) or not os.path.samefile(path, blob):
                self.disk.remove(path + ".new")
                self.disk.link(blob, path + ".new")
                self.disk.rename(path + ".new", path)
                mended = True
        if mended:
            self.disk.sync(folder)

    def discard(self, name: str) -> None:
        """Remove a staged release unless a link names it."""
        if name in rules.collectable(self.links(), frozenset([name])):
            self.disk.remove(self.folder(name))

    def activate(self, name: str) -> bool:
        """Move the links to a staged release; False if it was the current one already."""
        links = self.links()
        wanted = rules.activated(links, name)
        if wanted == links:
            return False
        # Previous first: a cut in between leaves both links on the old release, which is complete.
        if wanted.previous:
            self._move("previous", wanted.previous)
        self._move("current", name)
        return True

    def rollback(self) -> Links:
        """Make the previous release the current one, and the current one the previous.

        Raises:
            BoardError: there is none.
            IntegrityError: a file of it is missing.
        """
        wanted = rules.rolled_back(self.links())
        assert wanted.current and wanted.previous
        manifest = self.read(wanted.current)
        for ref in manifest.artifact.files:
            path = os.path.join(self.folder(wanted.current), ref.name)
            if not os.path.isfile(path) or os.path.getsize(path) != ref.bytes:
                raise IntegrityError("the previous release is damaged", path, "deploy it again")
        # Current first: a cut in between has rolled back, and only lost the way forward.
        self._move("current", wanted.current)
        self._move("previous", wanted.previous)
        return wanted

    def restore(self, links: Links) -> None:
        """Put the links back to what they were before an activation."""
        for name, wanted in (("current", links.current), ("previous", links.previous)):
            if wanted:
                self._move(name, wanted)
            elif os.path.lexists(self.store.path(name)):
                self.disk.unlink(self.store.path(name))
                self.disk.sync(self.store.root)

    def _move(self, link: str, name: str) -> None:
        path = self.store.path(link)
        self.disk.remove(path + ".new")
        self.disk.symlink(os.path.join("releases", name), path + ".new")
        self.disk.rename(path + ".new", path)
        self.disk.sync(self.store.root)

    def gc(self, keep_spool: bool) -> Tuple[List[str], int]:
        """Remove what nothing needs: releases without a link, their blobs, partials and the spool.

        Returns the ids of the releases removed and the number of blobs removed.
        """
        every = frozenset(os.listdir(self.store.path("releases")))
        removed = sorted(rules.collectable(self.links(), every))
        for name in removed:
            self.disk.remove(self.folder(name))
        for folder in ("partial",) if keep_spool else ("partial", "spool"):
            for name in os.listdir(self.store.path(folder)):
                self.disk.remove(self.store.path(folder, name))
        kept = self._needed() | sites.needed(self.store)
        unneeded = [name for name in os.listdir(self.store.path("blobs")) if name not in kept]
        for name in unneeded:
            self.disk.remove(self.store.path("blobs", name))
        sites.tidy(self.store)
        ids = [name for name in removed if not name.startswith(".")]
        return ids, len(unneeded)

    def _needed(self) -> Set[str]:
        kept: Set[str] = set()
        for name in (self.links().current, self.links().previous):
            if name:
                manifest = self.read(name)
                kept |= {ref.sha256 for ref in manifest.artifact.files}
                if manifest.selftest:
                    kept |= {manifest.selftest.inputs, manifest.selftest.outputs}
        return kept
