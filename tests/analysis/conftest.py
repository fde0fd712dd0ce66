"""Runs small enough to train on the spot: colour images of three classes, 12 × 12; QM-32 and QM-4 behind FAT."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qrobust import recipe
from qrobust.analysis import NAMES, draw
from qrobust.analysis.cases import Settings, open_cases
from qrobust.analysis.session import analyze
from qrobust.analysis.style import STYLE
from qrobust.runs.run import Run

FINISHED = Path(__file__).resolve().parent.parent / "fixtures" / "0.1.0" / "run"  # evaluated and exported
STYLE["savefig.dpi"] = 40  # pixels of these figures are not looked at
SETTINGS = Settings(n=30, seed=3, bandwidths=(3, 6, 12), attacks=("pgd-2",))


def write_images(path, shape):
    """60 images to train on and 160 to test, brighter in the channel of their class."""
    draw, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 60), ("test", 160)):
        y = np.arange(n) % 3
        x = draw.integers(0, 200, (n, *shape))
        x[np.arange(n), y % shape[0]] += 50
        arrays |= {f"x_{part}": x.astype(np.uint8), f"y_{part}": y}
    np.savez(path, **arrays)


def train_run(folder, *more, shape=(3, 12, 12)):
    """The folder of a trained run."""
    folder.mkdir(parents=True)
    write_images(folder / "images.npz", shape)
    settings = recipe.parse(
        {
            "name": folder.name, "bits": [32], "data": {"name": "npz", "root": str(folder / "images.npz")},
            "model": {"name": "resnet8"}, "threat": {"eps": 0.05},
            "train": {"epochs": 2, "method": "natural", "log_frequency_ratio": True, "validation": {"every": 9}},
        } | dict(more),
        source="test",
    )  # fmt: skip
    Run(settings, folder).train()
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run of QM-32 and QM-4."""
    quant = {"epochs": 1, "calibration": 30}
    return train_run(tmp_path_factory.mktemp("analyze") / "both", ("bits", [32, 4]), ("quant", quant))


@pytest.fixture(scope="session")
def other_run(tmp_path_factory):
    """Another of QM-32, without a log of R, from another seed."""
    train = {"epochs": 1, "method": "natural", "validation": {"every": 9}}
    return train_run(tmp_path_factory.mktemp("analyze") / "other", ("train", train), ("seed", 1))


@pytest.fixture(scope="session")
def cases(run):
    """QM-32 and QM-4."""
    return open_cases([run], SETTINGS)


@pytest.fixture(scope="session")
def outcome(run, tmp_path_factory):
    """Data by name of all figures that this run has what it takes for, and where they are saved."""
    out = tmp_path_factory.mktemp("analyze") / "out"
    names = [name for name in NAMES if name not in ("ablation", "similarity-to-artifact")]
    return analyze([run], names, SETTINGS, out), out


@pytest.fixture(scope="session")
def drawn(outcome):
    """A figure of saved data, by name; each drawn once."""
    return cache(lambda name: draw(outcome[0][name]))
