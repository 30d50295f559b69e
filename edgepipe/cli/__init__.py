"""The command line: one file per verb, thin. `main` maps every outcome to its exit code."""

from __future__ import annotations

import json
import signal
import sys
import types

from edgepipe.errors import EdgepipeError, UsageError

EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit: 0 done, 2 usage, 3 link, 4 board, 5 integrity, 6 gate, 7 busy, 8 deadline, 130."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    try:
        code = _run(arguments)
    except KeyboardInterrupt:
        print("interrupted: the board keeps its release; what was measured is kept", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        code = 1
    except EdgepipeError as error:
        if debug:
            raise
        show(error, as_json="--json" in arguments)
        code = error.exit_code
    except Exception as error:
        if debug:
            raise
        unexpected = EdgepipeError(
            f"unexpected {type(error).__name__}: {error}",
            "edgepipe",
            "run again with --debug and report what it prints",
        )
        show(unexpected, as_json="--json" in arguments)
        code = 1
    sys.exit(code)


def _interrupt(_number: int, _frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(arguments: list[str]) -> int:
    import typer
    from typer.exceptions import TyperException

    from edgepipe.cli.app import app

    try:
        result = app(arguments, standalone_mode=False, prog_name="edgepipe")
    except typer.Abort:
        raise KeyboardInterrupt from None
    except TyperException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "edgepipe"
        raise UsageError(error.format_message(), where, f"{where} --help") from None
    if result == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this code without a word
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def show(error: EdgepipeError, *, as_json: bool = False) -> None:
    """Print an error as three lines on stderr: what, where, what to do; with ``as_json`` one document on stdout too."""
    print(f"error: {error.what}", file=sys.stderr)
    print(f"  where: {error.where or 'edgepipe'}", file=sys.stderr)
    print(f"  fix: {error.fix or 'see edgepipe --help'}", file=sys.stderr)
    if as_json:
        document = {"schema": "edgepipe.error/1", "exit_code": error.exit_code, "error": error.to_wire()}
        json.dump(document, sys.stdout)
        print()
