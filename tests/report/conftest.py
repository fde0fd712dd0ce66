"""A run without its hours: artifacts are real, what other stages measured is written by hand."""

import json
import shutil
import sys
from html.parser import HTMLParser

import pytest

from qrobust import recipe
from qrobust.__main__ import main
from qrobust.storage import write_json, write_text

from ..bench.conftest import written

WIDTHS = (32, 4)
VOID = {"meta", "link", "img", "br"}
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


def share(accuracy, low, high, **more):
    return {"accuracy": accuracy, "ci95": [low, high], **more}


def evaluation(bits):
    weights = {
        "weights": 1000,
        "weight_bits": bits,
        "activation_bits": bits,
        "zero_share": None if bits == 32 else 0.125,
        "steps": None if bits == 32 else [0.125, 0.25],
    }
    attack = {"settings": {"steps": 20, "step_size": 0.0078, "loss": "ce"}, "bounded": True, "seconds": 1.5}
    return {
        "n": 12, "seed": 3, "images": "ab" * 32, "threat": {"norm": "linf", "eps": 8 / 255},
        "clean": share(0.911, 0.611, 0.985), "worst_case": share(0.411, 0.198, 0.681),
        "attacks": {"gn": share(0.811, 0.552, 0.953, **attack | {"bounded": False}),
                    "pgd-20": share(0.511, 0.254, 0.746, **attack)},
        "versions": {"python": "3.11.7"}, "hardware": {"cpu": "a CPU", "gpu": None},
        "cost": {"size_bytes": 500, "macs": 10, "bops": 10 * bits * bits, "zero_share": weights["zero_share"],
                 "layers": {"conv1": weights, "fc": weights}},
        "sanity_checks": {"zero-gradient": 0.0}, "flags": [],
    }  # fmt: skip


def checked(passed=True, model=None):
    fine = {"name": "label_flips", "passed": True, "measured": 0.0, "limit": 0.005, "reason": "none", "hint": "look"}
    broken = {
        "name": "square_gap",
        "passed": False,
        "measured": 0.0766,
        "limit": 0.02,
        "reason": "wide",
        "hint": "look",
    }
    return {
        "passed": passed, "verdicts": [fine] if passed else [fine, broken], "n": 12, "worst_case": 1 / 3,
        "label_flips": 0.0, "model": model, "accuracy": {"clean": 0.75, "fgsm": 0.667, "square": 0.623},
        "ci95": {"clean": [0.467, 0.911], "fgsm": [0.391, 0.862], "square": [0.306, 0.863]},
        "counts": {"clean": 12, "fgsm": 12, "square": 8},
    }  # fmt: skip


def timed():
    rows = [
        {"name": f"tiny-qm-{bits}", "bits": bits, "batch": batch, "threads": 1, "p50_ms": 0.321 * batch, "p99_ms": 0.5,
         "images_per_second": 4321.0, "size_bytes": 10_000 * bits, "speedup": 1.5, "speedup_ci95": [1.25, 1.75]}
        for bits in WIDTHS for batch in (32, 1)
    ]  # fmt: skip
    return {"reference": "tiny-qm-32", "hardware": {"cpu": "a CPU"}, "results": rows}


def analysed():
    curve = {"accuracy": [0.2, 0.9], "ci95": [[0.1, 0.3], [0.8, 1.0]]}
    cases = [{"label": f"QM-{bits}", "result": {"bandwidths": [1, 8], "curves": {"clean": curve}}} for bits in WIDTHS]
    return {
        "figure": "low-pass",
        "paper": "a paper",
        "settings": {},
        "cases": cases,
        "n": 12,
        "seed": 0,
        "data": "digits",
    }


def fill(folder, bits):
    """What the stages of a width leave, but for the artifact."""
    model = json.loads((folder / "artifact" / "manifest.json").read_text())["files"]["model.onnx"]["sha256"]
    mask = {"min": 0.75, "mean": 1.0, "max": 1.25, "std": 0.0625}
    write_json(folder / "eval.json", evaluation(bits))
    write_json(folder / "check.json", checked(passed=bits == 32, model=model))
    best = {"model": {"epoch": 2, "masks": {} if bits == 32 else {"conv1": mask}}}
    about = {"versions": {"python": "3.11.7"}, "hardware": {"cpu": "a CPU"}, "data_fingerprint": "cd" * 32}
    write_json(folder / "train.json", {"epochs": 2, "seconds": 60.4, "best": best, **about})
    epochs = [{"epoch": at, "loss": 2.0 / at**6, "validation_clean": 0.5, "validation_robust": 0.25} for at in (1, 2)]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Nothing is missing in it; copied by `run`."""
    folder = tmp_path_factory.mktemp("report") / "tiny"
    settings = recipe.load("digits", ["bits=[32,4]", "threat.eps='8/255'"])
    write_text(folder / "recipe.toml", recipe.dump(settings))
    for bits in WIDTHS:
        written(folder / f"qm-{bits}" / "artifact", bits)
        fill(folder / f"qm-{bits}", bits)
    write_json(folder / "bench.json", timed())
    write_json(folder / "analysis" / "low-pass.json", analysed())
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A run folder that a test may change."""
    return shutil.copytree(whole, tmp_path / "tiny")


@pytest.fixture
def lean(run):
    """A run of which no chart is drawn, which takes most of a page's time."""
    shutil.rmtree(run / "analysis")
    for path in (run / "bench.json", *run.glob("qm-*/metrics.jsonl")):
        path.unlink()
    return run


@pytest.fixture
def report(monkeypatch, capsys):
    """`qrobust report ARGUMENTS` in this process: exit code, output, errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["qrobust", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def change(path, edit):
    """Rewrite a JSON file by a function of its value."""
    value = json.loads(path.read_text())
    write_json(path, edit(value) or value)


class Parsed(HTMLParser):
    """tags: (name, attributes); text: all that is shown, by blanks; raises AssertionError if tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.parts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.parts.append(data)

    def every(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]
