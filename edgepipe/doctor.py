"""Can this board run models, with which wheels, and what would int8 do there? A verdict for each line, with the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe import plugins, wheels
from edgepipe.agent.advice import Arithmetic
from edgepipe.agent.health import Health, Trial
from edgepipe.errors import BoardError
from edgepipe.schema import Board
from edgepipe.wheels import Advice, Platform, Wheel

if TYPE_CHECKING:
    from edgepipe.board import BoardClient
    from edgepipe.progress import Progress

GREEN, YELLOW, RED = "green", "yellow", "red"
_LITTLE_RAM = 700_000_000  # a board sold with 512 MB
_LITTLE_DISK, _NO_DISK = 500_000_000, 50_000_000  # the largest runtime unpacked, the smallest
_DOTS = {"asimddp": "dot product", "i8mm": "8-bit matrix products", "asimdhp": "fp16", "bf16": "bf16"}
_X86 = {"avx2": "AVX2", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "avx512f": "AVX-512"}
_ARMV7 = {"neon": "NEON", "vfpv4": "VFPv4", "asimddp": "dot product"}


@dataclass(frozen=True)
class Check:
    """One line: ``verdict`` is green (fine), yellow (works, with a loss) or red (does not); ``fix`` is what helps."""

    topic: str
    verdict: str
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Candidate:
    """A runtime on this board: what is installed, what fits, whether it runs, what int8 and int4 do.

    ``requirements`` is what to ask pip for, ``from_board`` what the board's own distribution must bring beside it.

    ``runs`` is "yes" (it was imported), "expected" (a wheel fits, nothing is known against it) or "no"; then ``reason``
    says why.
    """

    runtime: str
    runs: str
    installed: Trial | None
    wheel: Wheel | None
    requirements: list[str]
    from_board: list[str]
    held_back: str = ""
    reason: str = ""
    arithmetic: Arithmetic | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All that was found. ``usable`` is whether any runtime runs there or would."""

    target: str
    usable: bool
    board: Board
    health: Health
    runtimes: list[Candidate]
    checks: list[Check]
    schema: str = "edgepipe.doctor/1"


def examine(client: BoardClient, progress: Progress) -> Diagnosis:
    """Look at a board.

    Raises:
        BusyError: somebody measures there. LinkError, DeadlineError: it can't be reached.
    """
    with progress.task("examine", "s") as task:
        health = client.doctor(task.update)
    return diagnose(client.target.name, client.hello().board, health)


def diagnose(target: str, board: Board, health: Health) -> Diagnosis:
    """Draw the conclusions; asks nobody."""
    try:
        platform = wheels.platform_of(board, health.libstdcxx)
    except BoardError:
        platform = None
    found: list[Candidate] = []
    checks = [check for look in _LOOKS for check in look(board, health)]
    for name in plugins.names("agent.runtimes"):
        if plugins.load("agent.runtimes", name).PACKAGES:
            found.append(_candidate(name, board, health, platform))
            checks += _verdicts(found[-1], target)
    checks += _other_pythons(board, health, found)
    usable = any(each.runs != "no" for each in found)
    return Diagnosis(target, usable, board, health, found, checks)


def _candidate(name: str, board: Board, health: Health, platform: Platform | None) -> Candidate:
    """What there is to say of one runtime."""
    trial = next((one for one in health.trials if one.runtime == name), None)
    if platform is None:
        advice = Advice(name, None, reason=f"no wheels for {board.libc or 'an unknown C library'}")
    else:
        advice = wheels.advise(name, platform, board.isa, wheels.crashed_there(health))
    wheel, reason = advice.wheel, advice.reason
    if wheel and (lacking := wheels.missing(advice, health)):
        wheel, reason = None, lacking
    runs = "yes" if trial and trial.imports else "expected" if wheel else "no"
    package = trial.package if trial and trial.imports else wheel.name if wheel else ""
    speed = plugins.load("agent.runtimes", name).arithmetic(board.arch, board.isa, package) if package else None
    return Candidate(
        name,
        runs,
        trial,
        wheel,
        advice.requirements if wheel else [],
        advice.from_board if wheel else [],
        advice.held_back,
        reason,
        speed,
    )


def _verdicts(each: Candidate, target: str) -> Iterator[Check]:
    """The lines of one runtime."""
    yield _presence(each, f"edgepipe provision --target {target} --runtime {each.runtime}")
    if done := each.arithmetic:
        yield Check(f"{each.runtime} int8", done.verdict, f"{done.int8}; int4: {done.int4}", done.fix)


def _presence(each: Candidate, provide: str) -> Check:
    trial, wheel = each.installed, each.wheel
    fits = f"{wheel.name} {wheel.version} fits ({wheel.tag})" if wheel else f"no wheel fits: {each.reason}"
    fits += f"; {each.held_back}" if wheel and each.held_back else ""
    if trial and trial.imports:
        tag = f" ({trial.tag})" if trial.tag else ""
        return Check(each.runtime, GREEN, f"{trial.package} {trial.version}{tag} is installed and imports")
    if trial:
        # An installed runtime that crashes is broken whatever else would fit.
        return Check(each.runtime, RED, f"{trial.error}; {fits}", provide if wheel else trial.fix)
    if wheel:
        return Check(each.runtime, YELLOW, f"not installed; {fits}", provide)
    return Check(each.runtime, RED, fits, "choose another format, or install it by the board's own means")


def _system(board: Board, health: Health) -> Iterator[Check]:
    text = f"{board.os}, kernel {board.kernel}, {board.arch}"
    if health.l4t:
        text += f", L4T {health.l4t}" + (f" (JetPack {health.jetpack})" if health.jetpack else "")
    yield Check("system", GREEN, text)
    if board.emulated:
        yield Check("emulated", YELLOW, f"{board.emulated}: times measured here mean nothing", "use the board itself")


def _cpu(board: Board, _health: Health) -> Iterator[Check]:
    known = _DOTS if board.arch == "aarch64" else _X86 if board.arch == "x86_64" else _ARMV7
    have = [name for flag, name in known.items() if flag in board.isa]
    lack = [name for flag, name in known.items() if flag not in board.isa]
    text = f"{board.cpu}, {board.cores} cores"
    text += f"; has {', '.join(have)}" if have else ""
    text += f"; lacks {', '.join(lack)}" if lack else ""
    if not board.isa:
        yield Check("cpu", YELLOW, f"{text}; the board does not say which instructions it has", "check /proc/cpuinfo")
    else:
        yield Check("cpu", GREEN, text)


def _python(board: Board, health: Health) -> Iterator[Check]:
    own = next((each for each in health.interpreters if each.own), None)
    if own and own.soabi.split("-")[1:2] and own.soabi.split("-")[1].endswith("t"):
        fix = "name an ordinary Python in the target's file: python = ..."
        yield Check("python", RED, f"{board.python} is a free-threaded build, which has wheels of its own", fix)
    else:
        yield Check("python", GREEN, f"{board.python}" + (f" ({own.path}, {own.soabi})" if own else ""))


def _libraries(board: Board, health: Health) -> Iterator[Check]:
    if board.libc.startswith("musl"):
        yield Check("C library", RED, f"{board.libc}: no runtime is published for it", "use a system with glibc")
        return
    text = f"{board.libc or 'unknown'}, libstdc++ up to GLIBCXX_3.4.{health.libstdcxx}"
    if health.libstdcxx:
        yield Check("C library", GREEN if board.libc else RED, text)
    else:
        text = f"{board.libc or 'unknown'}; no libstdc++ was found"
        yield Check("C library", YELLOW, text, "apt-get install libstdc++6")


def _memory(board: Board, health: Health) -> Iterator[Check]:
    if board.ram_bytes is None:
        yield Check("memory", YELLOW, "the board does not say")
        return
    text = f"{board.ram_bytes / 1e6:.0f} MB"
    text += f", {health.ram_available_bytes / 1e6:.0f} MB available" if health.ram_available_bytes is not None else ""
    if board.ram_bytes < _LITTLE_RAM:
        fix = "prefer tflite, which needs least; free memory before a bench"
        yield Check("memory", YELLOW, text, fix)
    else:
        yield Check("memory", GREEN, text)


def _disk(_board: Board, health: Health) -> Iterator[Check]:
    free = health.disk_free_bytes
    verdict = RED if free < _NO_DISK else YELLOW if free < _LITTLE_DISK else GREEN
    fix = "" if verdict == GREEN else "edgepipe gc removes what no release needs"
    yield Check("disk", verdict, f"{free / 1e6:.0f} of {health.disk_bytes / 1e6:.0f} MB free", fix)


def _clocks(board: Board, health: Health) -> Iterator[Check]:
    clocks = health.clocks
    grant = "let ansible/ give the right to set clocks, see docs/doctor.md"
    now = f"governor {clocks.governor or 'unknown'}"
    now += f" of {', '.join(clocks.available)}" if clocks.available else ""
    fastest = board.clocks.get("max_khz")
    now += f", up to {max(fastest) / 1000:.0f} MHz" if isinstance(fastest, list) and fastest else ""
    yield {
        "write": Check("clocks", GREEN, f"{now}; may be set"),
        "denied": Check("clocks", YELLOW, f"{now}; this user may not set it", grant),
        "read-only": Check(
            "clocks", YELLOW, f"{now}; read-only here", "run outside the container, or mount /sys writable"
        ),
    }.get(clocks.access, Check("clocks", YELLOW, "no cpufreq: clocks can be neither seen nor fixed"))


def _meters(_board: Board, health: Health) -> Iterator[Check]:
    present = [f"{meter.name} ({meter.reason})" for meter in health.meters if meter.present]
    if present:
        yield Check("meter", GREEN, ", ".join(present))
        return
    for meter in health.meters:
        if meter.blocked:
            fix = "let ansible/ give the right to read meters, see docs/doctor.md"
            yield Check("meter", YELLOW, f"{meter.reason}: power stays null", fix)
            return
    null = next((meter.reason for meter in health.meters if meter.name == "null"), "")
    yield Check("meter", YELLOW, f"{null or 'no meter'}: power stays null", "use an external meter")


_LOOKS: tuple[Callable[[Board, Health], Iterator[Check]], ...] = (
    _system,
    _cpu,
    _python,
    _libraries,
    _memory,
    _disk,
    _clocks,
    _meters,
)


def _other_pythons(board: Board, health: Health, found: list[Candidate]) -> Iterator[Check]:
    """Another Python on the board for which more runtimes have wheels, or newer ones."""
    for each in health.interpreters:
        digits = each.version.split(".")
        if each.own or len(digits) < 2 or not all(digit.isdigit() for digit in digits[:2]):  # noqa: PLR2004
            continue
        try:
            own = wheels.platform_of(board, health.libstdcxx)
        except BoardError:
            return
        platform = Platform(own.machine, (int(digits[0]), int(digits[1])), own.glibc, own.libc, own.libstdcxx)
        if platform.python < (3, 8) or platform.python == own.python:
            continue
        better = []
        for candidate in found:
            wheel = wheels.advise(candidate.runtime, platform, board.isa).wheel
            if wheel and candidate.runs == "no":
                better.append(f"{wheel.name} {wheel.version}")
        if better:
            fix = f'name it in the target\'s file: python = "{each.path}"'
            yield Check("other Python", YELLOW, f"{each.version} ({each.path}) has {', '.join(better)}", fix)
