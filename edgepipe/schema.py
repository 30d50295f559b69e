"""Every type that crosses a wire, a disk or a process: frozen dataclasses of the standard library alone.

The board reads this file too, so it loads on Python 3.8. `codec.to_dict` and `codec.from_dict` are the only way in
and out.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from edgepipe.codec import canonical

SHA256 = re.compile(r"[0-9a-f]{64}\Z")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\Z")


def digest(value: Any) -> str:
    """The sha256 in hex of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. ``shape`` includes the batch; -1 is a dynamic dimension."""

    name: str
    shape: List[int]
    dtype: str = "float32"
    layout: str = ""


@dataclass(frozen=True)
class Preprocessing:
    """The model expects ``(raw * scale - mean) / std`` per channel, in ``layout``; raw data lies in ``range``."""

    layout: str = ""
    dtype: str = "float32"
    range: List[float] = field(default_factory=lambda: [0.0, 1.0])
    scale: float = 1.0
    mean: List[float] = field(default_factory=list)
    std: List[float] = field(default_factory=list)
    color: str = ""


@dataclass(frozen=True)
class FileRef:
    """A file of an artifact or site: its flat or relative name, its content's sha256 and its size in bytes."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Artifact:
    """An exported model: its files and all a runtime needs to feed it.

    ``path`` is the main file and ``sha256`` that file's hash; where a format needs more files, the main one carries
    the hash of the others, so that one hash covers all. ``bytes`` sums over ``files``. ``parent_sha256`` is the hash
    of the weights it was made from. ``raw_layout`` is the layout of raw data sets (e.g. NHWC images).
    """

    format: str
    path: str
    bytes: int
    bytes_gzip: int
    sha256: str
    files: List[FileRef]
    inputs: List[TensorSpec]
    outputs: List[TensorSpec]
    preprocessing: Preprocessing
    opset: Optional[int] = None
    ir_version: Optional[int] = None
    model: str = ""
    recipe: str = "none"
    parent_sha256: str = ""
    raw_layout: str = ""


@dataclass(frozen=True)
class Runtime:
    """A runtime on the board; ``site``: in its own folder; ``reason``: why it is unusable; ``tag``: of its wheel."""

    name: str
    version: Optional[str] = None
    package: str = ""
    site: bool = False
    reason: str = ""
    tag: str = ""


@dataclass(frozen=True)
class Board:
    """Facts of a board, as its agent saw them. Sizes in bytes, clocks in kHz; null where the board does not say."""

    arch: str
    cpu: str
    isa: List[str]
    cores: int
    ram_bytes: Optional[int]
    os: str
    kernel: str
    python: str
    libc: str = ""
    model: str = ""
    hostname: str = ""
    governor: Optional[str] = None
    clocks: Dict[str, Any] = field(default_factory=dict)
    emulated: str = ""
    runtimes: List[Runtime] = field(default_factory=list)
    name: str = ""
    target: str = ""
    runtime: str = ""
    runtime_version: str = ""


@dataclass(frozen=True)
class SelfTest:
    """Golden inputs and outputs (sha256 of .npz blobs, arrays in the order of inputs/outputs) and the tolerance."""

    inputs: str
    outputs: str
    atol: float


@dataclass(frozen=True)
class Manifest:
    """A release: what a board needs to run one artifact. Its id is the hash of its content, so it bears no date."""

    name: str
    artifact: Artifact
    runtime: str
    selftest: Optional[SelfTest] = None
    schema: str = "edgepipe.release/1"

    @property
    def id(self) -> str:
        """The first 32 hex digits of the sha256 of the canonical JSON."""
        return digest(self)[:32]


@dataclass(frozen=True)
class ServiceState:
    """The board's own service, restarted with a release: its unit, and the seconds until it was well."""

    unit: str
    seconds: float


@dataclass(frozen=True)
class DeltaSent:
    """A file of ``bytes`` bytes that went as its differences from another, ``base``, which the board had.

    ``bytes_wire`` is what that took on the way, ``bytes_saved`` what was spared of the packed whole.
    """

    sha256: str
    base: str
    bytes: int
    bytes_wire: int
    bytes_saved: int


@dataclass(frozen=True)
class Release:
    """A release as a board holds it. ``activated_at`` is the board's clock, seconds since 1970.

    ``bytes_sent`` is what the board took, ``bytes_wire`` what that was on the way, packed, without the protocol's own.
    ``signer`` is the principal whose signature the board checked; empty where the board has no signers pinned.
    ``service`` is null where nothing was restarted. ``deltas`` are the files that did not go whole.
    """

    id: str
    previous: Optional[str] = None
    activated_at: Optional[float] = None
    bytes_sent: int = 0
    bytes_wire: Optional[int] = None
    seconds: float = 0.0
    changed: bool = True
    signer: str = ""
    service: Optional[ServiceState] = None
    deltas: List[DeltaSent] = field(default_factory=list)


@dataclass(frozen=True)
class RunOptions:
    """How a runtime opens a model: CPU threads, batch, and whether its graph optimiser is on.

    ``cpus`` are the cores its process may run on; empty leaves that to the kernel.
    """

    threads: int = 1
    batch: int = 1
    optimize: bool = True
    cpus: List[int] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """How long to measure. Seconds and counts are sums over ``processes``; warm-up bounds hold for each process.

    ``idle_seconds`` is how long the board rests before, where a meter reads its power. ``governor`` is set for the run
    and put back; before it the board cools to ``cool_to_c``, for ``cool_seconds`` at most. ``sustain_seconds`` is how
    long one process runs without a pause, to see what the board can keep up. ``scenario`` is one of MLPerf's, in which
    ``min_samples`` counts queries; of a server ``rate`` is how many come in a second.
    """

    profile: str = "quick"
    processes: int = 3
    min_seconds: float = 10.0
    min_samples: int = 130
    warmup_seconds: float = 1.0
    warmup_runs: int = 20
    warmup_cap_seconds: float = 30.0
    deadline_seconds: float = 600.0
    idle_seconds: float = 0.0
    governor: str = ""
    cool_to_c: Optional[float] = None
    cool_seconds: float = 600.0
    sustain_seconds: float = 0.0
    scenario: str = ""
    rate: float = 0.0


@dataclass(frozen=True)
class Cooling:
    """The wait before a run: the hottest zone at its begin and its end in degrees C, null without a sensor."""

    target_c: float
    before_c: Optional[float]
    after_c: Optional[float]
    seconds: float


@dataclass(frozen=True)
class Window:
    """From ``start`` to ``end``, in seconds since the run began."""

    start: float
    end: float


@dataclass(frozen=True)
class Power:
    """Mean power over the timed run, in W; null with its reason where nothing measured it.

    ``boundary`` is what the meter sees: soc, board or wall. ``rate_hz`` is how often it really gave a reading in the
    ``seconds`` of the timed run, ``resolution_w`` its smallest step, ``idle_seconds`` how long the board rested before.
    ``clock_error_s`` bounds how far readings taken on the host may lie off the board's clock.
    """

    mean_w: Optional[float] = None
    idle_w: Optional[float] = None
    source: Optional[str] = None
    rail: Optional[str] = None
    rate_hz: Optional[float] = None
    reason: str = ""
    boundary: str = ""
    resolution_w: Optional[float] = None
    samples: int = 0
    seconds: Optional[float] = None
    idle_seconds: Optional[float] = None
    clock_error_s: Optional[float] = None


@dataclass(frozen=True)
class PowerSamples:
    """What a meter said, and when (seconds since the run began); a reading in W, or null where one failed.

    ``faults`` counts what failed readings said.
    """

    at: List[float] = field(default_factory=list)
    watts: List[Optional[float]] = field(default_factory=list)
    faults: Dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Caution:
    """A warning as a value: a stable code, a text that says the cause, and the flag or act that helps."""

    code: str
    text: str
    hint: str = ""


@dataclass(frozen=True)
class ProcessSamples:
    """One measured process, times in ns. ``samples_ns`` is the steady part alone; ``warmup_runs`` came before.

    ``timed`` is when the steady part ran. ``cpus`` are the cores the process was allowed. In a sustained run
    ``kept`` counts the samples kept of each second; of other runs all are. ``batch`` is how many inferences a sample
    stands for; ``waiting`` is how many queries of a server were left over.
    """

    load_ns: int
    first_ns: int
    warmup_runs: int
    steady: bool
    memory_peak_bytes: Optional[int]
    samples_ns: List[int]
    batch: int = 1
    timed: Optional[Window] = None
    cpus: List[int] = field(default_factory=list)
    kept: List[int] = field(default_factory=list)
    waiting: int = 0


@dataclass(frozen=True)
class StateSample:
    """The board's state at one moment: seconds since the run began, degrees C by zone, kHz by core."""

    at: float
    temperature_c: Dict[str, float] = field(default_factory=dict)
    clock_khz: List[int] = field(default_factory=list)
    governor: Optional[str] = None
    throttle_bits: Optional[int] = None
    load1: Optional[float] = None
    memory_free_bytes: Optional[int] = None


@dataclass(frozen=True)
class Executed:
    """What a runtime really ran, counted by nodes; empty where it does not say.

    ``kernels`` counts those that compute by precision, ``layers`` the matrix products and convolutions among them;
    ``providers`` counts all nodes by what took them (execution provider, delegate, plug-in). ``integer_layers`` is how
    many layers the file itself says are to be computed in integers; null where nobody looked.
    """

    kernels: Dict[str, int] = field(default_factory=dict)
    layers: Dict[str, int] = field(default_factory=dict)
    providers: Dict[str, int] = field(default_factory=dict)
    integer_layers: Optional[int] = None


@dataclass(frozen=True)
class OpTime:
    """What the runtime says of one node of the graph: its calls, and all their time in us, null where it keeps none."""

    name: str
    op: str
    calls: int
    total_us: Optional[float]
    precision: str = ""
    provider: str = ""


@dataclass(frozen=True)
class RawRun:
    """What the agent hands back of one bench: nothing in it is computed beyond what the clocks and sensors said.

    ``power`` declares the meter (or why there is none), ``power_samples`` are its readings. ``idle`` is when the board
    rested before the run. ``began`` is the board's monotonic clock, in s, at the moment all other times count from.
    ``failures`` make the run a failed one, ``cautions`` do not.
    """

    runtime: str
    runtime_version: str
    precision_executed: str
    provider: str
    processes: List[ProcessSamples]
    states: List[StateSample]
    timer_overhead_ns: Optional[float]
    power: Power = field(default_factory=Power)
    failures: List[Caution] = field(default_factory=list)
    power_samples: PowerSamples = field(default_factory=PowerSamples)
    idle: Optional[Window] = None
    began: Optional[float] = None
    executed: Executed = field(default_factory=Executed)
    cooling: Optional[Cooling] = None
    cautions: List[Caution] = field(default_factory=list)
