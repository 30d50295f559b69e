"""Programs that torch.export saved (``.pt2``): checked for anything that would run code, tried in a child, then loaded.

torch.export.load unpickles, evaluates expressions and compiles guards that stand in the file as text. So all of these
are held against what an honest program has before torch sees the file.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepipe import isolate
from edgepipe.errors import EdgepipeError, IntegrityError, UsageError
from edgepipe.formats._archive import check_zip
from edgepipe.schema import TensorSpec

_JSON_LIMIT = 256 << 20
_DEPTH = 200
_TARGET = re.compile(
    r"(torch\.ops\.(aten|prims|higher_order)\.|_operator\.|math\.|torch\.(sym_|_check))[A-Za-z0-9_.]+\Z"
)
_TREES = {"builtins.tuple", "builtins.list", "builtins.dict", None}
_NAMES = re.compile(
    r"(L|[su]\d+|zu?f\d+|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not|Integer|Where|Mul"
    r"|Add|Pow|True|False|math|ceiling|floor|ToFloat|TruncToInt|IntTrueDiv|FloatTrueDiv|Identity|Symbol)\Z"
)
_CALLS = {"size", "stride", "storage_offset", "dim", "ndimension"}
_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator, ast.Compare,
    ast.cmpop, ast.Subscript, ast.Constant, ast.Load, ast.Name, ast.Call, ast.Attribute, ast.keyword, ast.Tuple,
)  # fmt: skip
_AGAIN = "save it again: torch.export.save(torch.export.export(model, inputs), path)"


def load(path: Path) -> Any:
    """The program as a torch module in eval mode, once a child has loaded it without harm.

    Raises:
        UsageError: it was saved by an old torch, holds pickled objects, or custom operators.
        IntegrityError: it is damaged, a bomb, or holds code.
    """
    isolate.read(f"{__name__}:check", path)
    with _no_pickle():
        return _module(str(path))


def check(path: str) -> bool:
    """Hold the archive against what a program may contain, then load and run its graph's checks (runs in the child).

    Raises:
        EdgepipeError: see `load`.
    """
    names = check_zip(path)
    inside = {name.partition("/")[2] for name in names}
    if not any(name.startswith("models/") for name in inside):
        if any(name.endswith(("data.pkl", "serialized_exported_program.json")) for name in names):
            raise UsageError("this is no program of torch.export as torch 2.9 and later save it", path, _AGAIN)
        raise IntegrityError("the archive holds no program", path, _AGAIN)
    with zipfile.ZipFile(path) as archive:
        for name in names:
            if name.endswith(".json"):
                _document(archive, name, path)
            elif name.rpartition("/")[2].startswith(("custom_obj", "opaque_obj")) or "/data/aotinductor/" in name:
                raise UsageError(f"the program holds an object of Python or C++ code: {name[:80]}", path, _AGAIN)
    try:
        with _no_pickle():
            _module(path)
    except EdgepipeError:
        raise
    except Exception as error:  # torch raises anything on a damaged file
        text = " ".join(str(error).split())[:200]
        raise IntegrityError(f"torch can't load it: {type(error).__name__}: {text}", path, _AGAIN) from None
    return True


def _document(archive: zipfile.ZipFile, name: str, path: str) -> None:
    if archive.getinfo(name).file_size > _JSON_LIMIT:
        raise IntegrityError(f"{name[:80]} is too large", path, _AGAIN)
    try:
        found = json.loads(archive.read(name))
    except (
        ValueError,
        RecursionError,
        zipfile.BadZipFile,
        OSError,
        EOFError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise IntegrityError(f"{name[:80]} can't be read: {str(error)[:100]}", path, _AGAIN) from None
    for key, value in _items(found, path):
        if key == "use_pickle" and value:
            raise UsageError("the program holds pickled tensors", path, _AGAIN)
        if key == "target" and isinstance(value, str) and not _TARGET.match(value):
            raise UsageError(f"the program uses a custom operator: {value[:80]}", path, "replace it in the model")
        if key in ("in_spec", "out_spec") and isinstance(value, str):
            _tree(value, path)
        if key == "expr_str":
            _expression(value, path)
        if key == "guards_code":
            for text in value if isinstance(value, list) else [value]:
                _expression(text, path)
        if key == "range_constraints" and isinstance(value, dict):
            for text in value:
                _expression(text, path)


def _items(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > _DEPTH:
        raise IntegrityError("its description is nested without end", path, _AGAIN)
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _items(item, path, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _items(item, path, depth + 1)


def _tree(text: str, path: str) -> None:
    """How inputs and outputs are packed: in tuples, lists and dicts alone."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise IntegrityError("how its inputs are packed can't be read", path, _AGAIN) from None
    for key, value in _items(found, path):
        if key == "type" and value not in _TREES:
            what = f"inputs or outputs are packed in {str(value)[:60]}"
            raise UsageError(what, path, "export it with tensors, tuples, lists and dicts only")


def _expression(text: Any, path: str) -> None:
    """Sizes and guards, which torch evaluates: arithmetic on symbols, and nothing else."""
    try:
        tree = ast.parse(text, mode="eval") if isinstance(text, str) and len(text) < 10_000 else None  # noqa: PLR2004
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    for node in ast.walk(tree) if tree else ():
        fine = isinstance(node, _ALLOWED)
        if isinstance(node, ast.Name):
            fine = bool(_NAMES.match(node.id))
        elif isinstance(node, ast.Attribute):
            fine = node.attr in _CALLS or (isinstance(node.value, ast.Name) and node.value.id == "math")
        elif isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name | ast.Attribute)
        elif isinstance(node, ast.Constant):
            fine = not isinstance(node.value, str) or node.value.isidentifier()
        if not fine:
            raise IntegrityError(f"the program holds code where a size should be: {str(text)[:80]!r}", path, _AGAIN)
    if tree is None:
        raise IntegrityError(f"the program holds no size where one should be: {str(text)[:80]!r}", path, _AGAIN)


@contextlib.contextmanager
def _no_pickle() -> Iterator[None]:
    """While torch.export.load runs, torch.load takes tensors alone, and nothing else unpickles."""
    import torch

    plain, objects = torch.load, torch._C._pickle_load_obj

    def only(source: Any, *args: Any, **options: Any) -> Any:
        return plain(source, *args, **{**options, "weights_only": True})

    def never(_content: bytes) -> Any:
        raise UsageError("the program holds an object of C++ code", "pt2", _AGAIN)

    torch.load, torch._C._pickle_load_obj = only, never
    try:
        yield
    finally:
        torch.load, torch._C._pickle_load_obj = plain, objects


def _module(path: str) -> Any:
    """The program as a module that bears ``eval()``, ``train()`` and any number of samples."""
    import torch

    program = torch.export.load(io.BytesIO(Path(path).read_bytes()))
    inputs, outputs = _specs(program, path)

    class Program(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        traced = True

        def __init__(self) -> None:
            super().__init__()
            self.program = program.module()
            self.inputs, self.outputs = inputs, outputs

        def forward(self, *given: Any) -> Any:
            made = self.program(*given)
            return made[0] if isinstance(made, tuple | list) and len(made) == 1 else made

        def train(self, mode: bool = True) -> Any:  # noqa: ARG002
            return self

    return Program()


def _specs(program: Any, path: str) -> tuple[list[TensorSpec], list[str]]:
    """Inputs with -1 for sizes that are free, and the outputs' names."""
    import torch

    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    names = program.graph_signature.user_inputs
    if program.call_spec.in_spec is not None and program.call_spec.in_spec.child(1).num_leaves:
        raise UsageError("the program takes inputs by keyword", path, "export it with positional inputs")
    specs = []
    for name in names:
        value = values.get(name)
        if not isinstance(value, torch.Tensor) or value.is_complex():
            raise UsageError(f"input {str(name)[:60]} is not a tensor of real numbers", path, "export it with tensors")
        shape = [size if isinstance(size, int) else -1 for size in value.shape]
        specs.append(TensorSpec(name, shape, str(value.dtype).removeprefix("torch.")))
    return specs, [str(name) for name in program.graph_signature.user_outputs]
