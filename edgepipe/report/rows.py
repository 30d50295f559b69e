"""One report seen as a row: the words and numbers that both the terminal and the page show.

Names and facts come from boards and model files, so every text passes through `plain`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgepipe import scenarios
from edgepipe.record import Accuracy, Bound, Energy, Measurement, OpProfile, Payoff, Report, Step, Sustained
from edgepipe.schema import Board, Power, Release

DASH = "\N{EN DASH}"
ON_BOARD = "on the board"
THIS_MACHINE = "this machine, not a board"
_HERE = ("local", "loopback")
_LONGEST = 2000
_UNCOMPRESSED = ("none", "baseline", "export", "exported")
_KILO = 1000


@dataclass(frozen=True)
class Row:
    """A report, and how many times smaller its file is than the uncompressed one in the same format."""

    report: Report
    smaller: float | None = None

    @property
    def run(self) -> Measurement | None:
        """The measurement, where one was tried."""
        return self.report.measurement

    @property
    def status(self) -> str:
        """The measurement's status, or "not measured"."""
        return self.run.status if self.run else "not measured"

    @property
    def accuracy(self) -> float | None:
        """The accuracy furthest down the chain that is known."""
        return final(self.report.accuracy)[0]

    @property
    def p50(self) -> Bound:
        """The median latency in ms."""
        return bound(self.run, "p50")

    @property
    def reason(self) -> str:
        """Why the row is not ok, where it is not."""
        if self.run is None:
            return "the chain ended before the board measured"
        first = next((caution.text for caution in self.run.warnings if caution.code == self.run.status), "")
        return self.run.reason or first

    @property
    def recipe(self) -> str:
        """The recipe, with threads and batch where they are not 1."""
        run, parts = self.run, [self.report.recipe]
        if run and run.threads != 1:
            parts.append(f"{run.threads} threads")
        if run and run.batch != 1:
            parts.append(f"batch {run.batch}")
        return plain(", ".join(parts))

    @property
    def name(self) -> str:
        """Model, recipe and format on one line."""
        return plain(f"{self.report.model.name} {self.recipe} {self.report.artifact.format}")


def rows(reports: Iterable[Report]) -> list[Row]:
    """See reports as rows; the sizes of uncompressed files are looked up among them."""
    reports = list(reports)
    sizes = {(r.model.sha256, r.artifact.format): r.artifact.bytes for r in reports if r.recipe == "none"}
    return [Row(report, _smaller(report, sizes)) for report in reports]


def _smaller(report: Report, sizes: dict[tuple[str, str], int]) -> float | None:
    steps = (step.bytes for step in report.steps if step.name in _UNCOMPRESSED and step.bytes)
    whole = sizes.get((report.model.sha256, report.artifact.format)) or next(steps, None)
    return whole / report.artifact.bytes if whole and report.artifact.bytes else None


def boards(found: list[Row]) -> list[tuple[Board, list[Row]]]:
    """Rows by board, since latencies compare on one board alone. Real boards come before this machine."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in found:
        board = row.report.board
        groups.setdefault((board.target, board.name, board.emulated), []).append(row)
    listed = [(group[0].report.board, group) for group in groups.values()]
    return sorted(listed, key=lambda pair: bool(caveat(pair[0])))


def caveat(board: Board) -> str:
    """Why a board's times are not those of a board; empty for real hardware."""
    if board.emulated:
        return f"emulated ({plain(board.emulated)}): times are not those of a board"
    return THIS_MACHINE if board.target in _HERE else ""


def facts(board: Board) -> str:
    """One line of facts about a board."""
    ram = "RAM not known" if board.ram_bytes is None else f"{size(board.ram_bytes)} RAM"
    cores = f"{board.cores} core{'' if board.cores == 1 else 's'}"
    parts = (board.model, board.cpu, board.arch, cores, ram, board.os, f"Python {board.python}")
    return plain(" · ".join(part for part in parts if part))


def plain(text: object) -> str:
    """Text without control characters, escapes or direction marks, cut at 2,000 characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text)[:_LONGEST])


def size(count: float | None) -> str:
    """Bytes with a decimal unit and three digits, e.g. ``1.23 MB``."""
    if count is None:
        return DASH
    return _scaled(count, ("B", "kB", "MB", "GB"))


def number(value: float | None) -> str:
    """Three significant digits, no exponent for everyday sizes."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if abs(value) >= _KILO else f"{value:.3g}"


def count(value: float | None) -> str:
    """A count with a unit and three digits, e.g. ``8.62 M``."""
    if value is None:
        return DASH
    return _scaled(value, ("", "k", "M", "G"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    for unit in units:
        if value < _KILO or unit == units[-1]:
            break
        value /= _KILO
    return f"{number(value)} {unit}".strip()


def zeros(found: int | None, weights: int | None) -> str:
    """The share of stored weights that are zero."""
    return DASH if found is None or not weights else f"{found / weights:.1%}"


def said(step: Step) -> str:
    """A step with the parameters it had."""
    params = ", ".join(f"{name}={value}" for name, value in step.params.items())
    return f"{step.name} ({params})" if params else step.name


def payoff_facts(found: Payoff) -> list[tuple[str, str]]:
    """Name and text of what changing the network bought."""
    before, after = found.before, found.after
    asked = f"{found.sparsity:.1%} asked for, " if found.sparsity is not None else ""
    pairs = [
        ("verdict", found.verdict),
        ("against", f"{found.against}, on {found.runtime}"),
        ("zeros", f"{asked}{zeros(found.zeros, found.weights)} of the weights stored"),
        ("file", f"{size(before.bytes)} -> {size(after.bytes)}"),
        ("gzip, zstd", f"{size(before.bytes_gzip)} -> {size(after.bytes_gzip)}, "
                       f"{size(before.bytes_zstd)} -> {size(after.bytes_zstd)}"),
        ("MACs, parameters", f"{count(before.macs)} -> {count(after.macs)}, "
                             f"{count(before.parameters)} -> {count(after.parameters)}"),
    ]  # fmt: skip
    return [(name, plain(text)) for name, text in pairs]


def millis(value: float | None, digits: int = 3) -> str:
    """A time with as many significant digits, zeros included: ``3.70``, ``0.284``, ``1,234``."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if abs(value) >= _KILO else f"{value:#.{digits}g}".rstrip(".")


def span(found: Bound) -> str:
    """The interval as from low to high, empty where there is none. Enough digits to tell its ends apart."""
    if found.low is None or found.high is None:
        return ""
    for digits in range(3, 7):
        low, high = millis(found.low, digits), millis(found.high, digits)
        if low != high or found.low == found.high:
            break
    return f"{low}{DASH}{high}"


def bound(run: Measurement | None, percentile: str) -> Bound:
    """One percentile of a run, or a null that says why there is none."""
    if run is None:
        return Bound(None, reason="not measured")
    if run.latency_ms is None:
        return Bound(None, reason=run.reason or run.status)
    found: Bound = getattr(run.latency_ms, percentile)
    return found


def final(accuracy: Accuracy | None) -> tuple[float | None, str]:
    """The accuracy furthest down the chain, and where it was taken."""
    if accuracy is None:
        return None, ""
    for value, where in (
        (accuracy.on_device, ON_BOARD),
        (accuracy.exported, "on the host"),
        (accuracy.compressed, "before export"),
        (accuracy.baseline, "of the baseline"),
    ):
        if value is not None:
            return value, where
    return None, ""


def score(value: float | None, accuracy: Accuracy | None) -> str:
    """A metric as people read it: per cent where all its values lie in [0, 1]."""
    if value is None or accuracy is None:
        return DASH
    return f"{value * 100:.2f} %" if _is_share(accuracy) else f"{value:.4g} {accuracy.unit}".strip()


def tick(value: float, accuracy: Accuracy | None) -> str:
    """A metric as an axis says it: like `score`, without idle digits."""
    return f"{value * 100:.6g} %" if accuracy and _is_share(accuracy) else f"{value:.6g}"


def drop(accuracy: Accuracy | None) -> str:
    """What the last value lost against the baseline, e.g. ``-0.20 pt`` (percentage points)."""
    last, _ = final(accuracy)
    if accuracy is None or accuracy.baseline is None or last is None:
        return ""
    lost = last - accuracy.baseline
    text = f"{lost * 100:+.2f} pt" if _is_share(accuracy) else f"{lost:+.4g}"
    return "no loss" if lost == 0 else text.replace("-", "\N{MINUS SIGN}")


def _is_share(accuracy: Accuracy) -> bool:
    values = (accuracy.baseline, accuracy.compressed, accuracy.exported, accuracy.on_device)
    return not accuracy.unit and all(0 <= value <= 1 for value in values if value is not None)


def measurement_facts(run: Measurement) -> list[tuple[str, str]]:
    """Name and text of every figure of a run; a null is a dash with its reason."""
    latency, thermal = run.latency_ms, run.thermal
    found = [("status", f"{run.status}{': ' + run.reason if run.reason else ''}")]
    ran = f"{run.precision_executed} on {run.provider}" if run.precision_executed else DASH
    found += [("really ran", ran), ("profile", f"{run.profile}, threads {run.threads}, batch {run.batch}")]
    for name in ("p50", "p90", "p95", "p99"):
        found.append((name, interval(run, name)))
    if latency:
        middle = f"mean {millis(latency.mean)} ms, stdev {millis(latency.stdev)} ms"
        found.append(("spread", f"{middle}, min {millis(latency.min)} ms, max {millis(latency.max)} ms"))
    found += [
        ("samples", f"{run.samples:,} from {run.processes} process{'' if run.processes == 1 else 'es'}"),
        ("throughput", f"{number(run.throughput_per_s)} inferences per second"),
        ("load, first", f"{millis(run.load_ms)} ms to load, {millis(run.first_ms)} ms for the first inference"),
        ("memory", f"{size(run.memory_peak_bytes)} at most"),
        ("timer", f"{number(run.timer_overhead_us)} us a call"),
    ]
    if run.cpus or run.governor:
        cores = f"cores {', '.join(map(str, run.cpus))}" if run.cpus else "any core"
        found.append(("set for the run", f"{cores}, governor {run.governor or 'left as it was'}"))
    if run.sustained:
        found += _sustained_facts(run.sustained)
    if run.scenario:
        found.append((run.scenario.name, scenarios.words(run.scenario)))
    if thermal.cooling:
        wait = thermal.cooling
        said = f"from {number(wait.before_c)} to {number(wait.after_c)} C in {number(wait.seconds)} s"
        found.append(("cooled", f"{said}, asked for {number(wait.target_c)} C"))
    heat = (
        f"{number(thermal.before_c)} before, {number(thermal.after_c)} after, {number(thermal.max_c)} at most (deg C)"
    )
    throttled = {True: "yes", False: "no", None: "not known"}[thermal.throttled]
    found.append(("heat", heat if thermal.max_c is not None else f"{DASH} ({thermal.reason})"))
    found.append(("throttled", f"{throttled}{': ' + thermal.reason if thermal.reason else ''}"))
    return [(name, plain(text)) for name, text in [*found, *_power_facts(run.power, run.energy_mj)]]


def _sustained_facts(found: Sustained) -> list[tuple[str, str]]:
    """The regimes of a sustained run in words."""

    def level(value: Bound) -> str:
        return f"{millis(value.value)} ms{f' [{span(value)}]' if span(value) else ''}"

    slower = f"{number(found.slowdown.value)}x the burst{_within(found.slowdown.low, found.slowdown.high)}"
    since = f", slower after {number(found.slower_after_s)} s" if found.slower_after_s is not None else ""
    throttled = (
        f"after {number(found.throttled_after_s)} s"
        if found.throttled_after_s is not None
        else f"never: {found.reason}"
    )
    return [
        ("cold", f"{millis(found.cold_ms)} ms, the first inference"),
        ("burst", f"{level(found.burst_ms)}, the first {found.burst_seconds} of {found.seconds} s"),
        ("sustained", f"{level(found.sustained_ms)}, the last {found.sustained_seconds} s: {slower}{since}"),
        ("throttled", throttled),
    ]


OPS = 30  # nodes that a table shows; JSON has all


def op_cells(found: OpProfile) -> list[list[str]]:
    """The slowest nodes as rows: share, total ms, mean us, calls, op, precision, what took it, name."""
    return [
        [
            DASH if row.share is None else f"{row.share:.1%}",
            number(None if row.total_us is None else row.total_us / 1000),
            number(row.mean_us),
            f"{row.calls:,}",
            *(plain(text) for text in (row.op, row.precision, row.provider, row.name)),
        ]
        for row in found.ops[:OPS]
    ]


OP_COLUMNS = ("share", "total ms", "mean us", "calls", "op", "precision", "by", "node")


def scaling(found: Iterable[Row]) -> list[list[Row]]:
    """Rows of one file on one board that differ in threads or batch alone: each group of more than one, in order."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in found:
        if row.run and row.run.throughput_per_s:
            board = row.report.board
            groups.setdefault((row.report.artifact.sha256, board.target, board.name), []).append(row)
    return [sorted(group, key=_options) for group in groups.values() if len({_options(row) for row in group}) > 1]


def _options(row: Row) -> tuple[int, int]:
    return (row.run.threads, row.run.batch) if row.run else (0, 0)


def _power_facts(power: Power, energy: Energy) -> list[tuple[str, str]]:
    """Mean power with all that it stands on, and the energy of an inference with its intervals."""
    if power.mean_w is None:
        return [("power", f"{DASH} ({power.reason})"), ("energy", f"{DASH} ({energy.reason})")]
    rest = f"{number(power.idle_w)} W at rest" if power.idle_w is not None else "not known at rest"
    seen = f"{power.source}, {power.rail} ({power.boundary}), {number(power.rate_hz)} Hz"
    step = f", steps of {number(power.resolution_w)} W" if power.resolution_w else ""
    figures = f"gross {number(energy.gross)} mJ{_within(energy.low, energy.high)}"
    if energy.net is not None:
        figures += f", net of rest {number(energy.net)} mJ{_within(energy.net_low, energy.net_high)}"
    reason = f" ({energy.reason})" if energy.reason else ""
    return [
        ("power", f"{number(power.mean_w)} W, {rest}; {seen}{step}"),
        ("energy", f"an inference: {figures}{reason}"),
    ]


def _within(low: float | None, high: float | None) -> str:
    return f" [{number(low)} to {number(high)}]" if low is not None and high is not None else ""


def provenance(report: Report) -> list[tuple[str, str]]:
    """Name and text of what the figures stand on: hashes, release, runtime, versions, board."""
    artifact, board, release = report.artifact, report.board, report.release
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()) if version)
    found = [
        ("report", f"{report.id or DASH}, {report.created or DASH}"),
        ("weights", f"sha256 {report.model.sha256 or DASH}"),
        ("file", f"{artifact.path}, {artifact.bytes:,} bytes, {artifact.bytes_gzip:,} gzipped"),
        ("file's hash", f"sha256 {artifact.sha256}"),
        ("release", _sent(release) if release else "not activated"),
        ("runtime", f"{board.runtime or DASH} {board.runtime_version}"),
        ("board", f"{facts(board)}, kernel {board.kernel}, governor {board.governor or 'not known'}"),
        ("versions", versions or DASH),
    ]
    return [(name, plain(text)) for name, text in found]


def _sent(release: Release) -> str:
    """What the board took, and which of it went as a delta."""
    told = [
        f"; {one.bytes:,} of them as {one.bytes_wire:,}: delta against {one.base[:12]}, {one.bytes_saved:,} saved"
        for one in release.deltas
    ]
    return f"{release.id}, {release.bytes_sent:,} bytes sent{''.join(told)}"


def interval(run: Measurement | None, percentile: str) -> str:
    """One percentile with its interval, or the reason why there is none."""
    found = bound(run, percentile)
    if found.value is None:
        return f"{DASH} ({found.reason})"
    return f"{millis(found.value)} ms [{span(found)}]" if span(found) else f"{millis(found.value)} ms ({found.reason})"
