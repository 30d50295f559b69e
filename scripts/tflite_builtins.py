"""Which version of each TFLite operator a runtime has: asked of the runtime itself, with files that name just one.

    python scripts/tflite_builtins.py write FOLDER     files, made with ai-edge-litert
    python scripts/tflite_builtins.py ask FOLDER       what the runtime of this Python loads of them, as JSON

The second runs with tflite-runtime or ai-edge-litert and Python 3.9 or later. Its answers for several runtimes are
`edgepipe/formats/tflite/builtins.json`.
"""

import json
import sys
from pathlib import Path

MOST = 20  # versions tried of each


def write(folder: Path) -> None:
    """A file for each operator and version; it is on the file's list of operators, which is checked when loading."""
    from ai_edge_litert import schema_py_generated as schema

    from edgepipe.formats.tflite import graph

    folder.mkdir(parents=True, exist_ok=True)
    codes = {name: value for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    for name, value in codes.items():
        for version in range(1, MOST + 1):
            tensor, part, code, model = schema.TensorT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.ModelT()
            tensor.shape, tensor.buffer, tensor.name = [1], 0, b"x"
            part.tensors, part.inputs, part.outputs, part.operators = [tensor], [0], [0], []
            code.builtinCode, code.deprecatedBuiltinCode, code.version = value, min(value, 127), version
            model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, [schema.BufferT()], [part], [code]
            (folder / f"{name}.{version}.tflite").write_bytes(graph.pack(model))


def ask(folder: Path) -> dict[str, int]:
    """The newest version of each operator that the runtime here loads."""
    try:
        from tflite_runtime.interpreter import Interpreter
    except ImportError:
        from ai_edge_litert.interpreter import Interpreter

    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.tflite")):
        name, version, _ = path.name.split(".")
        if name in ("CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES"):
            continue
        try:
            Interpreter(model_content=path.read_bytes())
        except (ValueError, RuntimeError):
            continue
        found[name] = max(int(version), found.get(name, 0))
    return found


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "ask"):  # noqa: PLR2004
        sys.exit(__doc__)
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        print(json.dumps(ask(Path(sys.argv[2]))))
