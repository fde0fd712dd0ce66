"""The regression suite: rounding inside the threat, and what it holds."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qrobust.attacks import Attack, named, plan
from qrobust.data import Images, to_unit
from qrobust.errors import ExportError
from qrobust.export.artifact import make_suite, suite_accuracy, suite_bytes, to_pixels
from qrobust.objectives import margin
from qrobust.threat import Threat

from .helpers import network

EPS = [1 / 255, 8 / 255, 8.5 / 255, 0.031, 0.1]


def pixels(n=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)


def perturbed(x, threat, seed=1):
    """Points inside the threat, many of them on its rim."""
    generator = torch.Generator().manual_seed(seed)
    return threat.project(x + 2 * threat.eps * torch.randn(x.shape, generator=generator), x)


@pytest.mark.parametrize("eps", EPS)
def test_linf_pixels_stay_in_the_ball(eps):
    threat, x = Threat("linf", eps), to_unit(pixels(), "cpu")
    rounded = to_pixels(perturbed(x, threat), x, threat)
    change = (rounded.int() - pixels().int()).abs().max()
    assert rounded.dtype == torch.uint8
    assert change == int(np.floor(eps * 255 + 1e-6))  # reaches the rim, and no further


@pytest.mark.parametrize("eps", [0.02, 0.1, 0.5, 2.0])
def test_l2_pixels_stay_in_the_ball_and_use_it(eps):
    threat, x = Threat("l2", eps), to_unit(pixels(), "cpu")
    x_adv = perturbed(x, threat)
    rounded = to_pixels(x_adv, x, threat)
    change, meant = (rounded.int() - pixels().int()).flatten(1), ((x_adv - x) * 255).flatten(1)
    length = change.square().sum(1)  # whole numbers: no rounding hides behind a tolerance
    assert (length <= (255 * eps) ** 2).all()
    assert ((change - meant).abs() < 1).all()  # each to one of its two neighbours
    along = (change * meant).sum(1) / meant.norm(dim=1) ** 2
    assert (along > (0.9 if eps > 0.05 else 0.6)).all()  # cut towards zero: 0.78 at eps 0.1, a fifth at 0.02


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_clean_and_rounded_images_do_not_change(norm):
    threat, x = Threat(norm, 8 / 255), to_unit(pixels(), "cpu")
    assert torch.equal(to_pixels(x, x, threat), pixels())
    once = to_pixels(perturbed(x, threat), x, threat)
    assert torch.equal(to_pixels(to_unit(once, "cpu"), x, threat), once)


def suite(attacks=("fgsm", "pgd-3"), seed=0, threat=Threat("linf", 8 / 255)):
    images = Images(pixels(), torch.arange(20) % 10)
    attacks = [named(name, threat) for name in attacks]
    return make_suite(network(4), images, attacks=attacks, threat=threat, seed=seed, batch_size=8)


@pytest.mark.parametrize("threat", [Threat("linf", 8 / 255), Threat("l2", 0.5)], ids=["linf", "l2"])
def test_a_suite_holds_images_in_the_ball_judged_as_they_are_stored(threat):
    arrays = suite(threat=threat)
    assert set(arrays) == {
        "y", "x.clean", "label.clean", "logits.clean", "x.fgsm", "label.fgsm", "x.pgd-3", "label.pgd-3",
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["x.clean"], pixels().numpy())
    for name in ("clean", "fgsm", "pgd-3"):
        x = torch.from_numpy(arrays[f"x.{name}"])
        assert (threat.distance(x.double() / 255, pixels().double() / 255) <= threat.eps + 1e-12).all()
        assert torch.equal(x, pixels()) == (name == "clean")
        with torch.no_grad():
            expected = network(4)(to_unit(x, "cpu")).argmax(1)
        np.testing.assert_array_equal(arrays[f"label.{name}"], expected)
    assert arrays["logits.clean"].dtype == np.float32
    np.testing.assert_array_equal(arrays["logits.clean"].argmax(1), arrays["label.clean"])


def test_a_suite_takes_images_as_users_have_them():
    x, y, threat = to_unit(pixels(), "cpu"), torch.arange(20) % 10, Threat("linf", 8 / 255)
    settings = {"attacks": [named("fgsm", threat)], "threat": threat, "seed": 0, "batch_size": 8}
    first = make_suite(network(4), Images(pixels(), y), **settings)
    for given in ((x, y), (x.numpy(), y.tolist()), DataLoader(TensorDataset(x, y), 7), TensorDataset(x, y)):
        found = make_suite(network(4), given, **settings)
        assert all(np.array_equal(found[name], first[name]) for name in first)


def test_a_suite_depends_on_the_seed_alone():
    first, second, other = suite(), suite(), suite(seed=1)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["x.pgd-3"], other["x.pgd-3"])


@pytest.fixture(scope="module")
def labelled():
    """Images that the network is right on, but for the first four."""
    x = pixels(16)
    with torch.no_grad():
        y = network(4)(to_unit(x, "cpu")).argmax(1)
    return Images(x, torch.where(torch.arange(16) < 4, (y + 1) % 10, y))


def margins(x, y):
    with torch.no_grad():
        return margin(network(4)(to_unit(torch.from_numpy(x), "cpu")), y)


def strongest(images, threat, name="strong:quick"):
    return make_suite(network(4), images, attacks=[named(name, threat)], threat=threat, seed=0)


@pytest.mark.parametrize("threat", [Threat("linf", 2 / 255), Threat("l2", 0.1)], ids=["linf", "l2"])
def test_of_a_cascade_the_furthest_points_in_bytes_are_stored_with_their_parts(labelled, threat, monkeypatch):
    monkeypatch.setattr(plan, "QUICK", tuple(replace(part, steps=part.steps // 10) for part in plan.QUICK))
    arrays, name = strongest(labelled, threat), "strong:quick"
    x, rows = arrays[f"x.{name}"], arrays[f"found_by.{name}"]
    assert (threat.distance(torch.from_numpy(x) / 255.0, labelled.x / 255.0) <= threat.eps + 1e-6).all()
    before, after = margins(arrays["x.clean"], labelled.y), margins(x, labelled.y)
    np.testing.assert_array_equal(arrays[f"label.{name}"] != arrays["y"], after.numpy() > 0)
    names = [bytes(row).rstrip(b"\0").decode() for row in rows]
    moved = (x != arrays["x.clean"]).reshape(16, -1).any(1)
    assert rows.dtype == np.uint8
    assert names[:4] == ["clean"] * 4  # wrong without an attack: they stay as they came
    assert not moved[:4].any()
    assert set(names[4:]) <= {"clean", "margin-30", "margin-5, near", "square-30, best"}
    np.testing.assert_array_equal(moved, np.array(names) != "clean")
    unbroken = torch.arange(16)[4:][after[4:] <= 0]
    assert 0 < len(unbroken) < 12  # of what nothing breaks too it is the furthest point
    assert (after[unbroken] > before[unbroken]).all()


def test_a_cascade_gets_the_right_images_alone_in_batches_that_are_full(monkeypatch):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), pixels(16)
    y = net(to_unit(x, "cpu")).argmax(1)
    y[::4] = (y[::4] + 1) % 10
    sizes, real = [], Attack.strongest

    def counted(self, scene, x, y, generator):
        sizes.append((len(x), scene.batch_size))
        return real(self, scene, x, y, generator)

    monkeypatch.setattr(Attack, "strongest", counted)
    threat = Threat("linf", 2 / 255)
    settings = {"attacks": [named("strong:budget=20", threat)], "threat": threat, "seed": 0, "batch_size": 2}
    first, second = (make_suite(net, Images(x, y), **settings) for _ in range(2))
    assert sizes == [(8, 2), (4, 2)] * 2
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_of_a_network_that_is_always_wrong_no_cascade_makes_a_suite(labelled):
    wrong = Images(labelled.x[4:], (labelled.y[4:] + 1) % 10)
    with pytest.raises(ExportError, match=r"right on some of 12 images, got none to attack by strong; train it"):
        strongest(wrong, Threat("linf", 2 / 255), "strong")


def test_refuses_attacks_without_a_bound():
    with pytest.raises(ExportError, match=r"expected attacks within the threat .*got gn; leave it out there"):
        suite(attacks=("fgsm", "gn"))


@pytest.mark.parametrize("threat", [Threat("linf", 0.9 / 255), Threat("l2", 0.9 / 255)], ids=["linf", "l2"])
def test_refuses_a_ball_that_holds_no_other_image_in_bytes(threat):
    with pytest.raises(ExportError, match=r"expected images of fgsm that differ .* got the same; raise threat\.eps"):
        suite(attacks=("fgsm",), threat=threat)


def test_bytes_hold_the_arrays_and_no_pickle():
    arrays = suite()
    with np.load(io.BytesIO(suite_bytes(arrays)), allow_pickle=False) as loaded:
        assert set(loaded) == set(arrays)
        assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)


def test_accuracy_by_hand():
    arrays = {"y": np.array([0, 1, 2, 3]), "label.clean": np.array([0, 1, 2, 0]), "x.clean": np.zeros(4)}
    assert suite_accuracy(arrays) == {"clean": 0.75}
