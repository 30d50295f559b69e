"""Proof that a quantised TFLite file runs."""

from __future__ import annotations

from typing import Any

from edgepipe.errors import IntegrityError

_SMALL = ("int4", "int8", "int16", "float16")


def prove(source: str, target: str) -> int:
    """Load and run both files once; return how many tensors more of 4, 8 or 16 bits the quantised one has.

    Raises:
        IntegrityError: the quantised file does not load or run, or gives NaN or infinity where the other does not.
    """
    before, sound = _run(source)
    try:
        after, also = _run(target)
    except (ValueError, RuntimeError) as error:
        what = f"the quantised file does not run: {' '.join(str(error).split())[:200]}"
        raise IntegrityError(what, target, "use another step or format") from None
    if sound and not also:
        raise IntegrityError("the quantised file gives NaN or infinity", target, "use another step or format")
    return sum(kind in _SMALL for kind in after) - sum(kind in _SMALL for kind in before)


def _run(path: str) -> tuple[list[str], bool]:
    """Types of the file's tensors, and whether all outputs for zeros are finite."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    interpreter.invoke()
    outputs = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
    kinds = [np.dtype(detail["dtype"]).name for detail in interpreter.get_tensor_details()]
    return kinds, all(bool(np.isfinite(output).all()) for output in outputs)
