"""What the host writes down of a model, its steps and its runs: the types of reports. Boards never see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from edgepipe.schema import Artifact, Board, Caution, Cooling, Executed, Power, Release


@dataclass(frozen=True)
class Bound:
    """A value with the bounds of its confidence interval; ``reason`` where it could not be measured."""

    value: Optional[float]
    low: Optional[float] = None
    high: Optional[float] = None
    reason: str = ""


@dataclass(frozen=True)
class Latency:
    """The steady distribution in ms. Intervals are distribution-free at 95 %."""

    p50: Bound
    p90: Bound
    p95: Bound
    p99: Bound
    mean: Optional[float]
    stdev: Optional[float]
    min: Optional[float]
    max: Optional[float]


@dataclass(frozen=True)
class Thermal:
    """Hottest zone in degrees C before, after and at most during the run; null where the board has no sensor.

    ``cooling`` is the wait before the run, where one was asked for.
    """

    before_c: Optional[float] = None
    after_c: Optional[float] = None
    max_c: Optional[float] = None
    throttled: Optional[bool] = None
    reason: str = ""
    cooling: Optional[Cooling] = None


@dataclass(frozen=True)
class Sustained:
    """What one process kept up for ``seconds``. Latencies are in ms: medians with their intervals.

    ``cold_ms`` is the first inference, ``burst_ms`` the first ``burst_seconds`` of steady calls, ``sustained_ms`` the
    last ``sustained_seconds``; ``slowdown`` is sustained over burst. ``throttled_after_s`` is when a clock fell or a
    throttle bit rose (null with its ``reason``), ``slower_after_s`` when calls became slower, if they did.
    """

    seconds: int
    cold_ms: float
    burst_ms: Bound
    burst_seconds: int
    sustained_ms: Bound
    sustained_seconds: int
    slowdown: Bound
    throttled_after_s: Optional[float] = None
    slower_after_s: Optional[float] = None
    reason: str = ""


@dataclass(frozen=True)
class Scenario:
    """What a run in one of MLPerf's scenarios came to: ``value`` of ``metric`` in ``unit`` (ms, or samples/s).

    A latency is the early-stopping estimate of its percentile: with 99 % confidence the true one is no larger.
    ``valid`` is whether the run was as long as MLPerf's rules ask, ``reason`` why not, or why there is no value.
    ``rate_per_s`` and ``waiting`` (queries that came and were not begun) are of a server.
    """

    name: str
    metric: str
    unit: str
    value: Optional[float]
    queries: int
    samples_per_query: int
    seconds: float
    valid: bool
    reason: str = ""
    rate_per_s: Optional[float] = None
    waiting: int = 0


@dataclass(frozen=True)
class Energy:
    """Energy per inference in mJ, gross and net of idle, each with its 95 % interval."""

    gross: Optional[float] = None
    net: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None
    reason: str = ""
    net_low: Optional[float] = None
    net_high: Optional[float] = None


@dataclass(frozen=True)
class Measurement:
    """One measured (or failed) run. ``status``: ok | unstable | throttled | failed | timeout | unreachable.

    ``cpus`` are the cores its processes were kept to, ``governor`` the one set for it; empty where nobody asked.
    """

    status: str
    profile: str
    threads: int
    precision_executed: str = ""
    provider: str = ""
    load_ms: Optional[float] = None
    first_ms: Optional[float] = None
    samples: int = 0
    processes: int = 0
    latency_ms: Optional[Latency] = None
    throughput_per_s: Optional[float] = None
    memory_peak_bytes: Optional[int] = None
    timer_overhead_us: Optional[float] = None
    thermal: Thermal = field(default_factory=Thermal)
    clocks: Dict[str, Any] = field(default_factory=dict)
    power: Power = field(default_factory=Power)
    energy_mj: Energy = field(default_factory=Energy)
    warnings: List[Caution] = field(default_factory=list)
    raw: Dict[str, Any] = field(default_factory=dict)
    batch: int = 1
    reason: str = ""
    executed: Executed = field(default_factory=Executed)
    cpus: List[int] = field(default_factory=list)
    governor: str = ""
    sustained: Optional[Sustained] = None
    scenario: Optional[Scenario] = None


@dataclass(frozen=True)
class Step:
    """What one step of a recipe did, and what the file in the format asked for is like after it.

    ``accuracy`` is the task's own metric, or null. ``parameters`` and ``macs`` (multiply-accumulates of one sample) are
    the network's. ``sparsity`` is the share of weights a step was asked to zero, ``weights`` and ``zeros`` are what the
    file really stores. A size or count that nobody took is null, and ``note`` says why where it matters.
    """

    name: str
    params: Dict[str, Any] = field(default_factory=dict)
    bytes: Optional[int] = None
    accuracy: Optional[float] = None
    seconds: Optional[float] = None
    note: str = ""
    bytes_gzip: Optional[int] = None
    bytes_zstd: Optional[int] = None
    parameters: Optional[int] = None
    macs: Optional[int] = None
    sparsity: Optional[float] = None
    weights: Optional[int] = None
    zeros: Optional[int] = None


@dataclass(frozen=True)
class Accuracy:
    """The task's metric on each rung, all on the same ``samples``. A null has its ``reason``.

    It is a share of 1 unless it has a ``unit``. ``further`` has what else the task measures, by rung and name.
    """

    metric: str
    samples: int
    baseline: Optional[float] = None
    compressed: Optional[float] = None
    exported: Optional[float] = None
    on_device: Optional[float] = None
    dataset: str = ""
    reason: str = ""
    unit: str = ""
    lower_is_better: bool = False
    further: Dict[str, Dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rung:
    """A step of the parity ladder against the one before: cosine lies in [-1, 1], disagreement in [0, 1]."""

    rung: str
    max_abs: Optional[float]
    mean_abs: Optional[float]
    cosine: Optional[float]
    disagreement: Optional[float]
    note: str = ""


@dataclass(frozen=True)
class ModelFacts:
    """Who the model is: ``sha256`` of its weights, parameters, multiply-accumulates for one sample."""

    name: str
    task: str
    sha256: str
    parameters: Optional[int]
    macs: Optional[int]
    reason: str = ""


@dataclass(frozen=True)
class Sizes:
    """How large a file and its network are: bytes, bytes packed, parameters, multiply-accumulates of one sample."""

    bytes: Optional[int]
    bytes_gzip: Optional[int] = None
    bytes_zstd: Optional[int] = None
    parameters: Optional[int] = None
    macs: Optional[int] = None


@dataclass(frozen=True)
class Payoff:
    """What changing the network bought ``against`` the same recipe without it, and the verdict in words.

    ``sparsity`` is the share of weights that was asked to be zero; ``weights`` and ``zeros`` are what the file stores.
    ``latency_ratio`` is time with over time without, measured in turns on one board: below 1 is faster.
    """

    against: str
    runtime: str
    sparsity: Optional[float]
    weights: Optional[int]
    zeros: Optional[int]
    before: Sizes
    after: Sizes
    latency_ratio: Bound
    verdict: str


@dataclass(frozen=True)
class OpRow:
    """One node in ``runs`` inferences: times in us, ``share`` of the time of all nodes; null where none is kept."""

    name: str
    op: str
    calls: int
    total_us: Optional[float]
    mean_us: Optional[float]
    share: Optional[float]
    precision: str = ""
    provider: str = ""


@dataclass(frozen=True)
class OpProfile:
    """Where the time goes, node by node, slowest first, from a run of its own; ``reason`` says what is not known."""

    runs: int
    ops: List[OpRow]
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """Something that is not the same in two runs, as each side has it."""

    what: str
    a: str
    b: str


@dataclass(frozen=True)
class Comparison:
    """Run ``b`` over run ``a``, by id: ratios of their percentiles with 95 % intervals; above 1, b is slower.

    ``verdict`` is "regression" (slower by more than ``max_slowdown``, for sure), "slower", "faster", "no difference
    shown" or "not known", by p50. ``interleaved``: measured in ``rounds`` turns on one board; else apart, and
    ``differs`` lists what was not alike, so that the verdict is no verdict on the model.
    """

    a: str
    b: str
    ratios: Dict[str, Bound]
    verdict: str
    max_slowdown: float
    interleaved: bool
    differs: List[Difference] = field(default_factory=list)
    rounds: int = 0
    schema: str = "edgepipe.comparison/1"


@dataclass(frozen=True)
class Report:
    """One row of the contract: everything known of one model x recipe x format x board."""

    model: ModelFacts
    recipe: str
    steps: List[Step]
    artifact: Artifact
    accuracy: Optional[Accuracy]
    parity: List[Rung]
    board: Board
    release: Optional[Release]
    measurement: Optional[Measurement]
    versions: Dict[str, Optional[str]]
    pruning: Optional[Payoff] = None
    ops: Optional[OpProfile] = None
    id: str = ""
    created: str = ""
    schema: str = "edgepipe.report/1"
