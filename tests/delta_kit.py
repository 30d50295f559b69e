"""Releases of one file, for tests of what is sent of them."""

from __future__ import annotations

import hashlib

from edgepipe.schema import Artifact, FileRef, Manifest, Preprocessing


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def released(name: str, data: bytes) -> Manifest:
    """A release of the null runtime whose one file is ``data``."""
    ref = FileRef(name, digest_of(data), len(data))
    artifact = Artifact("null", name, len(data), len(data), ref.sha256, [ref], [], [], Preprocessing())
    return Manifest(f"m-{ref.sha256[:8]}", artifact, "null")
