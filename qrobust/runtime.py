"""Load an exported artifact, replay its robustness suite, attack it without gradients, and give a verdict.

This file needs Python, numpy and onnxruntime only. It travels inside every artifact as `verify.py`:

    python -I verify.py [ARTIFACT]      0: every limit held, 1: a limit was broken, 2: it could not run
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

try:
    import numpy as np
except ImportError as error:
    if __name__ != "__main__":
        raise
    # The exit code of a traceback is 1, which means here that a limit was broken.
    print(f"error: expected numpy, got {error}; pip install numpy onnxruntime", file=sys.stderr)
    raise SystemExit(2) from error

Array = np.ndarray[Any, np.dtype[Any]]
LogitsFn = Callable[[Array], Array]
OnStep = Callable[[int, int], None] | None

MAX_SUITE_BYTES = 2**30
# Every key that a manifest must hold. int: 1 or more, but seed; float: in [0, 1]; object: anything.
MANIFEST: dict[str, type] = {
    **dict.fromkeys(("name", "producer", "data_fingerprint", "input name", "output name", "target name"), str),
    **dict.fromkeys(("bits_per_layer", "recipe", "versions", "metrics before", "metrics after"), dict),
    **{"bits": object, "seed": object, "opset": int, "square queries": int, "square n": int},
    **{"target provider": str, "target session_options": dict, "input shape": list, "classes": list},
    **{"files model.onnx": dict, "files suite.npz": dict, "files verify.py": dict},
    **{"threat eps": float, "reference clean": float, "limits label_flips": float},
    **{"limits accuracy_drop": float, "limits robust_drop": float, "limits square_gap": float},
}
LEVELS = {
    "disable": "DISABLE_ALL",
    "basic": "ENABLE_BASIC",
    "extended": "ENABLE_EXTENDED",
    "all": "ENABLE_ALL",
}
OPTIONS = ("graph_optimization_level", "intra_op_num_threads", "inter_op_num_threads")
HINT_EXPORT = "compare onnxruntime, provider and session options with the manifest, then export again"
HINT_MASKED = "gradients misled the stored attacks: attack with other backward passes, losses and restarts"
NOTE = """Replayed examples were made before export: they can only overestimate robustness.
Square runs on this session, without gradients; a stronger attack may find more."""


class ArtifactError(Exception):
    """An artifact that cannot be used as asked; the message is one line: expected, got, what to do."""

    exit_code = 2


@dataclass(frozen=True)
class Verdict:
    """One limit: `passed` if measured <= limit (both fractions); `hint` says what to do if it is broken."""

    name: str
    passed: bool
    measured: float
    limit: float
    reason: str
    hint: str


@dataclass(frozen=True)
class Report:
    """What `check` found; accuracies are fractions, by set of the suite and for "square".

    counts: images behind an accuracy; ci95: its Wilson interval; reference: the network before export;
    worst_case: share of images right in every set, and under Square where it ran.
    """

    artifact: str
    verdicts: tuple[Verdict, ...]
    accuracy: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    counts: dict[str, int]
    reference: dict[str, float]
    worst_case: float
    label_flips: float
    n: int
    queries: int
    seed: int
    seconds: float
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """True if every limit held."""
        return all(verdict.passed for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, `passed` first."""
        return {"passed": self.passed, **asdict(self)}


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share, at 95 % unless z says otherwise: (low, high), both in [0, 1].

    Raises ValueError unless 0 <= successes <= n and n >= 1.

    >>> [round(bound, 4) for bound in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}; count again")
    share, weight = successes / n, 1 + z * z / n
    center = (share + z * z / (2 * n)) / weight
    half = z / weight * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact bound is 0 or 1; rounding would miss it by 1e-17.
    return (center - half if successes else 0.0), (center + half if successes < n else 1.0)


def _expect(held: object, expected: str, got: object, do: str = "export the artifact again") -> None:
    if not held:
        raise ArtifactError(f"expected {expected}, got {' '.join(str(got).split())[:200]}; {do}")


@contextmanager
def _expecting(expected: str, do: str = "export the artifact again") -> Iterator[None]:
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:  # damaged files raise anything, and onnxruntime's errors share no base
        _expect(False, expected, f"{type(error).__name__}: {error}", do)


def _read_manifest(path: Path) -> dict[str, Any]:
    _expect(path.is_file(), f"an artifact in {path.parent}", "no manifest.json", "pass an exported folder")
    with _expecting(f"JSON with schema_version and reference in {path}"):
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, reference = manifest["schema_version"], dict(manifest["reference"])
    do = "upgrade qrobust, or export the artifact again if it is the older one"
    _expect(version == 1, "schema_version 1, which is what this version reads", repr(version), do)
    for key, kind in {**MANIFEST, **{f"reference {name}": float for name in reference}}.items():
        with _expecting(f"{key!r} in manifest.json"):
            value: Any = reduce(lambda part, name: part[name], key.split(" ", 1), manifest)
        held = isinstance(value, (int, float) if kind is float else kind)
        if held and kind in (int, float):
            held = not isinstance(value, bool) and (0 <= value <= 1 if kind is float else value >= 1)
        _expect(held, f"a valid {kind.__name__} as {key!r} in manifest.json", repr(value))
    _check_meaning(manifest)
    return manifest


def _check_meaning(manifest: dict[str, Any]) -> None:
    image, classes, norm = manifest["input"], manifest["classes"], manifest["threat"].get("norm")
    got = (image.get("layout"), image.get("range"), image.get("dtype"), norm)
    _expect(got == ("NCHW", [0, 1], "float32", "linf"), "NCHW images, [0, 1], float32, and norm linf", got)
    held = len(image["shape"]) == 3 and all(type(size) is int and size >= 1 for size in image["shape"])
    _expect(held and len(classes) >= 2, "shape [C, H, W] and two classes or more", (image["shape"], classes))
    _expect("square" not in manifest["reference"], "another name for a stored attack", "square")
    for name in (manifest["name"], *classes, *manifest["reference"]):
        # Control characters in a name could redraw a terminal and fake the last line of a report.
        _expect(isinstance(name, str) and name.isprintable(), "printable names in manifest.json", repr(name))


def _check_files(folder: Path, files: dict[str, Any]) -> None:
    for name, entry in files.items():
        with _expecting(f"size_bytes and sha256 of {name} in manifest.json"):
            expected = f"{name} of {entry['size_bytes']} bytes with sha256 {entry['sha256']}"
        # Plain names only: a manifest must not make its reader open ../../somewhere.
        _expect(Path(name).name == name, "plain file names in manifest.json", repr(name))
        _expect((folder / name).is_file(), f"{name} in {folder}", "no such file")
        size = (folder / name).stat().st_size
        _expect(size == entry["size_bytes"], expected, f"{size} bytes")
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _expect(digest == entry["sha256"], expected, digest)


def _read_suite(path: Path, manifest: dict[str, Any]) -> dict[str, Array]:
    with _expecting(f"plain arrays in {path}"):
        with zipfile.ZipFile(path) as archive:
            # A few bytes of zip can claim terabytes; zipfile unpacks no more than its directory says.
            size = sum(info.file_size for info in archive.infolist())
        _expect(size <= MAX_SUITE_BYTES, f"at most {MAX_SUITE_BYTES} bytes unpacked from {path}", size)
        with np.load(path, allow_pickle=False) as arrays:
            suite = {name: np.asarray(arrays[name]) for name in arrays.files}
        n, classes = len(suite["y"]), len(manifest["classes"])
    expected = {"y": ((n,), "int64"), "logits.clean": ((n, classes), "float32")}
    for name in manifest["reference"]:
        expected[f"x.{name}"] = ((n, *manifest["input"]["shape"]), "uint8")
        expected[f"label.{name}"] = ((n,), "int64")
    _expect(n >= 1 and set(suite) == set(expected), f"images and {sorted(expected)} in {path}", sorted(suite))
    for name, header in expected.items():
        array = suite[name]
        _expect((array.shape, str(array.dtype)) == header, f"{name} as {header}", f"{array.shape}, {array.dtype}")
        held = header[1] != "int64" or (array.min() >= 0 and array.max() < classes)
        _expect(held, f"labels {name} in [0, {classes})", f"[{array.min()}, {array.max()}]")
    return suite


def load_session(
    model_path: str | Path, provider: str, threads: int | None, session_options: dict[str, Any] | None = None
) -> Any:
    """An onnxruntime session on one provider, never silently on another.

    threads: intra-op threads, 0 for all cores, None as in session_options, which may hold the keys of OPTIONS
    (levels: disable, basic, extended, all). Raises ArtifactError if something is missing or refused.
    """
    with _expecting("onnxruntime", "pip install onnxruntime"):
        import onnxruntime as ort
    available, options = ort.get_available_providers(), ort.SessionOptions()
    _expect(provider in available, f"a provider out of {available}", repr(provider), "choose one of them")
    options.log_severity_level = 3
    chosen = {**(session_options or {}), **({} if threads is None else {"intra_op_num_threads": threads})}
    with _expecting(f"a model and options for {provider}", "mend the target, or export again"):
        for key, value in chosen.items():
            # Only the harmless ones: others write files or load libraries, and a manifest is only data.
            _expect(key in OPTIONS, f"session options out of {OPTIONS}", repr(key), "mend the target")
            if key == "graph_optimization_level":
                value = getattr(ort.GraphOptimizationLevel, f"ORT_{LEVELS[value]}")
            setattr(options, key, value)
        session = ort.InferenceSession(str(model_path), options, providers=[provider])
    used = session.get_providers()[0]
    _expect(used == provider, f"the model on {provider}", used, "install what that provider needs")
    return session


def _as_float(x: Array) -> Array:
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    low, high = x.min(initial=0), x.max(initial=1)
    do = "pass unnormalised float32 or uint8, normalisation belongs inside the model"
    held = x.dtype == np.float32 and low >= 0 and high <= 1
    _expect(held, "images in [0, 1]", f"[{low:.3g}, {high:.3g}] of {x.dtype}", do)
    return x


class Artifact:
    """An exported folder that is whole: `Artifact.load(path)`.

    path; manifest; suite: arrays by name; name; classes; eps in units of [0, 1]; sets: names of the sets of
    images in the suite, "clean" and attacks such as "pgd-20".
    """

    def __init__(self, path: Path, manifest: dict[str, Any], suite: dict[str, Array]) -> None:
        self.path, self.manifest, self.suite = path, manifest, suite
        self.name, self.classes = str(manifest["name"]), tuple(map(str, manifest["classes"]))
        self.eps, self.sets = float(manifest["threat"]["eps"]), tuple(map(str, manifest["reference"]))

    @classmethod
    def load(cls, path: str | Path) -> Artifact:
        """Check manifest, sizes, sha256 and suite of a folder. Raises ArtifactError with one clear line."""
        manifest = _read_manifest(Path(path) / "manifest.json")
        _check_files(Path(path), manifest["files"])
        return cls(Path(path), manifest, _read_suite(Path(path) / "suite.npz", manifest))

    def session(self, provider: str | None = None, threads: int | None = None, **session_options: Any) -> Any:
        """A session as the target or the caller says. Raises ArtifactError if the model does not fit."""
        target, source = self.manifest["target"], self.manifest["input"]
        options = {**target["session_options"], **session_options}
        session = load_session(self.path / "model.onnx", provider or target["provider"], threads, options)
        first, last = session.get_inputs()[0], [output.name for output in session.get_outputs()]
        expected = (source["name"], "tensor(float)", source["shape"], self.manifest["output"]["name"])
        held = (first.name, first.type, first.shape[1:]) == expected[:3] and expected[3] in last
        got = (first.name, first.type, first.shape, last)
        _expect(held and not isinstance(first.shape[0], int), f"any batch and {expected} of model.onnx", got)
        return session

    @cached_property
    def _own_session(self) -> Any:
        return self.session()

    def logits(self, x: Array, session: Any = None) -> Array:
        """Logits float32 (n, classes) of images (n, C, H, W), float32 in [0, 1] or uint8, 256 at a time.

        session: None for the target's. Raises ArtifactError for images or logits that are not as said.
        """
        session, source = session or self._own_session, self.manifest["input"]["name"]
        logits = np.empty((len(x), len(self.classes)), np.float32)
        for at in range(0, len(x), 256):
            part, images = logits[at : at + 256], _as_float(x[at : at + 256])
            with _expecting("model.onnx to run"):
                batch = session.run([self.manifest["output"]["name"]], {source: images})[0]
            _expect(batch.shape == part.shape, f"logits {part.shape}", batch.shape)
            part[:] = batch
        _expect(np.isfinite(logits).all(), "finite logits", "NaN or infinity")
        return logits


def _judge(logits: Array, y: Array) -> tuple[Array, Array]:
    """Margin of the true class over the best other one, and whether the label is wrong; both (n,)."""
    rows, others = np.arange(len(y)), logits.copy()
    others[rows, y] = -np.inf
    return logits[rows, y] - others.max(axis=1), logits.argmax(axis=1) != y


def _propose(x: Array, best: Array, eps: float, share: float | None, rng: np.random.Generator) -> Array:
    """Vertical stripes of x ± eps (share None), or `best` with a square of x ± eps in each image."""
    n, channels, height, width = x.shape
    signs = rng.choice(np.array([-1, 1], np.float32), (n, channels, 1, 1 if share else width))
    noisy = np.clip(x + np.float32(eps) * signs, 0, 1)
    if share is None:
        return noisy
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    top, left = (rng.integers(0, length - side + 1, (n, 1)) for length in (height, width))
    rows, columns = (np.arange(height) - top) % height < side, (np.arange(width) - left) % width < side
    return np.where(rows[:, None, :, None] & columns[:, None, None, :], noisy, best)


def square_attack(
    logits_fn: LogitsFn, x: Array, y: Array, eps: float, queries: int, seed: int, on_step: OnStep = None
) -> tuple[Array, Array, Array]:
    """The L-inf Square attack: squares of random ±eps, kept where the margin f_y - max f_k (k != y) falls.

    x: images (n, C, H, W), float32 in [0, 1] or uint8; y: labels (n,); queries: budget per image, the start
    included; on_step(step, queries) follows each step. Returns x_adv float32 in the ball and in [0, 1];
    broken (n,), with the images that are wrong as they are; queries used (n,). Broken images leave the batch.

    A square covers 0.8 / 2^k of the image, k = how many of 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000 lie
    below step / queries * 10000 (Andriushchenko et al. 2020, arXiv 1912.00049).
    """
    x, rng = _as_float(x), np.random.default_rng(seed)
    best, used = x.copy(), np.zeros(len(x), np.int64)
    marks = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
    margin, broken = _judge(logits_fn(x), y)
    for step in range(queries):
        active = np.flatnonzero(~broken)
        if not active.size:
            break
        share = 0.8 / 2.0 ** int((marks < step / queries * 10_000).sum()) if step else None
        trial = _propose(x[active], best[active], eps, share, rng)
        trial_margin, wrong = _judge(logits_fn(trial), y[active])
        kept = wrong | (trial_margin < margin[active]) | (step == 0)
        best[active[kept]], margin[active[kept]] = trial[kept], trial_margin[kept]
        broken[active], used[active] = wrong, used[active] + 1
        if on_step:
            on_step(step + 1, queries)
    return best, broken, used


def _verdicts(artifact: Artifact, accuracy: dict[str, float], flips: float, stored: float) -> tuple[Verdict, ...]:
    limits, reference = artifact.manifest["limits"], artifact.manifest["reference"]
    reason = f"{flips:.2%} of labels differ from those before export"
    rows = [("label_flips", flips, limits["label_flips"], reason, HINT_EXPORT)]
    for name in artifact.sets:
        limit = limits["accuracy_drop" if name == "clean" else "robust_drop"]
        reason = f"accuracy {accuracy[name]:.2%} after export, {reference[name]:.2%} before"
        rows.append((f"{name} accuracy", reference[name] - accuracy[name], limit, reason, HINT_EXPORT))
    reason = f"accuracy {accuracy['square']:.2%} under Square, {stored:.2%} under the stored attacks"
    rows.append(("square", stored - accuracy["square"], limits["square_gap"], reason, HINT_MASKED))
    # 0.75 - 0.73 > 0.02 in floating point; a limit that is met exactly has held.
    return tuple(Verdict(row[0], row[1] <= row[2] + 1e-9, *row[1:]) for row in rows)


def check(artifact: Artifact, *, queries: int | None = None, seed: int = 0, on_step: OnStep = None) -> Report:
    """Replay the suite on the target's session, attack the session with Square, and judge the limits.

    Limits: label flips against the network before export; accuracy lost per set against the reference; and
    Square on the first `square.n` images must not beat the stored attacks together by more than `square_gap`:
    else their gradients were masked. queries: instead of the manifest's; on_step(done, total) counts sets and
    queries. Raises ArtifactError if the session does not run.
    """
    start, suite, square = time.perf_counter(), artifact.suite, artifact.manifest["square"]
    budget = square["queries"] if queries is None else queries
    _expect(budget >= 1, "1 query or more for Square", budget, "raise queries")
    y, sets, tick = suite["y"], artifact.sets, on_step or (lambda *_: None)
    labels, n, total = {}, min(square["n"], len(y)), len(sets) + budget
    for done, name in enumerate(sets, 1):
        labels[name] = artifact.logits(suite[f"x.{name}"]).argmax(axis=1)
        tick(done, total)
    right = {name: labels[name] == y for name in sets}
    flips = float(np.mean([labels[name] != suite[f"label.{name}"] for name in sets]))
    worst = np.all(list(right.values()), axis=0)
    stored, images = float(worst[:n].mean()), suite["x.clean"][:n]
    _, broken, _ = square_attack(
        *(artifact.logits, images, y[:n], artifact.eps, budget, seed),
        on_step=lambda step, _: tick(len(sets) + step, total),
    )
    right["square"], worst[:n] = ~broken, worst[:n] & ~broken
    accuracy = {name: float(hits.mean()) for name, hits in right.items()}
    ci95 = {name: wilson(int(hits.sum()), len(hits)) for name, hits in right.items()}
    counts = {name: len(hits) for name, hits in right.items()}
    verdicts, overall = _verdicts(artifact, accuracy, flips, stored), float(worst.mean())
    sizes, seconds = (len(y), budget, seed), time.perf_counter() - start
    shares = (accuracy, ci95, counts, dict(artifact.manifest["reference"]), overall, flips)
    return Report(artifact.name, verdicts, *shares, *sizes, seconds, _versions())


def _versions() -> dict[str, str]:
    import onnxruntime as ort

    python = f"{platform.python_version()}, {platform.platform()}"
    return {"python": python, "numpy": np.__version__, "onnxruntime": ort.__version__}


def format_report(report: Report) -> str:
    """The report as a table for people; the last line is `held` or `broken`."""
    lines = [f"{report.artifact}: {report.n} images, Square with {report.queries} queries, seed {report.seed}"]
    lines.append(f"{'set':<20}{'n':>6}{'accuracy':>10}{'95 % interval':>18}{'reference':>11}")
    for name, accuracy in report.accuracy.items():
        interval = "{:.1%} - {:.1%}".format(*report.ci95[name])
        reference = f"{report.reference[name]:.1%}" if name in report.reference else "-"
        lines.append(f"{name:<20}{report.counts[name]:>6}{accuracy:>10.1%}{interval:>18}{reference:>11}")
    lines += [f"{'worst case':<20}{report.n:>6}{report.worst_case:>10.1%}", NOTE]
    lines += [f"broken {v.name}: {v.reason}; {v.hint}" for v in report.verdicts if not v.passed]
    return "\n".join([*lines, "held" if report.passed else "broken"])


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


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of verify.py; returns the exit code 0, 1 or 2."""
    parser = argparse.ArgumentParser(description="Check an artifact: 0 held, 1 broken, 2 could not run.")
    parser.add_argument("artifact", nargs="?", type=Path, default=Path(__file__).parent, help="its folder")
    parser.add_argument("--json", type=Path, metavar="F", help="write the full result to F")
    parser.add_argument("--queries", type=int, metavar="N", help="queries per image for Square")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of Square")
    options = parser.parse_args(argv)
    try:
        report = check(Artifact.load(options.artifact), queries=options.queries, seed=options.seed)
        print(format_report(report))
        if options.json:
            partial = options.json.with_name(f".{options.json.name}.partial")
            partial.write_text(json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
            partial.replace(options.json)  # a reader finds the old result or the new one, never half
    except (Exception, KeyboardInterrupt) as error:
        # Exit code 1 is a verdict: a crash must not look like one.
        print("error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 2
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
