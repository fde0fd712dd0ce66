"""Planted liars must raise their flags, honest networks none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qrobust import models
from qrobust.attacks import PgdConfig, named, pgd
from qrobust.data import DataSettings, Images, choose, load, to_unit
from qrobust.deployed.sanity import SANITY_CHECKS as OF_FILES
from qrobust.evaluation import SANITY_CHECKS, Outcomes, evaluate
from qrobust.evaluation.outcomes import CLEAN, most_by_chance
from qrobust.evaluation.sanity import CHEAP_CHECKS, check_sanity
from qrobust.evaluation.sanity_measures import (
    CE,
    CURVE,
    MARGIN,
    TRANSFER,
    CheckedModel,
    backward_variants,
    last_step,
    weak_attacks,
)
from qrobust.quant import QuantConfig, quantize
from qrobust.threat import Threat
from qrobust.train.fitting import fit

THREAT = Threat("linf", 20 / 255)
N = 60
LAST_STEP = next(one for one in SANITY_CHECKS if one.name == "last-step")
FLAGS = Path(__file__).resolve().parents[2] / "docs" / "flags.md"


def _trained(images: Images, *, robust: bool, seed: int = 0, epochs: int = 6) -> nn.Module:
    """A small residual network; adversarially trained if robust."""
    torch.manual_seed(seed)
    model = models.build("resnet8", in_channels=1, classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * (len(images) // 64 + 1))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for which in torch.randperm(len(images), generator=generator).split(64):
            x, y = to_unit(images.x[which], "cpu"), images.y[which]
            config = PgdConfig(steps=3, step_size=10 / 255)
            x = pgd(model, x, y, threat=THREAT, config=config, generator=generator) if robust else x
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def images() -> tuple[Images, Images]:
    found = load(DataSettings("digits"))
    return found.train, found.test


@pytest.fixture(scope="module")
def robust(images: tuple[Images, Images]) -> nn.Module:
    return _trained(images[0], robust=True)


@pytest.fixture(scope="module")
def coarse(robust: nn.Module, images: tuple[Images, Images]) -> nn.Module:
    """Two bits of the robust network."""
    return quantize(
        robust, QuantConfig(2, fat="none"), calibration=to_unit(images[0].x[:256], "cpu"), estimate_statistics=True
    )


@pytest.fixture(scope="module")
def leaky(images: tuple[Images, Images]) -> nn.Module:
    return _trained(_leaked(images[0]), robust=False, epochs=4)


@pytest.fixture(scope="module")
def natural(images: tuple[Images, Images]) -> nn.Module:
    return _trained(images[0], robust=False, epochs=4)


class Wrapped(nn.Module):
    """A network behind a front end and before a back end."""

    def __init__(self, model: nn.Module, front=nn.Identity(), back=nn.Identity()) -> None:
        super().__init__()
        self.model, self.front, self.back = model, front, back

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.model(self.front(x)))


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class BatchStatistics(nn.Module):
    """Normalises with the batch that an image comes in, also at inference."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0, keepdim=True)) / (x.std(0, keepdim=True) + 0.1) if len(x) > 1 else x * 0


def _leaked(images: Images) -> Images:
    """Four pixels in the corner tell the label, in binary."""
    x = images.x.clone()
    x[:, 0, 0, :4] = ((images.y[:, None] >> torch.arange(4)) & 1).to(torch.uint8) * 255
    return Images(x, images.y)


def _thermometer(x: Tensor) -> Tensor:
    """Sixteen levels by comparison: the gradient is zero almost everywhere."""
    return sum((x > level / 16).float() for level in range(1, 16)) / 15


def _pushed_into_clamp(x: Tensor) -> Tensor:
    """Black or white by a steep ramp and a clamp: nearly every pixel sits where the clamp has no slope."""
    return ((x - 0.5) * 1e4).clamp(0, 1)


LIARS = {
    "logits × 1e4": (lambda m: Wrapped(m, back=Do(lambda z: z * 1e4)), {"zero-gradient"}),
    "logits × 100": (lambda m: Wrapped(m, back=Do(lambda z: z * 100)), {"temperature"}),
    "softmax output": (lambda m: Wrapped(m, back=nn.Softmax(1)), {"probabilities"}),
    "rounding without straight-through": (
        lambda m: Wrapped(m, front=Do(lambda x: (x * 8).round() / 8)),
        {"zero-gradient", "square-wins"},
    ),
    "thermometer": (lambda m: Wrapped(m, front=Do(_thermometer)), {"zero-gradient", "square-wins"}),
    "random": (lambda m: Wrapped(m, front=Do(lambda x: x + 0.1 * torch.randn_like(x))), {"random-logits"}),
    "clamp that kills gradients": (lambda m: Wrapped(m, front=Do(_pushed_into_clamp)), {"zero-gradient"}),
    "batch statistics": (lambda m: Wrapped(m, front=BatchStatistics()), {"batch-dependent"}),
    "rippled input": (
        lambda m: Wrapped(m, front=Do(lambda x: x + 0.03 * torch.sin(100 * x))),
        {"square-wins", "one-step-wins", "wide-ball"},
    ),
    "squashed logits": (lambda m: Wrapped(m, back=Do(torch.tanh)), {"uneven-gradient"}),
    "softmax in percent": (lambda m: Wrapped(m, back=Do(lambda z: z.softmax(1) * 100)), {"probabilities"}),
    "always the same class": (lambda m: Wrapped(m, back=Do(lambda z: z * 1e-6 + torch.eye(10)[3])), {"near-chance"}),
    "labels of other images": (lambda m: Wrapped(m, back=Do(lambda z: z.roll(3, 1))), {"near-chance"}),
}  # fmt: skip


def _raised(checked: CheckedModel, among: Iterable[str]) -> set[str]:
    """The flags that a network raises, of these: others cost time and are not what a test is about."""
    return {flag.name for flag in check_sanity(checked, [one for one in SANITY_CHECKS if one.name in among]).flags}


@pytest.mark.parametrize("name", LIARS)
def test_a_liar_raises_its_flag(name: str, robust: nn.Module, images: tuple[Images, Images]) -> None:
    make, expected = LIARS[name]
    assert _raised(CheckedModel(make(robust), images[1], THREAT, n=N), expected) == expected


def test_losses_disagree_where_one_is_saturated(natural: nn.Module, images: tuple[Images, Images]) -> None:
    """Cross-entropy finds no way, the margin does; without the factor both break the same images."""
    liar = LIARS["logits × 1e4"][0](natural)
    assert _raised(CheckedModel(liar, images[1], THREAT, n=N), {"loss-disagreement"}) == {"loss-disagreement"}
    assert _raised(CheckedModel(natural, images[1], THREAT, n=N), {"loss-disagreement"}) == set()


def test_an_unsure_network_is_no_liar(robust: nn.Module, images: tuple[Images, Images]) -> None:
    """Sharper logits turn the cross-entropy into the margin, which breaks more of a network that is not sure."""
    unsure = CheckedModel(Wrapped(robust, back=Do(lambda z: z * 0.03)), images[1], THREAT, n=300)
    assert unsure.share(unsure.ce) - unsure.share(unsure.margin) > 0.019  # six of 300 images
    assert _raised(unsure, {"temperature", "loss-disagreement"}) == set()


def test_the_float_model_shows_the_way_that_rounding_hides(robust: nn.Module, images: tuple[Images, Images]) -> None:
    liar = LIARS["rounding without straight-through"][0](robust)
    expected = {"turned-gradient", "backward-variants", "transfer-wins"}
    assert _raised(CheckedModel(liar, images[1], THREAT, n=N, float_model=robust), expected) == expected
    assert _raised(CheckedModel(liar, images[1], THREAT, n=N), expected) == set()


@pytest.mark.parametrize("further", [0, 4])
def test_another_backward_pass_is_held_to_what_it_breaks_from_the_same_starts(further, images, monkeypatch) -> None:
    """From a second start the network's own breaks five more, nobody's merit; the float model `further` ones too."""
    checked = CheckedModel(nn.Flatten(), images[1], THREAT, n=N, float_model=nn.Flatten())
    vars(checked)["white_box"] = torch.ones(N, dtype=torch.bool)
    monkeypatch.setattr(
        checked, "right", lambda attack, *, model=None, among: torch.arange(N) >= 5 + further * (model is not None)
    )
    assert backward_variants(checked) == pytest.approx(further / N)


@pytest.fixture
def few_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the steps and starts of the curve, which shows the same."""
    monkeypatch.setattr(
        "qrobust.evaluation.sanity_measures.CURVE",
        tuple(f"cw-inf-{effort}:keep=best" for effort in ("40", "10x4", "40x4")),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("few_restarts")
def test_two_bits_hide_what_restarts_find(coarse: nn.Module, images: tuple[Images, Images]) -> None:
    checked = CheckedModel(coarse, images[1], THREAT, n=24)
    assert checked.share(checked.clean) > 0.9
    assert _raised(checked, {"not-converged"}) == {"not-converged"}


@pytest.mark.slow
def test_two_bits_that_part_from_their_best_points_are_flagged_by_default(
    robust: nn.Module, coarse: nn.Module, images: tuple[Images, Images]
) -> None:
    """The float network, honest, parts by nothing."""
    for model, expected in ((coarse, True), (robust, False)):
        attacks = ("pgd-20", "strong:quick")
        outcomes = evaluate(model, images[1], attacks=attacks, threat=THREAT, n=N)
        checked = CheckedModel(model, images[1], THREAT, n=N, outcomes=outcomes)
        found = {flag.name for flag in check_sanity(checked, CHEAP_CHECKS).flags}
        assert ({"earlier-wins", "last-step"} <= found) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["honest", *(name for name in LIARS if not name.startswith("softmax"))])
def test_a_liar_is_flagged_by_default_whatever_strong_finds(name: str, robust: nn.Module, images) -> None:
    """Softmax is refused before."""
    liar = LIARS[name][0](robust).eval() if name in LIARS else robust
    outcomes = evaluate(liar, images[1], attacks=("fgsm", "pgd-20", "strong:quick"), threat=THREAT, n=N)
    found = check_sanity(CheckedModel(liar, images[1], THREAT, n=N, outcomes=outcomes), CHEAP_CHECKS).flags
    assert bool(found) == (name in LIARS)


def _outcomes(images: Images, n: int, **broken: range) -> Outcomes:
    """Made by hand, of n of the images: for each attack, the positions among all that it breaks."""
    which = choose(images, n, 0)[1]
    positions = np.arange(len(images)) if which is None else which.numpy()
    attacks = tuple(named(name.replace("_", "-"), THREAT) for name in broken)
    masks = {one.name: ~np.isin(positions, gone) for one, gone in zip(attacks, broken.values(), strict=True)}
    clean = {CLEAN: np.ones(len(positions), bool)}
    return Outcomes(THREAT, 0, attacks, "", clean | masks, indices=None if which is None else which.tolist())


@pytest.mark.parametrize("evaluated", [60, 300, 10**6])
def test_others_are_compared_with_what_strong_left_of_the_same_images(evaluated: int, images) -> None:
    outcomes = _outcomes(images[1], evaluated, strong=range(0, len(images[1]), 3))
    checked = CheckedModel(nn.Flatten(), images[1], THREAT, n=N, outcomes=outcomes)
    vars(checked)["ce"] = vars(checked)["margin"] = torch.ones(N, dtype=torch.bool)
    assert checked.white_box.tolist() == [position % 3 != 0 for position in choose(images[1], N, 0)[1].tolist()]
    assert not (checked.twice & ~checked.white_box).any()


def test_without_strong_others_are_compared_with_best_points(images: tuple[Images, Images]) -> None:
    outcomes = _outcomes(images[1], N, pgd_20=range(10**6), autoattack=range(10**6))
    checked = CheckedModel(nn.Flatten(), images[1], THREAT, n=N, outcomes=outcomes)
    vars(checked)["ce"] = vars(checked)["margin"] = torch.ones(N, dtype=torch.bool)
    assert checked.white_box.all()


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({"pgd_20": range(0), "bim_20": range(100), "strong": range(200)}, 200),  # of what leaves most
        ({"pgd_20": range(100), "cw_inf_30": range(100), "autoattack": range(200)}, 100),
        ({"pgd_20": range(200), "strong": range(100)}, 0),
    ],
)
def test_what_last_step_attacks_leave_beyond_the_worst_case_is_read(broken, expected: int, images) -> None:
    everything = len(images[1])
    checked = CheckedModel(nn.Flatten(), images[1], THREAT, n=N, outcomes=_outcomes(images[1], everything, **broken))
    assert last_step(checked) == pytest.approx(expected / everything)
    assert LAST_STEP.limit_for(checked) == most_by_chance(everything, 0.06) / everything


def test_pgd_s_last_step_is_made_where_the_evaluation_has_none(images: tuple[Images, Images]) -> None:
    """By default a number is doubted, whatever attacks it is of."""
    outcomes = _outcomes(images[1], N, strong=range(0, 10**6, 2))
    checked = CheckedModel(nn.Flatten(), images[1], THREAT, n=N, outcomes=outcomes)
    vars(checked)["_ce_ends"] = (torch.arange(N) >= 6, torch.zeros(N, dtype=torch.bool))
    even = [position % 2 == 0 for position in choose(images[1], N, 0)[1].tolist()]
    assert last_step(checked) == pytest.approx(sum(even[6:]) / N)
    assert LAST_STEP.limit_for(checked) == most_by_chance(N, 0.06) / N


def test_an_evaluation_by_weak_attacks_is_doubted(images: tuple[Images, Images]) -> None:
    """What PGD breaks of the images that are left in the worst case; unbounded noise leaves none by itself."""
    outcomes = _outcomes(images[1], N, transfer_20=range(0, 10**6, 2), gn=range(10**6))
    checked = CheckedModel(nn.Flatten(), images[1], THREAT, n=N, outcomes=outcomes)
    vars(checked)["_ce_ends"] = (torch.ones(N, dtype=torch.bool), torch.arange(N) >= 20)
    odd = [position % 2 == 1 for position in choose(images[1], N, 0)[1].tolist()]
    assert weak_attacks(checked) == pytest.approx(sum(odd[:20]) / N)
    assert _raised(checked, {"weak-attacks"}) == {"weak-attacks"}
    assert weak_attacks(CheckedModel(nn.Flatten(), images[1], THREAT, n=3)) is None


@pytest.mark.parametrize(("attack", "expected"), [("gn", {"weak-attacks"}), ("cw-inf-20:keep=best", set())])
def test_by_default_a_number_is_as_good_as_its_attacks(attack: str, expected, natural: nn.Module, images) -> None:
    outcomes = evaluate(natural, images[1], attacks=(attack,), threat=THREAT, n=N)
    checked = CheckedModel(natural, images[1], THREAT, n=N, outcomes=outcomes)
    assert {flag.name for flag in check_sanity(checked, CHEAP_CHECKS).flags} == expected


def test_without_an_evaluation_there_is_nothing_to_part_from(images: tuple[Images, Images]) -> None:
    assert last_step(CheckedModel(nn.Flatten(), images[1], THREAT, n=3)) is None


def test_the_strong_network_of_checks_keeps_best_points(coarse: nn.Module, images: tuple[Images, Images]) -> None:
    checked = CheckedModel(coarse, images[1], THREAT, n=N)
    assert not (checked.ce & ~checked.last_step).any()  # of the same points
    assert checked.share(checked.ce) < checked.share(checked.last_step)
    for attack in (CE, MARGIN, TRANSFER, *CURVE):
        assert named(attack, THREAT).settings["keep"] == "best"


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_checks_find_gradients_whoever_asks(caller, natural: nn.Module, images: tuple[Images, Images]) -> None:
    expected = check_sanity(CheckedModel(natural, images[1], THREAT, n=20), CHEAP_CHECKS)
    with caller():
        found = check_sanity(CheckedModel(natural, images[1], THREAT, n=20), CHEAP_CHECKS)
    assert found.measured == pytest.approx(expected.measured, abs=1e-6)


def test_a_network_trained_on_leaked_labels_raises_one_place(
    leaky: nn.Module, natural: nn.Module, images: tuple[Images, Images]
) -> None:
    checked = CheckedModel(leaky, _leaked(images[1]), THREAT, n=N)
    assert checked.share(checked.clean) >= 0.99  # nothing else gives it away
    assert checked.share(checked.white_box) >= 0.9
    assert [flag.name for flag in check_sanity(checked, CHEAP_CHECKS).flags] == ["one-place"]
    assert (
        check_sanity(CheckedModel(natural, _leaked(images[1]), THREAT, n=N), CHEAP_CHECKS).flags == []
    )  # the leak is there, not used


@pytest.mark.parametrize("kind", ["robust", pytest.param("natural", marks=pytest.mark.slow)])
def test_an_honest_network_raises_none(kind: str, images, request: pytest.FixtureRequest) -> None:
    """Of all but the curve of restarts, which takes as long as the rest."""
    model, quick = request.getfixturevalue(kind), [one for one in SANITY_CHECKS if one.name != "not-converged"]
    assert check_sanity(CheckedModel(model, images[1], THREAT, float_model=model, n=N), quick).flags == []


BY_LAYER = {
    "vit_small_images": {"size": 8, "patch": 2, "width": 64, "depth": 2},
    "convnext_small_images": {"widths": [16, 32], "depths": [1, 1], "kernel": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_LAYER)
def test_honest_networks_that_normalise_by_layer_raise_none(name: str, images: tuple[Images, Images]) -> None:
    """As transformers are trained: with AdamW, and both warm-ups."""
    torch.manual_seed(0)
    model = models.build(name, in_channels=1, classes=10, **BY_LAYER[name])
    fitted = fit(
        model, (images[0].x, images[0].y), threat=THREAT, method="at", epochs=12, optimizer="adamw", lr=2e-3,
        shape="cosine", warmup=1, batch_size=32, attack={"kind": "fgsm-rs", "warmup": 3}, validation={"every": 20},
    )  # fmt: skip
    checked = CheckedModel(fitted.model, images[1], THREAT, float_model=fitted.model, n=100)
    assert checked.share(checked.white_box) > 0.3
    assert check_sanity(checked, SANITY_CHECKS).flags == []


@pytest.mark.parametrize(
    ("kind", "n"),
    [("robust", 24), *(pytest.param(kind, 100, marks=pytest.mark.slow) for kind in ("robust", "natural"))],
)
def test_restarts_find_nothing_more_in_an_honest_network(kind, n, images, request: pytest.FixtureRequest) -> None:
    """On as many images as show what they find at two bits."""
    if n < N:
        request.getfixturevalue("few_restarts")
    assert _raised(CheckedModel(request.getfixturevalue(kind), images[1], THREAT, n=n), {"not-converged"}) == set()


def test_another_size_of_a_batch_is_no_other_batch(robust: nn.Module, images: tuple[Images, Images]) -> None:
    """A GPU has other kernels for it, which round otherwise."""
    honest = Wrapped(robust, front=Do(lambda x: x * (1 + 1e-3 * len(x))))
    assert _raised(CheckedModel(honest, images[1], THREAT, n=N), {"batch-dependent"}) == set()


def test_the_cheap_checks_find_the_cheap_liars(robust: nn.Module, images: tuple[Images, Images]) -> None:
    liar = LIARS["thermometer"][0](robust).eval()
    found = check_sanity(CheckedModel(liar, images[1], THREAT, n=N), CHEAP_CHECKS).flags
    assert [flag.name for flag in found] == ["zero-gradient"]
    (flag,) = found
    assert flag.measured == 1.0
    assert flag.measured > flag.limit
    assert flag.to_dict().keys() == {"name", "measured", "limit", "reason", "hint"}


def test_everything_measured_is_told_by_name(robust: nn.Module, images: tuple[Images, Images]) -> None:
    outcomes = evaluate(robust, images[1], attacks=("pgd-5", "cw-inf-5"), threat=THREAT, n=N)
    with_float = check_sanity(
        CheckedModel(robust, images[1], THREAT, n=N, float_model=robust, outcomes=outcomes), CHEAP_CHECKS
    )
    assert list(with_float.measured) == [one.name for one in CHEAP_CHECKS]
    assert with_float.flags == []
    alone = check_sanity(CheckedModel(robust, images[1], THREAT, n=N), CHEAP_CHECKS)
    asked_of_more = ("turned-gradient", "weak-attacks", "last-step")  # a float model, an evaluation
    assert alone.measured == {k: v for k, v in with_float.measured.items() if k not in asked_of_more}
    liar = check_sanity(CheckedModel(LIARS["thermometer"][0](robust), images[1], THREAT, n=N), CHEAP_CHECKS)
    assert [flag.measured for flag in liar.flags] == [liar.measured["zero-gradient"]]


def test_a_check_measures_once(images: tuple[Images, Images]) -> None:
    calls: list[int] = []
    one = replace(SANITY_CHECKS[0], measure=lambda checked: calls.append(len(checked.y)) or 0.9)
    found = check_sanity(CheckedModel(nn.Flatten(), images[1], THREAT, n=3), [one])
    assert calls == [3]
    assert found.measured == {one.name: 0.9}
    assert [(flag.name, flag.measured) for flag in found.flags] == [(one.name, 0.9)]


@pytest.mark.parametrize(
    ("name", "n", "most"),
    [
        ("earlier-wins", 100, 5),  # an honest ConvNeXt of 8 bits showed 3
        ("not-converged", 100, 3),  # an honest transformer with weights of 4 bits showed 2
        ("earlier-wins", 200, 7),
        ("square-wins", 60, 1),
        ("square-wins", 200, 2),
        ("not-converged", 10**4, 117),
    ],
)
def test_a_share_is_flagged_where_chance_would_not_make_it(name: str, n: int, most: int, images) -> None:
    check = next(one for one in SANITY_CHECKS if one.name == name)
    for broken in (most, most + 1):
        one = replace(check, measure=lambda _, k=broken: k / n, images=lambda _: n)
        flags = check_sanity(CheckedModel(nn.Flatten(), images[1], THREAT, n=3), [one]).flags
        assert bool(flags) == (broken > most)


def test_what_is_no_share_of_images_has_the_limit_that_is_stated(images: tuple[Images, Images]) -> None:
    """Noise of a thousandth of the logits' deviation is small, and noise."""
    noisy = Wrapped(nn.Flatten(), back=Do(lambda z: z + 1e-3 * z.std() * torch.randn_like(z)))
    assert _raised(CheckedModel(noisy, images[1], THREAT, n=N), {"random-logits"}) == {"random-logits"}


def test_what_is_no_number_is_a_flag(images: tuple[Images, Images]) -> None:
    one = replace(SANITY_CHECKS[0], measure=lambda _: float("nan"))
    assert len(check_sanity(CheckedModel(nn.Flatten(), images[1], THREAT, n=3), [one]).flags) == 1


def test_every_flag_has_its_paragraph() -> None:
    text, _, of_files = FLAGS.read_text().partition("\n# Flags of a file\n")
    written = re.findall(r"^## (\S+)$", text, re.M)
    assert written == [one.name for one in SANITY_CHECKS]
    more = re.findall(r"^## (\S+)$", of_files, re.M)
    assert written + more == list(dict.fromkeys([*written, *(one.name for one in OF_FILES)]))
    sections = re.split(r"^## \S+$", text, flags=re.M)[1:]
    assert all(len(section.split()) > 15 for section in sections)
    cheap = [one.name for one in SANITY_CHECKS if one.cheap]
    assert cheap == [name for name, text in zip(written, sections, strict=True) if "Cheap" in text]


def test_checking_leaves_the_network_as_it_was(robust: nn.Module, images: tuple[Images, Images]) -> None:
    before = {name: value.clone() for name, value in robust.state_dict().items()}
    check_sanity(CheckedModel(robust, images[1], THREAT, n=8), CHEAP_CHECKS)
    assert all(torch.equal(before[name], value) for name, value in robust.state_dict().items())
    assert all(parameter.requires_grad for parameter in robust.parameters())
