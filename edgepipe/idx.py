"""IDX files, the format of MNIST: unsigned bytes behind a header of sizes."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np

IDX_LIMIT = 1 << 30
_IDX_IMAGES, _IDX_LABELS = 2051, 2049  # magic numbers of the MNIST file format (LeCun, Cortes, Burges 1998)


def read_idx(path: Path, limit: int | None = None) -> np.ndarray[Any, Any]:
    """Read an IDX file of unsigned bytes (gzip or plain), at most ``limit`` items of it.

    Raises:
        IntegrityError: not such a file, truncated, or more than 1 GiB would have to be read.
    """
    import numpy as np

    fix = "install the data set again"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            (magic,) = struct.unpack(">I", file.read(4))
            if magic not in (_IDX_IMAGES, _IDX_LABELS):
                raise IntegrityError(f"not an IDX file of bytes (magic number {magic})", str(path), fix)
            shape = list(struct.unpack(f">{magic & 255}I", file.read(4 * (magic & 255))))
            shape[0] = min(shape[0], limit) if limit else shape[0]
            count = int(np.prod(shape, dtype=np.uint64))
            if count > IDX_LIMIT:
                raise IntegrityError(f"the data set has {count} bytes", str(path), fix)
            content = file.read(count)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise IntegrityError(f"the data file can't be read: {error}", str(path), fix) from None
    if len(content) != count:
        raise IntegrityError(f"the data file ends early: {len(content)} of {count} bytes", str(path), fix)
    return np.frombuffer(content, np.uint8).reshape(shape)
