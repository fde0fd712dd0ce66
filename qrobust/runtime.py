"""Load an exported artifact, replay its robustness suite, attack it without gradients, and give a verdict.

This file needs Python, numpy and onnxruntime only, or what else runs the artifact's target: ai-edge-litert, openvino.
It travels inside every artifact as `verify.py`:

    python -I verify.py [ARTIFACT] [--baseline F]     0: every limit held, 1: a limit was broken, 2: it could not run
"""

# ruff: noqa: E402  (what makes later imports safe comes first)
import os  # frozen into Python, as little else is: nothing beside this file can stand in for it
import sys

INSIDE = "--inside"  # the first argument of the process that a check runs in

if __name__ == "__main__":
    # An artifact may hold any file, and Python looks for modules beside a script first: it must not look there.
    _own = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120
    for _place in sys.path[:]:
        if not _place or os.path.realpath(_place) == _own or os.path.exists(f"{_place}/manifest.json"):  # noqa: PTH110
            sys.path.remove(_place)

    def _end(kind: object, error: object, _trace: object) -> None:
        # Python's own exit code is 1 here, which would say that a limit was broken; imports fail where memory is short.
        try:
            got = f"got {getattr(kind, '__name__', kind)}: {' '.join(str(error).split())}"
            print(f"error: expected Python to start, {got}; free memory, or mend it", file=sys.stderr, flush=True)
        finally:
            os._exit(66 if sys.argv[1:2] == [INSIDE] else 2)

    sys.excepthook = _end

import argparse
import ctypes
import hashlib
import importlib
import importlib.metadata
import io
import json
import math
import mmap
import platform
import shlex
import signal
import subprocess
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, reduce
from pathlib import Path
from statistics import NormalDist, median
from types import SimpleNamespace
from typing import Any, NoReturn
from xml.sax.saxutils import quoteattr

LINUX = sys.platform == "linux"
if LINUX:
    import resource

# Of a check's process: seconds, and GiB of memory that it writes to; codes that no crash ends with stand for 0, 1, 2.
MAX_SECONDS, MAX_GIB, CODES = 3600, 8, {64: 0, 65: 1, 66: 2}
LEAST_MEMORY = 96 * 2**20  # bytes of addresses: with less, numpy's OpenBLAS ends the process without a word of why
# What onnxruntime reads from the environment changes sessions, writes files and loads libraries; but not this one.
SETTINGS, HARMLESS = ("ORT_", "NVIDIA_TF32_OVERRIDE"), ("ORT_DISABLE_TELEMETRY",)
FLAGS = {"ignore_environment": "-E", "no_user_site": "-s", "no_site": "-S"}  # of Python, that a check passes on


class ArtifactError(Exception):
    """An artifact that cannot be used as asked; the message is one line: expected, got, what to do."""

    exit_code = 2


def _one_line(text: object) -> str:
    # Names out of a file, or of one, could redraw a terminal or fake a second line.
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(text).split()))


def _expect(condition: object, expected: str, got: object, do: str = "export the artifact again") -> None:
    if not condition:
        raise ArtifactError(_one_line(f"expected {expected}, got {_one_line(got)[:200]}; {do}"))


@contextmanager
def _expecting(expected: str, do: str = "export the artifact again") -> Iterator[None]:
    try:
        yield
    except ArtifactError:
        raise
    except MemoryError:
        _expect(False, expected, "too little memory", "free some, or raise --memory or ulimit")
    except Exception as error:  # damaged files raise anything, and onnxruntime's errors share no base
        _expect(False, expected, f"{type(error).__name__}: {error}", do)


# The command line, and the process that it checks in: neither needs numpy


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArtifactError(f"expected arguments as --help lists them, got: {message}; mend the command")


def _file(text: str) -> Path:
    # Path("") is the current folder: an unset variable would choose another file than was meant, or none.
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty file name; name a file, or leave the option out")
    return Path("-" if text == "/dev/stdout" else text)  # else the report would stand before the result


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of verify.py and `qrobust check`. Raises ArtifactError for what they do not take."""
    parser = _Parser(description="Check an artifact: 0 held, 1 broken, 2 could not run.", allow_abbrev=False)
    parser.add_argument("artifact", nargs="?", type=_file, default=Path(__file__).parent, help="its folder")
    parser.add_argument("--baseline", type=_file, metavar="F", help="compare with the outcomes and limits pinned in F")
    parser.add_argument("--update-baseline", action="store_true", help="pin the outcomes and limits instead")
    parser.add_argument("--reason", default="", metavar="TEXT", help="why the baseline changes")
    for kind in ("json", "junit", "markdown"):
        parser.add_argument(f"--{kind}", type=_file, metavar="F", help=f"write the result to F as {kind}; -: print it")
    parser.add_argument("--queries", type=int, metavar="N", help="queries per image for Square")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of Square")
    parser.add_argument("--timeout", type=float, default=MAX_SECONDS, metavar="S", help="end a check after S seconds")
    parser.add_argument("--memory", type=float, default=MAX_GIB, metavar="GIB", help="most memory of a check (Linux)")
    options = parser.parse_args(argv)
    valid = 0 < options.timeout < 1e7 and 0 < options.memory < 1e5
    _expect(valid, "--timeout and --memory above 0", (options.timeout, options.memory), "raise them")
    return options


def _refused(error: BaseException) -> int:
    """Say in one line why there is no verdict; returns exit code 2."""
    line = _one_line(error)
    if not isinstance(error, ArtifactError):
        got = type(error).__name__ + (f": {line}" if line else "")
        line = f"expected a check to the end, got {got}; check again, with more memory if it is short"
    with suppress(OSError, ValueError):
        print("error:", line, file=sys.stderr, flush=True)
    return 2


def apart(argv: Sequence[str]) -> int:
    """`main` in a process of its own, whose time and memory are limited; returns 0, 1 or 2, whatever ends it."""
    try:
        options = arguments(argv)
        cleared = sorted(name for name in os.environ if name.startswith(SETTINGS) and name not in HARMLESS)
        if cleared:
            print(f"note: a check does not pass on {', '.join(cleared)}", file=sys.stderr)
        if not LINUX:
            print("note: memory of a check is limited on Linux alone", file=sys.stderr)
        environment = {name: value for name, value in os.environ.items() if name not in cleared}
        flags = ["-P", *(flag for name, flag in FLAGS.items() if getattr(sys.flags, name))]
        command = [sys.executable, *flags, __file__, INSIDE, *argv]
        with subprocess.Popen(command, env=environment) as process:
            try:
                code = process.wait(options.timeout)
            except subprocess.TimeoutExpired:
                _expect(False, f"a check within {options.timeout:g} s", "none", "raise --timeout, or mend the model")
            finally:
                process.kill()
        do = "raise --memory, or mend the model"
        _expect(code in CODES, f"a check within {options.memory:g} GiB that ends by itself", f"exit code {code}", do)
        return CODES[code]
    except (Exception, KeyboardInterrupt) as error:
        return _refused(error)


def _enclose(options: argparse.Namespace) -> None:
    """Limit this process, let it end with its parent, and leave stderr to Python: C libraries write pages there."""
    with suppress(OSError, AttributeError):  # either is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    mmap.mmap(-1, LEAST_MEMORY).close()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says it
    if LINUX:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit_memory(int(options.memory * 2**30))


def limit_memory(most: int) -> None:
    """Limit what this process may write to, in bytes, where the system can; -1: no more than it was limited before.

    Address space would be the wrong measure: threads, arenas and GPUs reserve many times what they use.
    """
    if LINUX:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = hard if most < 0 else most if hard < 0 else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


if __name__ == "__main__":
    if sys.argv[1:2] != [INSIDE]:
        sys.exit(apart(sys.argv[1:]))
    _enclose(arguments(sys.argv[2:]))

try:
    import numpy as np
except ImportError as error:
    if __name__ != "__main__":
        raise
    lines = str(error).strip().splitlines()  # numpy's are a page, of which the last is the cause
    _refused(ArtifactError(f"expected numpy, got {lines[-1]}; pip install numpy onnxruntime, or free memory"))
    os._exit(66)

Array = np.ndarray[Any, np.dtype[Any]]
OnStep = Callable[[int, int], None] | None
MaybePath = Path | None
Outcomes = Mapping[str, Array]  # by set and "square": bool (n,), True where the label is right

MAX_FILE_BYTES, MAX_SUITE_BYTES, MAX_FILES, MAX_THREADS = 2**29, 2**29, 32, 1024
NORMS = ("linf", "l2")
MAX_PIXELS = 2**24  # of an image, and of as many as are at work at once: 64 MiB of floats
# What a graph may take: layout, type and range; a camera's bytes are the second.
IMAGES = (("NCHW", "float32", [0, 1]), ("NHWC", "uint8", [0, 255]))
# Every key that a manifest must hold. int: 1 or more, but seed; float: in [0, 1]; object: anything.
MANIFEST: dict[str, type] = {
    **dict.fromkeys(("name", "producer", "data_fingerprint", "input name", "output name", "target name"), str),
    **dict.fromkeys(("bits_per_layer", "recipe", "versions", "metrics before", "metrics after"), dict),
    **{"bits": object, "seed": object, "opset": int, "square queries": int, "square n": int},
    **{"target provider": str, "target session_options": dict, "input shape": list, "classes": list},
    **{"files model.onnx": dict, "files suite.npz": dict, "files verify.py": dict},
    **{"threat norm": str, "reference clean": float, "limits label_flips": float},
    **{"limits accuracy_drop": float, "limits robust_drop": float, "limits square_gap": float},
    **{"statistics alpha": float, "statistics power": float, "statistics detected_drop": float},
}
# Beyond these a manifest's limits would hold for a network that is broken, and its Square would break none.
TOLERATED, MOST_TOLERATED = ("label_flips", "accuracy_drop", "robust_drop", "square_gap"), 0.1
LEAST_ALPHA, MOST_DETECTED = 0.001, 0.5
LEAST_QUERIES, LEAST_IMAGES, MOST_QUERIES = 50, 32, 10**6  # of 32 images some show what a tenth hides, 97 times of 100
SAME = ("images", "queries", "seed", "counts", "policy")  # what a check must share with its baseline
BASELINE = ("artifact", "model", "suite", *SAME, "accuracy", "outcomes", "versions")
LEVELS = {"disable": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED", "all": "ENABLE_ALL"}
# By onnxruntime's names. x64quantprecision = 1: sums of 8-bit products do not saturate, set where they could alone.
ENTRIES = {"allow_spinning": "session.intra_op.allow_spinning", "x64quantprecision": "session.x64quantprecision"}
CPUINFO, VNNI = Path("/proc/cpuinfo"), frozenset((b"avx512_vnni", b"avx_vnni"))  # where Linux lists it, and its names
# Providers of model.tflite, and the kernels that each asks LiteRT's interpreter for.
XNNPACK, DELEGATE = "litert-xnnpack", "DELEGATE"
LITERT = {XNNPACK: "AUTO", "litert-reference": "BUILTIN_REF"}
OPENVINO = "openvino"  # the package's CPU plugin; onnxruntime's provider of that name is a build of its own
ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
OPTIONS = ("graph_optimization_level", "intra_op_num_threads", "inter_op_num_threads", *ENTRIES)
HINT_EXPORT = "compare the runtime, its provider and options with the manifest, then export again"
# Whose labels a suite holds, by the manifest's parity: "none" for a file of which no torch network is known.
ORIGINS = {"torch": "the network before export", "none": "its own session when it was exported"}
NO_PARITY = "Parity: none. No torch network is known; labels and logits are compared with its own session then."
HINT_LOST = "compare model and recipe with the baseline's; a wanted loss is pinned by --update-baseline --reason TEXT"
HINT_DEVICE = "export for a target that suits this device, or change the target's limit"
HINT_MASKED = "gradients misled the stored attacks: attack with other backward passes, losses and restarts"
UPDATE = "--update-baseline --reason TEXT"
NOTE = """Replayed examples were made before export: they can only overestimate robustness.
Square runs on this session, without gradients; a stronger attack may find more."""


@dataclass(frozen=True)
class Verdict:
    """One limit: `passed` if it held; measured, limit: fractions, ms or bytes; `hint`: what to do if it is broken.

    Of a test also: ci95, its `paired_interval`; p_value, adjusted by `holm`; needed, its `images_needed`.
    """

    name: str
    passed: bool
    measured: float
    limit: float
    reason: str
    hint: str
    ci95: tuple[float, float] | None = None
    p_value: float | None = None
    needed: int = 0


@dataclass(frozen=True)
class Report:
    """What `check` found; accuracies are fractions, by set of the suite and for "square".

    counts: images behind an accuracy; ci95: its Wilson interval; reference: accuracy of the baseline, or before export;
    worst_case: share of images right in every set, and under Square where it ran; found_by: by set whose attack has
    parts, of the images that are wrong how many each part found; outcomes: bits, in hex, of the
    images that are right; images: sha256 of clean images with labels; model, suite: of the files; session: provider
    and level; parity: "torch", whose labels the suite holds, or "none": those of the file's own session when it was
    exported; same_suite: whether the baseline's suite is this one; policy: limits, statistics, target, threat and
    bounds of Square, which a baseline pins.
    """

    passed: bool
    artifact: str
    verdicts: tuple[Verdict, ...]
    accuracy: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    counts: dict[str, int]
    reference: dict[str, float]
    baseline: str | None
    same_suite: bool
    statistics: dict[str, Any]
    policy: dict[str, Any]
    worst_case: float
    found_by: dict[str, dict[str, int]]
    label_flips: float
    n: int
    queries: int
    seed: int
    eps: float
    images: str
    model: str
    suite: str
    session: str
    parity: str
    outcomes: dict[str, str]
    seconds: float
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return asdict(self)


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share, at 95 % unless z says otherwise: (low, high), both in [0, 1].

    Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}; count again")
    share, weight = successes / n, 1 + z * z / n
    center = (share + z * z / (2 * n)) / weight
    half = z / weight * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact bound is 0 or 1; rounding would miss it by 1e-17.
    return (center - half if successes else 0.0), (center + half if successes < n else 1.0)


def paired_interval(lost: int, gained: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of the drop (lost - gained) / n of an accuracy on the same n images.

    Wald's, with one image added to both counts (Bonett and Price 2012, J. Educational and Behavioral Stat. 37:479).
    """
    first, second = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = z * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    return max(first - second - half, -1.0), min(first - second + half, 1.0)


def drop_score(lost: Any, gained: Any, n: int, drop: float) -> Any:
    """Nam's score statistic of a drop of accuracy on the same n images; counts as numbers or arrays, drop in (-1, 1).

    Z = (lost - gained - n drop) / sqrt(n (2 w + drop (1 - drop))), near N(0, 1) if the drop is true; w, the likeliest
    share of images gained under it, solves 2 n w^2 - part w - gained drop (1 - drop) = 0 for
    part = (lost + gained) (1 - drop) - 2 drop (n - lost). For drop = 0 this is McNemar's (Nam 1997, Biometrics
    53:1422; Tango 1998, Statistics in Medicine 17:891). It grows with images lost and falls with those gained.
    """
    if drop < 0:
        return -drop_score(gained, lost, n, -drop)
    part = (lost + gained) * (1 - drop) - 2 * drop * (n - lost)
    won = (part + np.sqrt(part**2 + 8 * n * gained * drop * (1 - drop))) / (4 * n)
    return (lost - gained - n * drop) / np.sqrt(np.maximum(n * (2 * won + drop * (1 - drop)), 1e-300))


def _least_drop(lost: int, gained: int, n: int, z: float) -> float:
    """The drop whose score is z: an end of Tango's interval (1998)."""
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if drop_score(lost, gained, n, middle) > z else (low, middle)
    return low


def _fewest_lost(gained: Array, n: int, drop: float, least: float) -> Array:
    """By images gained, the fewest lost whose score is `least` or more; one more than can be lost if none is."""
    low, high = np.full(len(gained), -1), n - gained + 1
    while (high - low > 1).any():
        middle = (low + high) // 2
        valid = (middle >= 0) & (drop_score(middle, gained, n, drop) >= least)
        low, high = np.where(valid, low, middle), np.where(valid, middle, high)
    return high


def _most_counted(share: float, n: int) -> int:
    """A count that Bin(n, share) exceeds with a chance below 1e-11."""
    return min(n, int(n * share + 7 * math.sqrt(n * share) + 25))


def _chance(fewest: Array, n: int, won: float, drop: float, logs: Array) -> float:
    """P[lost >= fewest[gained]] of n images, of which a share `won` is gained, won + drop lost; logs: of 0! to n!."""
    first = max(int(n * won - 7 * math.sqrt(n * won)) - 1, 0)
    gained = np.arange(first, _most_counted(won, n) + 1)[:, None]
    lost = np.arange(fewest[gained].min(), _most_counted(won + drop, n) + 1)
    same = n - gained - lost
    valid, same = (same >= 0) & (lost >= fewest[gained]), np.maximum(same, 0)
    log_lost, log_won, log_same = (math.log(max(p, 1e-300)) for p in (won + drop, won, 1 - 2 * won - drop))
    terms = logs[n] - logs[lost] - logs[gained] - logs[same] + lost * log_lost + gained * log_won + same * log_same
    return float(np.exp(terms[valid]).sum())


def drop_p_value(lost: int, gained: int, n: int, tolerated: float, level: float = 0.025) -> float:
    """One-sided p-value of "accuracy on the same n images dropped by no more than `tolerated`", a share in [0, 1).

    The exact unconditional test of non-inferiority of paired proportions. Outcomes are ordered by the lower end of
    Tango's interval at `level` (the drop whose `drop_score` is z_level), and with w for the share of images gained

        p = max over w <= w_max of P[order >= the observed one | gained ~ w, lost ~ w + tolerated] + level / 1000

    P is largest at the bound tolerated, since the order grows with images lost (Hsueh, Liu and Chen 2001, Biometrics
    57:478); level / 1000 bounds the chance that w > w_max, a limit on w by Okamoto's inequality (Berger and Boos 1994,
    JASA 89:1012). Chosen since it errs in at most alpha of cases, on few images and few that changed too, where the
    score compared with N(0, 1) errs in up to twice as many. p falls with images lost and grows with those gained and
    with `tolerated`; p <= level where the exact lower limit of the drop (Lloyd and Moldovan 2007, Statistics in
    Medicine 26:3369) is above `tolerated`. level: alpha of this test, where it has the most power; it is valid at any.
    Raises ValueError for impossible counts.
    """
    if not (min(lost, gained) >= 0 and lost + gained <= n and 0 <= tolerated < 1):
        raise ValueError(f"expected lost + gained <= n and a share tolerated, got {(lost, gained, n, tolerated)}")
    if lost == 0:  # with w = 0 no outcome is ordered lower
        return 1.0
    bound, missed = _least_drop(lost, gained, n, -NormalDist().inv_cdf(level)), level / 1000
    top = (1 - tolerated) / 2  # where every image changes
    most = min(wilson(gained, n, math.sqrt(-2 * math.log(missed)))[1], top)
    least = float(drop_score(lost, gained, n, bound)) - 1e-9  # what is equal but for rounding belongs to it
    fewest = _fewest_lost(np.arange(_most_counted(most, n) + 1), n, bound, least)
    logs = np.concatenate([[0.0], np.log(np.arange(1, n + 1)).cumsum()])

    # On the arcsine scale a standard deviation is as long everywhere: half of one a step, then finer around the best.
    last, best = math.asin(math.sqrt(most / top)), 0.0
    angles = np.linspace(0, last, int(4 * math.sqrt(n) * last) + 2)
    for _ in range(4):
        found = [_chance(fewest, n, min(top * math.sin(angle) ** 2, most), tolerated, logs) for angle in angles]
        at, best = int(np.argmax(found)), max(best, *found)
        angles = np.linspace(angles[max(at - 1, 0)], angles[min(at + 1, len(angles) - 1)], 11)
    return min(best + missed, 1.0)


def mcnemar_tolerated(lost: int, gained: int, n: int, tolerated: float, _level: float = 0.0) -> float:
    """The p-value of `drop_p_value` as version 0.1.0 had it, the same at every level, for what names it.

    At the bound, J ~ Bin(n, tolerated) of the lost images were tolerated, and each other image that changed is a
    fair coin, as McNemar has it: p = sum_j P[J = j] P[Bin(lost + gained - j, 1/2) >= lost - j]. With tolerated = 0
    this is the one-sided exact McNemar test (McNemar 1947, Psychometrika 12:153). Else J is drawn apart from the
    counts, which no theorem covers: enumerated for n = 20 to 5000, a test at alpha errs in fewer than alpha of cases.
    """
    k, heads = np.arange(n + 1), gained + np.arange(lost)
    logs = np.log(np.maximum(k, 1)).cumsum()  # of k!
    chances = logs[n] - logs - logs[::-1] + k * math.log(tolerated or 1) + (n - k) * math.log1p(-tolerated)
    tolerates = np.exp(chances) if tolerated else 1.0 * (k == 0)
    # P[Bin(m, 1/2) <= gained] for m = gained + 1, gained + 2, ...: each coin more takes half of P[= gained] away.
    coins = 1 - np.exp(logs[heads] - logs[gained] - logs[: len(heads)] - (heads + 1) * math.log(2)).cumsum()
    return float(np.clip(tolerates[lost:].sum() + (tolerates[:lost][::-1] * coins).sum(), 0, 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that one false alarm or more has a chance of alpha at most (Holm 1979)."""
    order = np.argsort(p_values)
    steps = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    return [min(float(steps[rank]), 1.0) for rank in np.argsort(order)]


# By the name in a manifest or baseline: p-value of (lost, gained, n, tolerated, level). What names none is of 0.1.0.
TESTS = {"exact-score": drop_p_value, "mcnemar-tolerated": mcnemar_tolerated}
TEST, FIRST_TEST = "exact-score", "mcnemar-tolerated"  # of new artifacts, of those that name none


def images_needed(drop: float, tolerated: float, gained: float, alpha: float, power: float) -> int:
    """Images with which each of TESTS at alpha catches a drop with that power, where a share `gained` is won.

    n = ((z_alpha sqrt(v - tolerated^2) + z_power sqrt(v - drop^2)) / (drop - tolerated))^2 with v = drop + 2 gained
    (Connor 1987, Biometrics 43:207), with Fleiss's continuity correction; tolerated < drop, alpha < 1/2 <= power.
    """
    changed, gap = drop + 2 * gained, drop - tolerated
    z_alpha, z_power = -NormalDist().inv_cdf(alpha), NormalDist().inv_cdf(power)
    n = ((z_alpha * math.sqrt(changed - tolerated**2) + z_power * math.sqrt(changed - drop**2)) / gap) ** 2
    return math.ceil(n / 4 * (1 + math.sqrt(1 + 4 / (n * gap))) ** 2)


def read_json(text: bytes) -> Any:
    """The value of a JSON file. Raises ValueError for a key that stands twice, or a number that is not finite."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:  # two readers would take two values of it
                raise ValueError(f"key {key!r} twice")
            table[key] = value
        return table

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"a number that is not finite, {text[:20]}")
        return value

    return json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_float=finite, parse_constant=finite)


def _read_manifest(path: Path) -> dict[str, Any]:
    _expect(path.is_file(), f"an artifact in {path.parent}", "no manifest.json", "pass an exported folder")
    _expect(path.stat().st_size <= 2**24, f"{path} of up to 16 MiB", path.stat().st_size)
    with _expecting(f"JSON with schema_version and reference in {path}"):
        manifest: dict[str, Any] = read_json(path.read_bytes())
        version, reference = manifest["schema_version"], dict(manifest["reference"])
    do = "upgrade qrobust, or export the artifact again if it is the older one"
    _expect(version in (1, 2), "schema_version 1 or 2, which is what this version reads", repr(version), do)
    for key, kind in {**MANIFEST, **{f"reference {name}": float for name in reference}}.items():
        with _expecting(f"{key!r} in manifest.json"):
            value: Any = reduce(lambda part, name: part[name], key.split(" ", 1), manifest)
        valid = isinstance(value, (int, float) if kind is float else kind)
        if valid and kind in (int, float):
            valid = not isinstance(value, bool) and (0 <= value <= 1 if kind is float else value >= 1)
        _expect(valid, f"a valid {kind.__name__} as {key!r} in manifest.json", repr(value))
    manifest["statistics"].setdefault("test", FIRST_TEST)
    _check_meaning(manifest)
    _check_policy(manifest)
    return manifest


def _check_meaning(manifest: dict[str, Any]) -> None:
    image, classes, threat = manifest["input"], manifest["classes"], manifest["threat"]
    got = (image.get("layout"), image.get("dtype"), image.get("range"))
    _expect(got in IMAGES, f"images as one of {IMAGES}", got)
    valid = len(image["shape"]) == 3 and all(type(size) is int and size >= 1 for size in image["shape"])
    valid = valid and math.prod(image["shape"]) <= MAX_PIXELS and len(classes) >= 2
    _expect(valid, f"a shape of three sizes, up to {MAX_PIXELS} in all, and two classes", (image["shape"], classes))
    _expect(threat["norm"] in NORMS, f"a norm out of {NORMS}", repr(threat["norm"]), "upgrade qrobust")
    eps, most = threat.get("eps"), 1 if threat["norm"] == "linf" else math.sqrt(math.prod(image["shape"]))
    # An image of bytes moves by a step or not at all.
    valid = type(eps) in (int, float) and 1 / 255 - 1e-9 <= eps <= most
    _expect(valid, f"eps in [1/255, {most:.4g}] of a pixel's range as 'threat eps'", repr(eps))
    _expect(served(manifest) in manifest["files"], f"{served(manifest)} in 'files'", "none")
    parity = manifest.get("parity")
    _expect(parity in (None, "none") or isinstance(parity, dict), "a table or 'none' as 'parity'", repr(parity))
    _expect("square" not in manifest["reference"], "another name for a stored attack", "square")
    _expect(len(manifest["reference"]) > 1, "a stored attack in 'reference'", "clean images alone")
    for name in (manifest["name"], *classes, *manifest["reference"]):
        # Control characters in a name could redraw a terminal and fake the last line of a report.
        _expect(isinstance(name, str) and name.isprintable(), "printable names in manifest.json", repr(name))


def _check_policy(manifest: dict[str, Any]) -> None:
    statistics, limits, square = manifest["statistics"], manifest["limits"], manifest["square"]
    for name in TOLERATED:
        expected = f"a limit of {name} up to {MOST_TOLERATED}"
        _expect(limits[name] <= MOST_TOLERATED, expected, limits[name], "tolerate less")
    most = max(limits["accuracy_drop"], limits["robust_drop"])
    valid = LEAST_ALPHA <= statistics["alpha"] < 0.5 <= statistics["power"] <= 1 - 1e-6
    valid = valid and most + 1e-6 < statistics["detected_drop"] <= MOST_DETECTED
    expected = f"{LEAST_ALPHA} <= alpha < 0.5 <= power < 1 and detected_drop above the tolerated {most}, up to"
    _expect(valid, f"{expected} {MOST_DETECTED}", statistics)
    valid = isinstance(statistics["test"], str) and statistics["test"] in TESTS
    _expect(valid, f"a statistical test out of {', '.join(TESTS)}", repr(statistics["test"]), "upgrade qrobust")
    valid = LEAST_QUERIES <= square["queries"] <= MOST_QUERIES
    _expect(valid, f"{LEAST_QUERIES} to {MOST_QUERIES} queries of Square", square["queries"])
    for limit in (limits.get(name) for name in ("logit_change", "latency_ms", "size_bytes")):
        valid = limit is None or (type(limit) in (int, float) and 0 < limit < math.inf)
        _expect(valid, "null or a number above 0 as limit of logit_change, latency_ms and size_bytes", repr(limit))


def _read_files(folder: Path, entries: dict[str, Any]) -> dict[str, bytes]:
    """The bytes of model.onnx and suite.npz as they were hashed; each file is read once, and none is there unlisted."""
    _expect(len(entries) <= MAX_FILES, f"up to {MAX_FILES} files in manifest.json", len(entries))
    for found in sorted(folder.iterdir()):
        valid = found.name in {*entries, "manifest.json"} or (found.name.startswith("signature.") and found.is_file())
        _expect(valid, f"no file in {folder} that manifest.json does not list", repr(found.name), "remove it")
    files = {}
    for name, entry in entries.items():
        # Plain names only: a manifest must not make its reader open ../../somewhere.
        _expect(Path(name).name == name, "plain file names in manifest.json", repr(name))
        _expect((folder / name).is_file(), f"{name} in {folder}", "no such file")
        with (folder / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _expect(size <= MAX_FILE_BYTES, f"{name} of up to {MAX_FILE_BYTES} bytes", size)
            data = file.read(size + 1)  # a byte more than there was: a file that grows does not match its hash
        measured = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        _expect(measured == entry, f"{name} as {entry}", measured)
        if name in ("model.onnx", "model.tflite", "suite.npz"):
            files[name] = data
    return files


def _read_suite(data: bytes, manifest: dict[str, Any]) -> dict[str, Array]:
    with _expecting("plain arrays in suite.npz"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # A few bytes of zip can claim terabytes; zipfile unpacks no more than its directory says, if it deflates.
            size = sum(info.file_size for info in archive.infolist())
            plain = all(info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in archive.infolist())
        _expect(plain and size <= MAX_SUITE_BYTES, f"at most {MAX_SUITE_BYTES} bytes deflated in suite.npz", size)
        with warnings.catch_warnings(action="error"), np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            suite = {name: np.asarray(arrays[name]) for name in arrays.files}
        n, classes = len(suite["y"]), len(manifest["classes"])
    expected = {"y": ((n,), "int64"), "logits.clean": ((n, classes), "float32")}
    shape = manifest["input"]["shape"]
    shape = (shape[2], *shape[:2]) if manifest["input"]["layout"] == "NHWC" else tuple(shape)
    for name in manifest["reference"]:
        expected[f"x.{name}"] = ((n, *shape), "uint8")
        expected[f"label.{name}"] = ((n,), "int64")
        if name != "clean" and (rows := suite.get(f"found_by.{name}")) is not None:
            expected[f"found_by.{name}"] = ((n, np.atleast_2d(rows).shape[-1]), "uint8")
    _expect(n >= 1 and set(suite) == set(expected), f"images and {sorted(expected)} in suite.npz", sorted(suite))
    for name, header in expected.items():
        array = suite[name]
        _expect((array.shape, str(array.dtype)) == header, f"{name} as {header}", f"{array.shape}, {array.dtype}")
        valid = header[1] != "int64" or (array.min() >= 0 and array.max() < classes)
        _expect(valid, f"labels {name} in [0, {classes})", f"[{array.min()}, {array.max()}]")
        valid = not name.startswith("found_by.") or ((array == 0) | ((array >= 32) & (array < 127))).all()
        _expect(valid, f"printable ASCII in {name}", "other bytes")
    for name, stated in manifest["reference"].items():
        share = float((suite[f"label.{name}"] == suite["y"]).mean())
        _expect(abs(share - stated) < 1e-9, f"labels of {name} that are right in {stated}, as the manifest says", share)
    _check_ball(suite, manifest)
    return suite


def _check_ball(suite: dict[str, Array], manifest: dict[str, Any]) -> None:
    """Stored attacks lie in the ball around the clean images and change some: others would prove nothing."""
    norm, eps, clean = manifest["threat"]["norm"], manifest["threat"]["eps"], suite["x.clean"]
    for name in manifest["reference"]:
        moved, attacked = np.zeros(len(clean)), suite[f"x.{name}"]
        for at in _parts(clean, 256):
            steps = np.abs(attacked[at].astype(np.int64) - clean[at]).reshape(len(clean[at]), -1)
            moved[at] = steps.max(axis=1) if norm == "linf" else np.sqrt((steps**2).sum(axis=1))
        furthest = float(moved.max()) / 255  # export rounds inwards: what is beyond is beyond by more than float32 errs
        _expect(furthest <= eps * (1 + 1e-5) + 1e-5, f"images of {name} within eps {eps:.4g} in {norm}", furthest)
        _expect(name == "clean" or moved.any(), f"images of {name} that differ from the clean ones", "the same")
    valid = manifest["square"]["n"] >= min(LEAST_IMAGES, len(clean))
    expected = f"Square on {LEAST_IMAGES} images or more, or on the whole suite"
    _expect(valid, expected, manifest["square"]["n"])


def _bytes(model: str | Path | bytes) -> bytes:
    return model if isinstance(model, bytes) else Path(model).read_bytes()


def load_session(
    model: str | Path | bytes, provider: str, threads: int | None, session_options: dict[str, Any] | None = None
) -> Any:
    """A session of a file or its bytes on one provider, never silently on another: of onnxruntime, LiteRT, OpenVINO.

    threads: intra-op threads, 0 for all cores, None as in session_options, which may hold the keys of OPTIONS
    (levels: disable, basic, extended, all; allow_spinning: 0 leaves the cores to others between calls;
    x64quantprecision: 1 keeps sums of products from saturating where `sums_saturate`, 0 never: it breaks files whose
    activations are int8). Raises ArtifactError if anything is missing or refused (external data is).
    """
    chosen = {**(session_options or {}), **({} if threads is None else {"intra_op_num_threads": threads})}
    if provider in LITERT or provider == OPENVINO:  # which have the number of threads alone
        data, workers = _bytes(model), chosen.get("intra_op_num_threads", 0)
        return OpenVinoSession(data, workers) if provider == OPENVINO else LiteRtSession(data, provider, workers)
    with _expecting("onnxruntime", "pip install onnxruntime"):
        import onnxruntime as ort
    own = os.environ.get("ORT_LOAD_CONFIG_FROM_MODEL", "0")
    _expect(own == "0", "no settings out of a model", f"ORT_LOAD_CONFIG_FROM_MODEL={own}", "unset it")
    available, options = ort.get_available_providers(), ort.SessionOptions()
    _expect(provider in available, f"a provider out of {available}", repr(provider),
            "install a build of onnxruntime that has it, or export for a target of one of them")  # fmt: skip
    options.log_severity_level = 4  # what fails is raised, and said once
    ort.set_default_logger_severity(4)  # a provider that lacks a library says so at length, and then by an error
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", f"{os.devnull}/none")
    with _expecting(f"a model and options for {provider}", "mend the target, export again, or install what it needs"):
        for key, value in chosen.items():
            # Only the harmless ones: others write files or load libraries, and a manifest is only data.
            _expect(key in OPTIONS, f"session options out of {OPTIONS}", repr(key), "mend the target")
            if key == "graph_optimization_level":
                options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{LEVELS[value]}")
                continue
            _expect_count(key, value)  # onnxruntime starts a million threads if it is told to
            if key in ENTRIES:
                wanted = value > 0 and (key != "x64quantprecision" or sums_saturate())
                options.add_session_config_entry(ENTRIES[key], str(int(wanted)))
            else:
                setattr(options, key, value)
        if provider in ON_GPU:
            preload(ort)
        session = ort.InferenceSession(_bytes(model), options, providers=[provider], enable_fallback=0)
    used = session.get_providers()[0]
    _expect(used == provider, f"the model on {provider}", used, "install what that provider needs")
    return session


def _expect_count(key: str, value: Any) -> None:
    _expect(type(value) is int and 0 <= value <= MAX_THREADS, f"0 to {MAX_THREADS} as {key}", repr(value))


def litert_module(name: str) -> Any:
    """A module of the package ai-edge-litert. Raises ArtifactError where it is missing."""
    with _expecting("the package ai-edge-litert", "pip install ai-edge-litert"):
        return importlib.import_module(f"ai_edge_litert.{name}")


def openvino_module() -> Any:
    """The package openvino. Raises ArtifactError where it is missing."""
    with _expecting("the package openvino", "pip install openvino"):
        return importlib.import_module("openvino")


class LiteRtSession:
    """A .tflite file on LiteRT's interpreter, called as a session of onnxruntime: images with channels first but bytes.

    threads: 0 for all cores. kernels: how many of each kind run a call, "DELEGATE" where XNNPACK runs what it took.
    Raises ArtifactError for a file that LiteRT does not read.
    """

    def __init__(self, data: bytes, provider: str, threads: int = 0) -> None:
        interpreter, self._provider = litert_module("interpreter"), provider
        _expect_count("intra_op_num_threads", threads)
        with _expecting(f"a model.tflite for {provider}", "export it again, or install another ai-edge-litert"):
            kind = getattr(interpreter.OpResolverType, LITERT[provider])
            self._running = interpreter.Interpreter(
                model_content=data, num_threads=threads or os.cpu_count() or 1, experimental_op_resolver_type=kind
            )
            self._running.allocate_tensors()
            operators = self._running._get_ops_details()
        self._inputs, self._outputs = self._running.get_input_details(), self._running.get_output_details()
        self.kernels = _executed(operators, [one["index"] for one in self._outputs])

    def get_inputs(self) -> list[SimpleNamespace]:
        """Name, type and shape of each, as the ONNX file that it was written from has them."""
        return [self._end(one) for one in self._inputs]

    def get_outputs(self) -> list[SimpleNamespace]:
        """As of inputs."""
        return [self._end(one) for one in self._outputs]

    def get_providers(self) -> list[str]:
        """The one."""
        return [self._provider]

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names, all for None."""
        given = [(one["index"], self._laid(one, feed[one["name"]])) for one in self._inputs]
        if any(tuple(one["shape"]) != x.shape for one, (_, x) in zip(self._inputs, given, strict=True)):
            for index, x in given:
                self._running.resize_tensor_input(index, x.shape)
            self._running.allocate_tensors()
            self._inputs = self._running.get_input_details()
        for index, x in given:
            self._running.set_tensor(index, x)
        self._running.invoke()
        found = {one["name"]: self._running.get_tensor(one["index"]) for one in self._outputs}
        return [_channels_first(found[name]) for name in names or found]

    def _laid(self, end: dict[str, Any], x: Array) -> Array:
        turned = x.ndim == 4 and end["dtype"] is not np.uint8
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if turned else x)

    def _end(self, end: dict[str, Any]) -> SimpleNamespace:
        sizes, kind = [int(size) for size in end["shape_signature"]], np.dtype(end["dtype"]).name
        shape = [None, sizes[3], *sizes[1:3]] if len(sizes) == 4 and kind != "uint8" else [None, *sizes[1:]]
        name = f"tensor({'float' if kind == 'float32' else kind})"
        return SimpleNamespace(name=end["name"], type=name, shape=shape)


def _executed(operators: Sequence[Mapping[str, Any]], outputs: Sequence[int]) -> dict[str, int]:
    """How many operators of each kind give these tensors: those that a delegate took are listed still, before it."""
    makers = {int(index): place for place, one in enumerate(operators) for index in one["outputs"]}
    waiting, ran = list(outputs), set[int]()
    while waiting:
        place = makers.get(int(waiting.pop()))
        if place is not None and place not in ran:
            ran.add(place)
            waiting.extend(operators[place]["inputs"])  # + would be numpy's
    return dict(Counter(str(operators[place]["op_name"]) for place in sorted(ran)))


def _channels_first(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x


class OpenVinoSession:
    """An ONNX file on OpenVINO's CPU plugin, called as a session of onnxruntime; what the file has in float32 stays so.

    threads: 0 for all cores. Raises ArtifactError for a file that OpenVINO does not read, or whose data lie beside it.
    """

    def __init__(self, data: bytes, threads: int = 0) -> None:
        openvino = openvino_module()
        _expect_count("intra_op_num_threads", threads)
        hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        with (
            _expecting("a file that OpenVINO reads", "export for the target openvino"),
            tempfile.TemporaryDirectory() as alone,  # where no data lie beside it
        ):
            path = Path(alone) / "model.onnx"
            path.write_bytes(data)
            self._compiled = openvino.Core().compile_model(str(path), "CPU", {**hints, "NUM_STREAMS": 1})
        self._request = self._compiled.create_infer_request()

    def get_inputs(self) -> list[SimpleNamespace]:
        """Name, type and shape of each."""
        return [_port(one) for one in self._compiled.inputs]

    def get_outputs(self) -> list[SimpleNamespace]:
        """As of inputs."""
        return [_port(one) for one in self._compiled.outputs]

    def get_providers(self) -> list[str]:
        """The one."""
        return [OPENVINO]

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names, all for None."""
        found = self._request.infer(dict(feed), share_inputs=True)
        return [found[one] for one in names or self._compiled.outputs]

    def ops(self) -> list[tuple[str, str]]:
        """Kind and precision of every node that runs, such as ("Convolution", "u8")."""
        keys = ("layerType", "runtimePrecision")
        infos = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ops()]
        found = [tuple(str(info[key].value) for key in keys) for info in infos]
        return [(kind, precision) for kind, precision in found if kind not in ("Const", "Input", "Output")]


def _port(one: Any) -> SimpleNamespace:
    kind = {"f32": "float", "u8": "uint8"}.get(one.element_type.get_type_name(), str(one.element_type))
    shape = [int(size.get_length()) if size.is_static else None for size in one.partial_shape]
    return SimpleNamespace(name=one.any_name, type=f"tensor({kind})", shape=shape)


def sums_saturate() -> bool:
    """Whether a session may add pairs of 8-bit products in 16 bits: on x64 without VNNI, or x64 that cannot be asked.

    Asked, since what onnxruntime does against it makes 8-bit weights slower than float where there is VNNI.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = [line.split() for line in CPUINFO.read_bytes().splitlines() if line.startswith(b"flags")]
    except OSError:
        flags = []
    return not flags or any(VNNI.isdisjoint(line) for line in flags)


def preload(ort: Any) -> None:
    """Load the GPU's libraries that pip installed: onnxruntime itself looks for them on the path alone."""
    with redirect_stdout(io.StringIO()):  # it prints what it does not find; the session's error says it too
        getattr(ort, "preload_dlls", lambda: None)()


def _as_float(x: Array) -> Array:
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    low, high = x.min(initial=0), x.max(initial=1)
    do = "pass unnormalised float32 or uint8, normalisation belongs inside the model"
    valid = x.dtype == np.float32 and low >= 0 and high <= 1
    _expect(valid, "images in [0, 1]", f"[{low:.3g}, {high:.3g}] of {x.dtype}", do)
    return x


def _parts(x: Array, most: int) -> Iterator[slice]:
    """Slices of x (n, ...) of up to `most` images, fewer if they are large."""
    step = max(min(most, MAX_PIXELS // math.prod(x.shape[1:])), 1)
    return (slice(at, min(at + step, len(x))) for at in range(0, len(x), step))


class Artifact:
    """An exported folder that is whole: `Artifact.load(path)`.

    path; manifest; suite: arrays by name; model: the bytes of model.onnx that were hashed, tflite: of model.tflite, b""
    where there is none; name; classes; eps in units of [0, 1]; sets: names of the sets of images in the suite, "clean"
    and attacks such as "pgd-20"; takes_bytes: the graph takes uint8 (n, H, W, C), not float32.
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], suite: dict[str, Array], model: bytes, tflite: bytes = b""
    ) -> None:
        self.path, self.manifest, self.suite, self.model, self.tflite = path, manifest, suite, model, tflite
        self.takes_bytes = bool(manifest["input"]["dtype"] == "uint8")
        self.name, self.classes = str(manifest["name"]), tuple(map(str, manifest["classes"]))
        self.eps, self.sets = float(manifest["threat"]["eps"]), tuple(map(str, manifest["reference"]))

    @classmethod
    def load(cls, path: str | Path) -> "Artifact":
        """Check manifest, sizes, sha256 and suite of a folder. Raises ArtifactError with one clear line."""
        with _expecting(f"an artifact in {path}"):
            manifest = _read_manifest(Path(path) / "manifest.json")
            files = _read_files(Path(path), manifest["files"])
            suite = _read_suite(files["suite.npz"], manifest)
            return cls(Path(path), manifest, suite, files["model.onnx"], files.get("model.tflite", b""))

    def found_by(self, name: str) -> tuple[str, ...]:
        """Of each image of a set the part of its attack that found it, "clean" if none did; () where none is named."""
        rows = self.suite.get(f"found_by.{name}", ())
        return tuple(bytes(row).rstrip(b"\0").decode("ascii") for row in rows)

    def session(self, provider: str | None = None, threads: int | None = None, **session_options: Any) -> Any:
        """A session as the target or the caller says. Raises ArtifactError if the model does not fit."""
        target, source = self.manifest["target"], self.manifest["input"]
        options = {**target["session_options"], **session_options}
        chosen = provider or target["provider"]
        _expect(self.tflite or chosen not in LITERT, "a model.tflite", "none", "export for the target litert")
        session = load_session(self.tflite if chosen in LITERT else self.model, chosen, threads, options)
        inputs, last = session.get_inputs(), [output.name for output in session.get_outputs()]
        _expect(len(inputs) == 1, "a model of one input", len(inputs))
        first, kind = inputs[0], "tensor(uint8)" if self.takes_bytes else "tensor(float)"
        expected = (source["name"], kind, source["shape"], self.manifest["output"]["name"])
        valid = (first.name, first.type, first.shape[1:]) == expected[:3] and expected[3] in last
        got = (first.name, first.type, first.shape, last)
        _expect(valid and not isinstance(first.shape[0], int), f"any batch and {expected} of the model", got)
        return session

    @cached_property
    def _own_session(self) -> Any:
        return self.session()

    def feed(self, x: Array) -> Array:
        """Images (n, C, H, W), float32 in [0, 1] or uint8, as the graph takes them; bytes are rounded to."""
        if not self.takes_bytes:
            return _as_float(x)
        pixels = x if x.dtype == np.uint8 else np.rint(_as_float(x) * np.float32(255)).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))

    def logits(self, x: Array, session: Any = None) -> Array:
        """Logits float32 (n, classes) of images (n, C, H, W), float32 in [0, 1] or uint8, 256 at a time.

        session: None for the target's. Raises ArtifactError for images or logits that are not as said.
        """
        session, source = session or self._own_session, self.manifest["input"]["name"]
        logits = np.empty((len(x), len(self.classes)), np.float32)
        for at in _parts(x, 256):
            with _expecting("the model to run", "raise --memory if it is short, or export the artifact again"):
                batch = session.run([self.manifest["output"]["name"]], {source: self.feed(x[at])})[0]
                expected, got = (logits[at].shape, "float32"), (batch.shape, str(batch.dtype))
            _expect(got == expected, f"logits {expected}", got)
            logits[at] = batch
        _expect(np.isfinite(logits).all(), "finite logits", "NaN or infinity")
        return logits


def _judge(logits: Array, y: Array) -> tuple[Array, Array]:
    """Margin of the true class over the best other one, and whether the label is wrong; both (n,)."""
    rows, others = np.arange(len(y)), logits.copy()
    others[rows, y] = -np.inf
    return logits[rows, y] - others.max(axis=1), logits.argmax(axis=1) != y


def _windows(n: int, side: int, height: int, width: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """A square at random in each image: a mask (n, 1, height, width), and rows and columns counted from its corner."""
    top, left = (rng.integers(0, length - side + 1, (n, 1)) for length in (height, width))
    rows, columns = (np.arange(height) - top) % height, (np.arange(width) - left) % width
    return ((rows < side)[:, :, None] & (columns < side)[:, None, :])[:, None], rows, columns


def _propose(x: Array, best: Array, eps: float, share: float | None, rng: np.random.Generator) -> Array:
    """Vertical stripes of x ± eps (share None), or `best` with a square of x ± eps in each image."""
    n, channels, height, width = x.shape
    signs = rng.choice(np.array([-1, 1], np.float32), (n, channels, 1, 1 if share else width))
    noisy = np.clip(x + np.float32(eps) * signs, 0, 1)
    if share is None:
        return noisy
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    return np.where(_windows(n, side, height, width, rng)[0], noisy, best)


def _bumps(side: int) -> Array:
    """A peak over a valley, and the two side by side: (2, side, side), each of norm 1."""

    def peak(height: int) -> Any:
        away = np.maximum(abs(np.arange(height)[:, None] - height // 2), abs(np.arange(side) - side // 2))
        return (1 / np.arange(1, side // 2 + 2) ** 2)[::-1].cumsum()[::-1][away]

    bump: Array = np.concatenate([peak(side // 2), -peak(side - side // 2)])
    bump /= np.linalg.norm(bump)
    return np.stack([bump, bump.T])


def _lengths(delta: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(np.sqrt(np.maximum((delta**2).sum(axis=axes, keepdims=True), 1e-24)))


def _propose_l2(x: Array, best: Array, eps: float, share: float | None, rng: np.random.Generator) -> Array:
    """Tiles of small bumps (share None), or `best` whose change in one square is moved into a bump in another.

    The bump in each channel is as long as what both squares held there and its part of what the ball still allows.
    """
    n, channels, height, width = x.shape
    delta = best - x
    if share is None:
        side = max(min(height, width) // 5, 1)
        signs = rng.choice([-1.0, 1.0], (n, channels, height // side + 1, width // side + 1))
        rows, columns = np.arange(height), np.arange(width)
        moved = signs[:, :, rows // side][..., columns // side] * _bumps(side)[0][rows % side][:, columns % side]
    else:
        side = min(max(round(math.sqrt(share * height * width)), 3), height, width)
        (to, rows, columns), (source, _, _) = (_windows(n, side, height, width, rng) for _ in range(2))
        turn, signs = rng.integers(0, 2, (n, 1, 1)), rng.choice([-1.0, 1.0], (n, channels, 1, 1))
        bumps = _bumps(side)[turn, rows[:, :, None] % side, columns[:, None, :] % side][:, None]
        bump = to * (signs * bumps + delta / _lengths(delta * to, (2, 3)))
        spare = np.maximum(eps**2 - (delta**2).sum(axis=(1, 2, 3), keepdims=True), 0) / channels
        length = np.sqrt((delta**2 * (to | source)).sum(axis=(2, 3), keepdims=True) + spare)
        moved = np.where(to, bump / _lengths(bump, (2, 3)) * length, np.where(source, 0, delta))
    return np.asarray(np.clip(x + moved * (eps / _lengths(moved, (1, 2, 3))), 0, 1), np.float32)


def square_attack(
    logits_fn: Callable[[Array], Array],
    x: Array,
    y: Array,
    eps: float,
    queries: int,
    seed: int,
    on_step: OnStep = None,
    *,
    norm: str = "linf",
    whole: bool = False,
    start: Array | None = None,
) -> tuple[Array, Array, Array]:
    """The Square attack: changes in random squares, kept where the margin f_y - max f_k (k != y) falls.

    x: images (n, C, H, W), float32 in [0, 1] or uint8; y: labels (n,); queries: budget per image, the start
    included; on_step(step, queries) follows each step; norm: of the ball, "linf" (squares of ±eps) or "l2";
    whole: change pixels by whole steps of a byte, as a graph that takes bytes will. Returns x_adv float32 in the ball
    and in [0, 1]; broken (n,), with the images that are wrong as they are; queries used (n,). Broken images leave the
    batch. A square covers 0.8 / 2^k of the image, k = how many of 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000 lie
    below step / queries * 10000 (Andriushchenko et al. 2020, arXiv 1912.00049; in l2 two squares may overlap).
    start: images of the ball to go on from, where another attack ended, instead of from stripes, by 0.3 for 0.8.
    """
    x, rng, propose = _as_float(x), np.random.default_rng(seed), {"linf": _propose, "l2": _propose_l2}[norm]
    best, largest = (x.copy(), 0.8) if start is None else (_as_float(start).copy(), 0.3)
    used = np.zeros(len(x), np.int64)
    marks = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
    margin, broken = _judge(logits_fn(best), y)
    for step in range(queries):
        active = np.flatnonzero(~broken)
        if not active.size:
            break
        stripes = start is None and step == 0
        share = None if stripes else largest / 2.0 ** int((marks < step / queries * 10_000).sum())
        trial = propose(x[active], best[active], eps, share, rng)
        if whole:  # towards the image: rounding to the nearest could leave the ball
            steps = (trial - x[active]) * np.float32(255)
            trial = x[active] + np.trunc(steps + np.copysign(np.float32(1e-3), steps)) / np.float32(255)
        trial_margin, wrong = _judge(logits_fn(trial), y[active])
        better = wrong | (trial_margin < margin[active]) | stripes
        best[active[better]], margin[active[better]] = trial[better], trial_margin[better]
        broken[active], used[active] = wrong, used[active] + 1
        if on_step:
            on_step(step + 1, queries)
    return best, broken, used


def served(manifest: Mapping[str, Any]) -> str:
    """The file of an artifact that its target runs."""
    return "model.tflite" if manifest["target"]["provider"] in LITERT else "model.onnx"


def policy_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a baseline pins beside outcomes: limits, statistics, target, threat, Square's bounds, names of classes."""
    target = {key: manifest["target"][key] for key in ("name", "provider", "session_options")}
    threat = {key: manifest["threat"][key] for key in ("norm", "eps")}
    policy = {key: manifest[key] for key in ("limits", "statistics", "square", "classes")}
    return {**policy, "target": target, "threat": threat}


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def _pinning(artifact: Path, baseline: Path, queries: int | None, seed: int) -> str:
    """The command that pins a baseline again, of this program as it was started."""
    program = ["qrobust", "check"] if Path(__file__).name == "runtime.py" else ["python", "-I", __file__]
    more = [] if queries is None else ["--queries", str(queries)]
    more += ["--seed", str(seed)] if seed else []
    return f"{shlex.join([*program, str(artifact), '--baseline', str(baseline), *more])} {UPDATE}"


def _attacks(counts: Mapping[str, Any]) -> str:
    return ", ".join(sorted(name for name in counts if name not in ("clean", "square")))


def read_baseline(path: Path, model: str, suite: str, pinning: str = UPDATE, **same: Any) -> tuple[Outcomes, bool, str]:
    """The outcomes pinned in a file, whether its suite is this one, and the test that was pinned, which applies.

    model, suite: sha256 of the artifact's files. pinning: the command that pins anew. Raises ArtifactError unless all
    else of `same` is as it was pinned, and the suite of the same model too: another model has other adversarial images;
    its clean ones are among `same`.
    """
    outcomes, do = {}, f"give the baseline of these images, or pin one by {pinning}"
    again, restore = f"pin again by {pinning}", f"restore what was pinned, or pin anew by {pinning}"
    _expect(path.is_file() and path.stat().st_size <= 2**24, f"a baseline at {path}", "no file or over 16 MiB", do)
    with _expecting(f"a baseline in {path}", do):
        pinned = read_json(path.read_bytes())
        version, lacks = pinned["schema_version"], "which pins no limits, statistics, target, threat and suite"
        _expect(version != 1, f"a baseline of schema_version 2 in {path}", f"1, {lacks}", again)
        _expect(
            version == 2, f"a baseline of schema_version 2 in {path}", repr(version), f"upgrade qrobust, or {again}"
        )
        then, found = (_attacks(table["counts"]) for table in (pinned, same))
        _expect(then == found, f"a suite under {then}, as {path} pins it", f"one under {found}", again)
        was, now = _flat({key: pinned[key] for key in same}), _flat(same)
        named, known = pinned["policy"]["statistics"]["test"], ", ".join(TESTS)
        _expect(named in TESTS, f"a test out of {known} in {path}", repr(named), f"upgrade qrobust, or {again}")
        now["policy.statistics.test"] = named  # the pinned one applies, whichever a later export names
        for key in dict.fromkeys((*now, *was)):
            expected, got = was.get(key, "nothing"), now.get(key, "nothing")
            _expect(expected == got, f"{key.removeprefix('policy.')} {expected}, as {path} pins it", got, restore)
        valid = all(len(bytes.fromhex(pinned[key])) == 32 for key in ("model", "suite"))
        _expect(valid, f"sha256 of model and suite in {path}", (pinned["model"], pinned["suite"]), do)
        valid = pinned["suite"] == suite or pinned["model"] != model
        _expect(valid, f"the suite that {path} pins for this model.onnx", "another suite.npz", restore)
        for name, count in same["counts"].items():
            packed = np.frombuffer(bytes.fromhex(pinned["outcomes"][name]), np.uint8)
            outcomes[name] = np.unpackbits(packed, count=count).astype(bool)
            share, stated = outcomes[name].mean(), float(pinned["accuracy"][name])
            _expect(abs(share - stated) < 1e-9, f"outcomes of {name} in {path} that are right in {stated}", share, do)
    return outcomes, pinned["suite"] == suite, named


def _run(artifact: Artifact, budget: int, seed: int, on_step: OnStep) -> tuple[Outcomes, float, float]:
    """Outcomes of every set and of Square on the first `square.n` images; share of label flips; change of logits."""
    suite, y, n = artifact.suite, artifact.suite["y"], artifact.manifest["square"]["n"]
    logits = {name: artifact.logits(suite[f"x.{name}"]) for name in artifact.sets}
    labels = {name: values.argmax(axis=1) for name, values in logits.items()}
    length = np.maximum(np.linalg.norm(suite["logits.clean"], axis=1), 1e-12)
    change = np.median(np.linalg.norm(logits["clean"] - suite["logits.clean"], axis=1) / length)
    parts = [
        (suite["x.clean"][at], y[at], artifact.eps, budget, seed, on_step) for at in _parts(suite["x.clean"][:n], n)
    ]
    how: dict[str, Any] = {"norm": artifact.manifest["threat"]["norm"], "whole": artifact.takes_bytes}
    broken = np.concatenate([square_attack(artifact.logits, *part, **how)[1] for part in parts])
    flips = np.mean([labels[name] != suite[f"label.{name}"] for name in artifact.sets])
    return {**{name: found == y for name, found in labels.items()}, "square": ~broken}, float(flips), float(change)


def _parity(manifest: Mapping[str, Any]) -> str:
    return "none" if manifest.get("parity") == "none" else "torch"


def _facts(artifact: Artifact, right: Outcomes, flips: float, change: float) -> Iterator[Verdict]:
    """Verdicts that need no statistics: what they measure is a fact of this file on these images and this device."""
    limits, before = artifact.manifest["limits"], artifact.manifest["reference"]["clean"]
    file = served(artifact.manifest)
    size, latency = artifact.manifest["files"][file]["size_bytes"], 0.0
    clean, square = float(right["clean"].mean()), float(right["square"].mean())
    origin = ORIGINS[_parity(artifact.manifest)]
    stored = float(np.all([right[name][: len(right["square"])] for name in artifact.sets], axis=0).mean())
    if limits.get("latency_ms") is not None:
        latency = median(time_sessions({"": artifact.session()}, artifact.feed(artifact.suite["x.clean"][:1]))[""])
    for name, measured, reason, hint in (
        ("label_flips", flips, f"{flips:.2%} of labels differ from those of {origin}", HINT_EXPORT),
        ("logit_change", change, f"logits of the median image moved by {change:.2g} of their length", HINT_EXPORT),
        ("accuracy_drop", before - clean, f"accuracy {clean:.2%} after export, {before:.2%} before", HINT_EXPORT),
        ("square_gap", stored - square, f"accuracy {square:.2%} under Square, {stored:.2%} when replayed", HINT_MASKED),
        ("latency_ms", latency, f"median of {latency:.3f} ms for one image", HINT_DEVICE),
        ("size_bytes", size, f"{file} of {size} bytes", HINT_DEVICE),
    ):
        if (limit := limits.get(name)) is not None:
            # 0.75 - 0.73 > 0.02 in floating point; a limit that is met exactly has held.
            yield Verdict(name, measured <= limit + 1e-9, measured, limit, reason, hint)


def _tests(right: Outcomes, reference: Outcomes, manifest: dict[str, Any], hint: str) -> Iterator[Verdict]:
    """Verdicts on each set of `reference`, image by image: is the drop larger than tolerated, beyond luck?"""
    statistics, limits, rows = manifest["statistics"], manifest["limits"], []
    for name, before in reference.items():
        lost, gained = int((before & ~right[name]).sum()), int((right[name] & ~before).sum())
        rows.append((lost, gained, len(before), limits["accuracy_drop" if name == "clean" else "robust_drop"]))
    level = statistics["alpha"] / len(rows)  # the first of Holm's steps: a limit is broken there or not at all
    p_values = holm([TESTS[statistics["test"]](*row, level) for row in rows])
    for name, (lost, gained, n, limit), p_value in zip(reference, rows, p_values, strict=True):
        drop, interval = (lost - gained) / n, paired_interval(lost, gained, n)
        needed = images_needed(statistics["detected_drop"], limit, gained / n, level, statistics["power"])
        bounds = "{:.1%} to {:.1%}".format(*interval)
        reason = f"drop {drop:.1%} ({bounds}), lost {lost}, gained {gained}, tolerated {limit:.1%}, p {p_value:.2g}"
        yield Verdict(
            f"{name} accuracy", p_value > statistics["alpha"], drop, limit, reason, hint, interval, p_value, needed
        )


def _found_by(artifact: Artifact, right: Outcomes) -> dict[str, dict[str, int]]:
    """By set whose attack has parts, the wrong images by part, most first."""
    parts = {name: np.array(artifact.found_by(name)) for name in artifact.sets}
    return {name: dict(Counter(some[~right[name]].tolist()).most_common()) for name, some in parts.items() if some.size}


def _runtime(artifact: Artifact) -> dict[str, str]:
    """The package that runs an artifact, with its version."""
    if artifact.manifest["target"]["provider"] in LITERT:
        litert_module("interpreter")
        return {"ai-edge-litert": importlib.metadata.version("ai-edge-litert")}
    if artifact.manifest["target"]["provider"] == OPENVINO:
        openvino_module()
        return {OPENVINO: importlib.metadata.version(OPENVINO)}
    with _expecting("onnxruntime", "pip install onnxruntime"):
        import onnxruntime as ort
    return {"onnxruntime": ort.__version__}


def check(
    artifact: Artifact, *, baseline: MaybePath = None, queries: int | None = None, seed: int = 0, on_step: OnStep = None
) -> Report:
    """Replay the suite on the target's session, attack the session with Square, and judge the limits.

    Facts: label flips, logits and clean accuracy against the network before export; Square on the first `square.n`
    images must not beat the stored attacks by more than `square_gap`, else their gradients were masked; latency, size.
    Tests: each stored attack against the network before export, or every set and Square against `baseline`, a file
    that `conclude` wrote, which pins the manifest's limits and settings, and whose test applies. queries: instead of
    the manifest's; on_step(done, queries). Runs in this process, unlike both command lines. Raises ArtifactError if the
    session does not run, the baseline is of other images or settings, or nothing broke on too few images to tell.
    """
    versions = {"python": platform.python_version(), "numpy": np.__version__, **_runtime(artifact)}
    start, suite, manifest = time.perf_counter(), artifact.suite, artifact.manifest
    y, budget = suite["y"], manifest["square"]["queries"] if queries is None else queries
    valid, expected = LEAST_QUERIES <= budget <= MOST_QUERIES, f"{LEAST_QUERIES} to {MOST_QUERIES} queries for Square"
    _expect(valid and seed >= 0, f"{expected} and a seed of 0 or more", (budget, seed), "change --queries or --seed")
    counts = {**dict.fromkeys(artifact.sets, len(y)), "square": min(manifest["square"]["n"], len(y))}
    # Clean images tell suites apart: adversarial ones are made anew against every network.
    images = hashlib.sha256(np.ascontiguousarray(suite["x.clean"]).tobytes() + y.tobytes()).hexdigest()
    session = f"{manifest['target']['provider']}, {manifest['target']['session_options'].get(OPTIONS[0], 'all')}"
    same: dict[str, Any] = dict(zip(SAME, (images, budget, seed, counts, policy_of(manifest)), strict=True))
    digests = {
        key: manifest["files"][name]["sha256"] for key, name in (("model", served(manifest)), ("suite", "suite.npz"))
    }
    reference: Outcomes = {name: suite[f"label.{name}"] == y for name in artifact.sets}
    same_suite = True
    if baseline is not None:
        pinning = _pinning(artifact.path, baseline, queries, seed)
        reference, same_suite, named = read_baseline(baseline, pinning=pinning, **digests, **same)
        manifest = {**manifest, "statistics": {**manifest["statistics"], "test": named}}
        same["policy"] = policy_of(manifest)
    compared = {name: hits for name, hits in reference.items() if baseline or name != "clean"}
    with _expecting(f"a {served(manifest)} that can be attacked, and memory for it"):
        right, flips, change = _run(artifact, budget, seed, on_step)
    tests = list(_tests(right, compared, manifest, HINT_LOST if baseline else HINT_EXPORT))
    verdicts = (*_facts(artifact, right, flips, change), *tests)
    worst = np.all([right[name] for name in artifact.sets], axis=0)
    worst[: counts["square"]] &= right["square"]
    report = Report(
        passed=all(verdict.passed for verdict in verdicts),
        artifact=artifact.name,
        verdicts=verdicts,
        accuracy={name: float(hits.mean()) for name, hits in right.items()},
        ci95={name: wilson(int(hits.sum()), len(hits)) for name, hits in right.items()},
        reference={name: float(hits.mean()) for name, hits in reference.items()},
        baseline=None if baseline is None else str(baseline),
        same_suite=same_suite,
        statistics=manifest["statistics"],
        worst_case=float(worst.mean()),
        found_by=_found_by(artifact, right),
        label_flips=flips,
        n=len(y),
        eps=artifact.eps,
        session=session,
        parity=_parity(manifest),
        outcomes={name: np.packbits(hits).tobytes().hex() for name, hits in right.items()},
        seconds=time.perf_counter() - start,
        versions=versions,
        **digests,
        **same,
    )
    for n, test in zip(map(len, compared.values()), tests, strict=True):
        expected = f"{test.needed} images or more for a test of {test.name} with the power asked for"
        _expect(n >= test.needed or not report.passed, expected, n, "export a larger suite, or raise detected_drop")
    return report


def format_report(report: Report) -> str:
    """The report as a table for people; the last line is `held` or `broken`."""
    tests = {verdict.name: verdict.reason for verdict in report.verdicts}
    lines = [f"{report.artifact}: {report.n} images, Square with {report.queries} queries, seed {report.seed}"]
    columns = "{:<16}{:>6}{:>10}{:>17}{:>11}  {}"
    lines.append(columns.format("set", "n", "accuracy", "95 % interval", "reference", "image by image"))
    for name, accuracy in report.accuracy.items():
        before, interval = report.reference.get(name), "{:.1%} to {:.1%}".format(*report.ci95[name])
        cells = [report.counts[name], f"{accuracy:.1%}", interval, "-" if before is None else f"{before:.1%}"]
        lines.append(columns.format(name, *cells, tests.get(f"{name} accuracy", "-")))
    text = "at alpha {alpha:.2g}, with power {power:.0%} for a drop of {detected_drop:.1%}"
    against = ORIGINS[report.parity] if report.baseline is None else _one_line(report.baseline)
    against = f"Tested against {against}, {text.format(**report.statistics)}."
    against += "" if report.same_suite else " Its adversarial images were made against another network."
    for name, counts in report.found_by.items():
        lines.append(
            f"Wrong under {name}, by what found them: {'; '.join(f'{part} {counts[part]}' for part in counts)}"
        )
    lines += [f"{'worst case':<16}{report.n:>6}{report.worst_case:>10.1%}", against, NOTE]
    lines += [NO_PARITY] if report.parity == "none" else []
    lines += [f"broken {v.name}: {v.reason}; {v.hint}" for v in report.verdicts if not v.passed]
    return "\n".join([*lines, "held" if report.passed else "broken"])


def format_junit(report: Report) -> str:
    """The report as JUnit XML: one test case a verdict."""
    cases, broken = "", sum(not v.passed for v in report.verdicts)
    for v in report.verdicts:
        failure = "" if v.passed else f"<failure message={quoteattr(f'{v.reason}; {v.hint}')}/>"
        cases += f"<testcase classname={quoteattr(report.artifact)} name={quoteattr(v.name)}>{failure}</testcase>\n"
    counts = f'tests="{len(report.verdicts)}" failures="{broken}" errors="0" time="{report.seconds:.3f}"'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<testsuite name="qrobust check" {counts}>\n{cases}</testsuite>\n'


def _expect_power(artifact: Artifact) -> None:
    """Before a baseline is pinned: on fewer images every check against it would end without a verdict."""
    statistics, limits, n = artifact.manifest["statistics"], artifact.manifest["limits"], len(artifact.suite["y"])
    counts = {**dict.fromkeys(artifact.sets, n), "square": min(artifact.manifest["square"]["n"], n)}
    for name, count in counts.items():
        limit = limits["accuracy_drop" if name == "clean" else "robust_drop"]
        needed = images_needed(
            statistics["detected_drop"], limit, 0.0, statistics["alpha"] / len(counts), statistics["power"]
        )
        expected = f"{needed} images or more for a baseline of {name} with the power asked for"
        _expect(count >= needed, expected, count, "export a larger suite, or raise detected_drop")


def pinned_at(artifact: Artifact, path: MaybePath, update: bool, reason: str) -> MaybePath:
    """Where to pin the outcomes, if asked; no artifact's name leads out of the folder. Raises without a reason."""
    _expect(update == bool(reason.strip()), "--update-baseline and --reason TEXT", "one of them", "give both")
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in artifact.name).lstrip(".")
    return (path or Path("export", "baselines", f"{name or 'baseline'}.json")) if update else None


def _expect_places(artifact: Path, files: Mapping[str, MaybePath]) -> None:
    """Before the work: every result has a file of its own, which no check reads."""
    taken, folder = set(), os.path.realpath(artifact)
    for option, path in ((option, path) for option, path in files.items() if path is not None):
        printed, place = str(path) == "-", os.path.realpath(path)
        _expect(option != "baseline" or not printed, "a file as --baseline", "-", "name one")
        _expect(place not in taken, "another file for each result", path, f"change --{option}")
        valid = printed or os.path.commonpath([place, folder]) != folder
        _expect(valid, "a place outside of the artifact, which holds its own files alone", path, f"change --{option}")
        with _expecting(f"a file as --{option}", "give it a shorter name"):
            _expect(not path.is_dir(), f"a file as --{option}", f"{path}, a folder", "name a file in it")
        taken.add(place)


def _write(path: Path, text: str) -> None:
    """Write a file whole, where a link leads to; what is no file of a disk, as a pipe, is written through."""
    given, place = os.path.abspath(path), Path(os.path.realpath(path))  # noqa: PTH100
    # A descriptor of this process is not its file: what it has written there would be lost.
    if given.startswith(("/dev/fd/", "/dev/std", "/proc/")) or (path.exists() and not path.is_file()):
        with path.open("ab", buffering=0) as stream:
            stream.write(text.encode())
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    os.umask(mask := os.umask(0))
    mode = place.stat().st_mode & 0o777 if place.exists() else 0o666 & ~mask
    handle, partial = tempfile.mkstemp(dir=place.parent, prefix=".check-")  # a name that nobody can lay a link at
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(mode)
        Path(partial).replace(place)  # a reader finds the old result or the new one, never half
    except BaseException:
        Path(partial).unlink()
        raise


def _say(text: str, stream: Any) -> None:
    with _expecting("an output that takes the report", "send it elsewhere"):
        if stream is None:
            raise OSError("it is closed")
        print(text, file=stream, flush=True)


def conclude(report: Report, files: Mapping[str, MaybePath], reason: str = "") -> int:
    """Print a report and write it, each file whole; returns the exit code, 0 or 1.

    files: by "json", "junit" and "markdown", "-" prints one of them and the report goes to stderr; "baseline" gets
    outcomes, policy and the reason, unless a limit is broken.
    """
    result, text = report.to_dict(), format_report(report)
    pinned = {"schema_version": 2, "reason": reason, **{key: result[key] for key in BASELINE}}
    texts = {"json": json.dumps(result, indent=2, allow_nan=False), "junit": format_junit(report)}
    # An indented block is one that no name inside can close.
    texts["markdown"] = "### qrobust check\n\n" + "".join(f"    {line}\n" for line in text.splitlines())
    texts["baseline"] = json.dumps(pinned, indent=2, allow_nan=False)
    chosen = {kind: path for kind in texts if (path := files.get(kind)) and (kind != "baseline" or report.passed)}
    printed = [kind for kind, path in chosen.items() if str(path) == "-"]
    _say(text, sys.stderr if printed else sys.stdout)
    for kind, path in chosen.items():
        if kind in printed:
            _say(texts[kind].rstrip(), sys.stdout)
            continue
        with _expecting(f"a writable place for {path}", "choose another one"):
            _write(path, texts[kind].rstrip() + "\n")
    return 0 if report.passed else 1


def time_sessions(
    sessions: dict[str, Any], x: Array, *, min_seconds: float = 1.0, min_runs: int = 20, warmup: int = 5
) -> dict[str, list[float]]:
    """Latencies in ms by session on images x, for ratios: calls take turns, so that noise hits all alike.

    Goes on until every session has run `min_runs` times and `min_seconds` in all have passed; `warmup` runs
    of each are not counted.
    """
    feeds = {name: {session.get_inputs()[0].name: x} for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    names, rounds, begin = list(sessions), 0, time.perf_counter()
    while rounds < warmup + min_runs or time.perf_counter() - begin < min_seconds:
        begin = time.perf_counter() if rounds == warmup else begin
        for name in names:
            start = time.perf_counter()
            sessions[name].run(None, feeds[name])
            times[name].append((time.perf_counter() - start) * 1e3)
        names, rounds = names[1:] + names[:1], rounds + 1
    return {name: values[warmup:] for name, values in times.items()}


def _meter() -> OnStep:
    """Prints how far Square is: in place on a terminal, elsewhere a line with the time each minute."""
    terminal, start = sys.stderr is not None and sys.stderr.isatty(), time.monotonic()
    every, last = 0.1 if terminal else 60.0, start

    def step(done: int, total: int) -> None:
        """Of `OnStep`."""
        nonlocal last
        now = time.monotonic()
        if sys.stderr is None or (now - last < every and not (terminal and done == total)):
            return
        last, rate = now, done / max(now - start, 1e-9)
        line = f"check: {done} of {total} queries, {rate:.3g}/s, {(total - done) / rate:.0f} s left"
        head, end = ("\r", "\x1b[K") if terminal else (time.strftime("%H:%M:%S "), "\n")
        print(head + ("" if terminal and done == total else line), end=end, file=sys.stderr, flush=True)

    return step


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of verify.py, in this process; returns the exit code 0, 1 or 2."""
    try:
        options = arguments(argv)
        kinds = ("json", "junit", "markdown", "baseline")
        _expect_places(options.artifact, {kind: getattr(options, kind) for kind in kinds})
        artifact = Artifact.load(options.artifact)
        if options.update_baseline:
            _expect_power(artifact)
        pin = pinned_at(artifact, options.baseline, options.update_baseline, options.reason)
        if artifact.manifest["target"]["provider"] in ON_GPU:
            limit_memory(-1)  # its driver maps more than it takes
        baseline = None if pin else options.baseline
        report = check(artifact, baseline=baseline, queries=options.queries, seed=options.seed, on_step=_meter())
        return conclude(report, {**vars(options), "baseline": pin}, options.reason)
    except (Exception, KeyboardInterrupt) as error:
        return _refused(error)  # exit code 1 is a verdict: a crash must not look like one


if __name__ == "__main__":
    # Without what Python does at its end: libraries crash there, and it would print what a closed pipe did not take.
    os._exit({code: exit_code for exit_code, code in CODES.items()}[main(sys.argv[2:])])
