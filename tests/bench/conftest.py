"""Three small artifacts, written once: a float network and its QM-8 and QM-4."""

import pytest
import torch

from qrobust.attacks import named
from qrobust.data import Dataset, Images
from qrobust.export.artifact import Contents, make_suite, write_artifact
from qrobust.export.target import load_target
from qrobust.runtime import Artifact
from qrobust.threat import Threat

from ..export.helpers import network


def written(folder, bits, name=None, target="ort-cpu"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8, generator=generator)
    part = Images(x, torch.arange(12) % 10)
    dataset, threat = Dataset("random", tuple("0123456789"), part, part, part, "0" * 64), Threat("linf", 8 / 255)
    suite = make_suite(network(bits), part, attacks=[named("fgsm", threat)], threat=threat, seed=0)
    contents = Contents(name or f"tiny-qm-{bits}", bits, 0, threat, {"name": "tiny"}, suite, {})
    write_artifact(folder, network(bits), dataset, load_target(target), contents)
    return Artifact.load(folder)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """By bits."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {bits: written(folder / f"qm-{bits}", bits) for bits in (32, 8, 4)}
