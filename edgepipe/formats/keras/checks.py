"""What must not be in a TensorFlow model: code, reaches for other files, bombs. Checked before anything is loaded."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats._archive import check_zip

_CONFIG_LIMIT = 64 << 20
_DEPTH = 200
_MODULES = ("keras", "tensorflow.keras", "tf_keras")
_CODE = {"Lambda", "TorchModuleWrapper", "FlaxLayer", "JaxLayer", "TFSMLayer", "__lambda__"}
_TEXT = {"StringLookup", "TextVectorization", "IntegerLookup", "Hashing"}  # strings, and vocabularies read from paths
_FILES = ("ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc", "Print", "PrintV2")
_FILE_KINDS = ("Dataset", "Reader", "HashTable", "LookupTable", "InitializeTable", "Debug", "Summary", "Fingerprint")
_AGAIN = "save the model again"


def keras_archive(path: str) -> None:
    """Check a ``.keras`` file: a zip archive of config.json and weights.

    Raises:
        IntegrityError: not one, a bomb, or its weights reach for other files.
        UsageError: a layer of it is code.
    """
    check_zip(path)
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if not {"config.json", "model.weights.h5"} <= names or archive.getinfo("config.json").file_size > _CONFIG_LIMIT:
            raise IntegrityError("not a Keras model: no config.json and model.weights.h5 in it", path, _AGAIN)
        try:
            config, weights = archive.read("config.json"), archive.read("model.weights.h5")
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise IntegrityError(f"not a sound Keras file: {error}", path, _AGAIN) from None
    _config(config, path)
    hdf5(io.BytesIO(weights), path, len(weights))


def hdf5(source: Any, path: str, size: int, *, whole: bool = False) -> None:
    """Check an HDF5 file; ``whole`` where it holds the model's description too.

    Raises:
        IntegrityError: damaged, links or data in other files, more data declared than the file can hold.
        UsageError: a layer is code, or the file holds weights alone.
    """
    import h5py

    try:
        with h5py.File(source, "r") as file:
            declared = sum(_items(file, path))
            if declared > 100 * size + (64 << 20):
                raise IntegrityError(f"it declares {declared:,} bytes of weights in {size:,}", path, _AGAIN)
            if whole:
                if "model_config" not in file.attrs:
                    raise UsageError("this HDF5 file holds weights without their network", path, "save the whole model")
                _config(file.attrs["model_config"], path)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(f"not a sound HDF5 file: {str(error)[:150]}", path, _AGAIN) from None


def _items(group: Any, path: str, depth: int = 0) -> Iterator[int]:
    """Bytes declared by each data set; refuses links to elsewhere on the way."""
    import h5py

    if depth > _DEPTH:
        raise IntegrityError("its groups are nested without end", path, _AGAIN)
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise IntegrityError(f"{name[:80]!r} is a link, not data of this file", path, _AGAIN)
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _items(item, path, depth + 1)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise IntegrityError(f"the data of {name[:80]!r} lie in another file", path, _AGAIN)
            yield int(item.size or 0) * item.dtype.itemsize


def _config(text: Any, path: str) -> None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError, TypeError):
        raise IntegrityError("the description of the network is not JSON", path, _AGAIN) from None
    for item in _dicts(found, path):
        kind, module = item.get("class_name"), item.get("module")
        if isinstance(kind, str) and kind in _CODE:
            fix = "replace it by a layer of Keras, or save the model as a SavedModel (model.export)"
            raise UsageError(f"the model holds Python code in a {kind} layer, which is never run", path, fix)
        if isinstance(kind, str) and kind in _TEXT:
            raise UsageError(f"no board runtime has a {kind} layer", path, "leave it out of the model")
        foreign = isinstance(module, str) and module != "builtins" and not module.startswith(_MODULES)
        own = module is None and "module" in item and isinstance(item.get("registered_name"), str)  # of a script
        if (
            foreign
            or own
            or (isinstance(kind, str) and isinstance(module, str) and kind == "function" and module != "builtins")
        ):
            what = str(kind) if module is None else f"{str(kind)[:60]} of {str(module)[:60]}"
            raise not_in_it(what, path)


def not_in_it(what: str, path: str) -> UsageError:
    """The error for a layer whose code is somewhere else."""
    fix = "save it as a SavedModel (model.export), which needs no code"
    return UsageError(f"{what[:130]} is code that the file does not hold", path, fix)


def _dicts(value: Any, path: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    if depth > _DEPTH:
        raise IntegrityError("the description of the network is nested without end", path, _AGAIN)
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(item, path, depth + 1)


def nodes(graph: Any, path: str) -> None:
    """Check a GraphDef and the functions it brings along.

    Raises:
        UsageError: an operator reads or writes files, or runs Python.
        IntegrityError: an operator's name is none.
    """
    for node in (*graph.node, *(node for function in graph.library.function for node in function.node_def)):
        if node.op in _FILES or any(kind in node.op for kind in _FILE_KINDS):
            what = f"{node.op[:60]} reads files, runs code or needs text (at {node.name[:80]})"
            raise UsageError(what, path, "leave it out of the model")
