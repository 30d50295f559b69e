"""Hold the source to its budgets: a file <= 400 lines, a function <= 50 lines; print the medians."""

from __future__ import annotations

import ast
import statistics
import sys
from pathlib import Path

FILE_LINES, FUNCTION_LINES = 400, 50


def main() -> int:
    """Print what is over budget and the medians; 1 if anything is over."""
    files: dict[str, int] = {}
    functions: dict[str, int] = {}
    for path in sorted((*Path("edgepipe").rglob("*.py"), *Path("lab").rglob("*.py"))):
        text = path.read_text()
        if "_shipped" in path.parts or not text.strip():
            continue
        files[str(path)] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                functions[f"{path}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1
    over = [f"{name}: {count} lines" for name, count in files.items() if count > FILE_LINES]
    over += [f"{name}: {count} lines" for name, count in functions.items() if count > FUNCTION_LINES]
    print("\n".join(over) or "nothing is over budget", end="; ")
    medians = statistics.median(files.values()), statistics.median(functions.values())
    print(f"median file {medians[0]:g} lines, median function {medians[1]:g} lines")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
