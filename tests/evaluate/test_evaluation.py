"""Accuracies over all images, clean and attacked, from which nothing is left out."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from qrobust import machine
from qrobust.attacks import Attack, named
from qrobust.data import Images
from qrobust.errors import DataError, RecipeError
from qrobust.evaluate import Outcomes, evaluate
from qrobust.evaluate.evaluation import accuracy
from qrobust.runtime import wilson
from qrobust.threat import Threat

THREAT = Threat("linf", 8 / 255)


def some_images(n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return Images(x, torch.arange(n) % 3)


def network():
    """A steep random network: right for some images, and some of those fall to small attacks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    return machine.placed(model)


def attacks(*names):
    return [named(name, THREAT) for name in names]


def run(*names, images=None, **options):
    images = some_images() if images is None else images
    return evaluate(network(), images, attacks=attacks(*names), threat=THREAT, **options)


@dataclass(frozen=True)
class Scripted(Attack):
    """Records the seeds of its generators; returns inverted images, far outside the threat."""

    family: str = "scripted"
    seeds: list[int] = field(default_factory=list)

    def run(self, model, x, y, threat, generator):
        assert not model.training
        self.seeds.append(generator.initial_seed())
        return 1 - x


def test_every_image_counts_once_whatever_the_batch():
    whole, parts = (run("fgsm", batch_size=size) for size in (30, 7))
    assert (whole.n, len(whole.correct["fgsm"])) == (30, 30)
    for name in ("clean", "fgsm"):
        assert np.array_equal(whole.correct[name], parts.correct[name])


def test_clean_accuracy_is_the_plain_one():
    images, model = some_images(), network().eval()
    x = (images.x / 255).to(machine.device())
    right = (model(x).argmax(1).cpu() == images.y).numpy()
    assert np.array_equal(run("gn").correct["clean"], right)


def test_attacks_are_projected_and_noise_is_clipped():
    """A bounded attack that inverts every image gains what the threat allows, an unbounded one all."""

    class Brightness(nn.Module):
        def forward(self, x):
            mean = x.flatten(1).mean(1)
            return torch.stack([0.5 - mean, mean - 0.5], dim=1)

    x = torch.tensor([10, 240], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    images = Images(x, torch.tensor([0, 1]))
    both = [Scripted("bounded"), Scripted("free", bounded=False)]
    found = evaluate(Brightness(), images, attacks=both, threat=THREAT)
    assert found.correct["bounded"].tolist() == [True, True]
    assert found.correct["free"].tolist() == [False, False]
    assert found.worst_case().tolist() == [True, True]


def test_the_first_n_images():
    images = some_images()
    few = run("fgsm", n=12)
    assert few.n == 12
    assert np.array_equal(few.correct["fgsm"], run("fgsm", images=images.take(slice(0, 12))).correct["fgsm"])


@pytest.mark.parametrize("n", [31, 0, -1])
def test_an_impossible_n_is_refused(n):
    with pytest.raises(DataError) as caught:
        run("fgsm", n=n)
    assert str(caught.value) == f"expected n in [1, 30], as many test images as there are, got {n}; change it"


def test_no_attack_is_refused():
    with pytest.raises(RecipeError) as caught:
        run()
    text = "expected at least one attack, got none; a clean accuracy says nothing of robustness"
    assert str(caught.value) == text


def test_the_seed_decides():
    first, again = (run("gn", "pgd-2", seed=3) for _ in range(2))
    assert first.correct.keys() == {"clean", "gn", "pgd-2"}
    for name, mask in first.correct.items():
        assert np.array_equal(mask, again.correct[name])


def test_every_attack_and_batch_has_a_stream_of_its_own():
    def seeds(order, seed):
        scripted = [Scripted(name) for name in order]
        evaluate(network(), some_images(), attacks=scripted, threat=THREAT, seed=seed, batch_size=10)
        return {attack.name: attack.seeds for attack in scripted}

    first = seeds("ab", seed=0)
    assert first == seeds("ba", seed=0)
    drawn = [*first["a"], *first["b"], *seeds("ab", seed=1)["a"]]
    assert len(drawn) == len(set(drawn)) == 9


def outcomes():
    noise, fgsm, pgd = attacks("gn", "fgsm", "pgd-20")
    masks = {"clean": "1111", "gn": "0000", "fgsm": "1101", "pgd-20": "1011"}
    correct = {name: np.array([bit == "1" for bit in bits]) for name, bits in masks.items()}
    return Outcomes(THREAT, 5, (noise, fgsm, pgd), correct, dict.fromkeys(masks, 0.12345))


def test_worst_case_leaves_out_what_has_no_bound():
    found = outcomes()
    assert found.worst_case().tolist() == [True, False, False, True]
    found.correct["clean"][0] = False
    assert found.worst_case().tolist() == [False, False, False, True]


def test_accuracy_comes_with_its_interval():
    right = np.array([True] * 30 + [False] * 10)
    assert accuracy(right) == {"accuracy": 0.75, "ci95": list(wilson(30, 40))}


def test_the_shape_of_the_json():
    table = json.loads(json.dumps(outcomes().to_dict(), allow_nan=False))
    assert (table["n"], table["seed"], table["threat"]) == (4, 5, {"norm": "linf", "eps": 8 / 255})
    assert table["clean"]["accuracy"] == 1.0
    assert list(table["attacks"]) == ["gn", "fgsm", "pgd-20"]
    assert table["attacks"]["pgd-20"] == {
        "accuracy": 0.75,
        "ci95": list(wilson(3, 4)),
        "settings": {"steps": 20, "step_size": 2 / 255, "restarts": 1},
        "bounded": True,
        "seconds": 0.123,
    }
    assert table["attacks"]["gn"]["bounded"] is False
    assert table["worst_case"]["accuracy"] == 0.5
    assert {"versions", "hardware"} <= set(table)


def test_masks_survive_the_disk(tmp_path):
    found = run("gn", "fgsm")
    found.save(tmp_path / "qm4" / "evaluation.json", bits=4)
    table = json.loads((tmp_path / "qm4" / "evaluation.json").read_text())
    assert (table["bits"], table["n"]) == (4, 30)
    with np.load(tmp_path / "qm4" / "evaluation.npz") as stored:
        n = int(stored["n"])
        assert set(stored) == {"n", "clean", "gn", "fgsm"}
        for name, mask in found.correct.items():
            assert np.array_equal(np.unpackbits(stored[name], count=n).astype(bool), mask)
    assert table["attacks"]["fgsm"]["accuracy"] == found.correct["fgsm"].mean()
