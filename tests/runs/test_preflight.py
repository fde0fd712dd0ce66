"""What a later stage would refuse is refused before the first epoch, by one line whose remedy works."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from qrobust import models, recipe, resources
from qrobust.data import Dataset, Images
from qrobust.data.sources.registry import height_width
from qrobust.errors import GraphError, QrobustError
from qrobust.export.target import Target, load_target
from qrobust.quant import quantize
from qrobust.recipe import Recipe
from qrobust.runs import preflight as module
from qrobust.runs.preflight import check_folder, check_images, check_provider, check_recipe, check_space, preflight
from qrobust.runtime import Artifact, check
from qrobust.train import listeners

from ..test_runtime import STATISTICS, suite_arrays, write

L2 = ("threat={norm = 'l2', eps = 0.5}",)
ALL = "evaluate.n=all"  # which no override can say where a recipe has a number
TEN = tuple("0123456789")
SMALL = ("evaluate.attacks=['pgd-5']", "export.suite_attacks=['pgd-5']", "attack.attacks=['pgd-5']", "attack.n=10")


def dataset(n: int = 300, side: int | tuple[int, int] = 8, classes: tuple[str, ...] = TEN) -> Dataset:
    x = torch.randint(256, (n, 1, *height_width(side)), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = Images(x, torch.arange(n) % len(classes))
    return Dataset("random", classes, part, part.take(slice(0, 0)), part, "0" * 64)


def network(bits: int) -> nn.Module:
    torch.manual_seed(0)
    model = models.build("resnet8", in_channels=1, classes=10)
    return model if bits == 32 else quantize(model, bits, calibration=None)


def settings(*overrides: str) -> Recipe:
    """The digits' recipe with few attacks and these overrides."""
    loaded = recipe.load("digits", [*SMALL, *(one for one in overrides if one != ALL)])
    everything = {"evaluate": loaded.evaluate.model_copy(update={"n": None})}
    return loaded.model_copy(update=everything) if ALL in overrides else loaded


def attempt(
    folder: Path,
    *overrides: str,
    images: Dataset | None = None,
    target: Target | None = None,
    network: Callable[[int], nn.Module] = network,
    widths: tuple[int, ...] = (),
) -> None:
    """`preflight` of these settings."""
    loaded = settings(*overrides)
    wanted = target or load_target(loaded.export.target)
    preflight(loaded, wanted, folder, dataset=lambda: images or dataset(), network=network, widths=widths)


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(QrobustError) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("more", [(), ("export.input=uint8-nhwc", *L2)], ids=["linf", "l2 on wide bytes"])
def test_a_sound_run_passes_and_leaves_nothing(tmp_path: Path, more: tuple[str, ...]) -> None:
    images = dataset(side=(12, 20) if more else 8)
    attempt(tmp_path / "new" / "run", *more, images=images, widths=(32, 4))
    assert not list(tmp_path.iterdir())


TRANSFERRED = "expected attacks that suit the float network in"
# overrides, then what is said of them, before images are read
REFUSALS = {
    ("evaluate.attacks=['pdg-5']",): "evaluate.attacks: expected an attack, got 'pdg-5'; did you mean 'pgd-20x5'?",
    ("export.suite_attacks=['fgms']",): "export.suite_attacks: expected an attack, got 'fgms'; did you mean 'fgsm'?",
    ("attack.attacks=['pgd-5:stesp=1']",): "attack.attacks: pgd-5:stesp=1: unknown setting 'stesp'; did you mean 'ste",
    ("evaluate.attacks=['fgsm', 'fgsm']",): "evaluate.attacks: expected each attack once, got fgsm more often; remove",
    ("export.suite_attacks=[]",): "expected at least one attack in export.suite_attacks, got none; add strong",
    ("export.suite_attacks=['fgsm', 'gn']",): "expected attacks within the threat in export.suite_attacks, got gn",
    ("export.suite_attacks=['cw-20']",): "expected attacks within the threat in export.suite_attacks, got cw-20",
    ("export.suite_attacks=['transfer-5']",): f"{TRANSFERRED} export.suite_attacks, got transfer-5; leave it out",
    ("attack.attacks=['transfer-5']",): f"{TRANSFERRED} attack.attacks, got transfer-5; leave it out",
    ("evaluate.attacks=['transfer-5', 'gn']",): (
        "expected an attack on the network itself in evaluate.attacks, got transfer-5, gn; add strong"
    ),
    ('attack.attacks=["pgd-5:step_size=1/255\\u001f"]',): "attack.attacks: expected a printable name, got 'pgd-5:step_",
    ("threat.eps=0",): "expected threat.eps of 1/255 or more, one step of an 8-bit pixel, got 0; raise it",
    ("evaluate.n=200", "export.suite_n=250"): "expected export.suite_n of at most 200, evaluate.n, got 250; lower",
    ("evaluate.n=60",): "expected 117 images in the suite, for ort-cpu to detect a drop of 0.1 under 1 attack",
    ("evaluate.n=130", "export.suite_attacks=['pgd-5', 'fgsm']"): "expected 143 images in the suite",
    ("data.test_size=60", ALL): "expected 117 images in the suite",
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "text"), REFUSALS.items(), ids=map(" ".join, REFUSALS))
def test_what_a_recipe_alone_shows(tmp_path: Path, overrides: tuple[str, ...], text: str) -> None:
    def unread() -> Dataset:
        raise AssertionError

    loaded, target = settings(*overrides), load_target("ort-cpu")
    said = refusal(lambda: preflight(loaded, target, tmp_path, dataset=unread, network=network, widths=(32,)))
    assert said.startswith(text)


def test_tensorboard_that_is_asked_for_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "find_spec", lambda name: None)
    attempt(tmp_path / "run", widths=(32,))
    said = refusal(lambda: attempt(tmp_path / "run", "tensorboard=true", widths=(32,)))
    assert 'pip install "qrobust[tensorboard]"' in said
    assert not list(tmp_path.iterdir())


WIDE = dataset(120, side=64)
# overrides, images, then what is said
OF_IMAGES = {
    "too many to evaluate": (("evaluate.n=301",), dataset(), "expected evaluate.n of at most 300, all test images the"),
    "too many to store": (
        (ALL, "export.suite_n=301"),
        dataset(),
        "expected export.suite_n of at most 300, all test images there are, got 301; lower it",
    ),
    "too many to attack": (
        (ALL, "evaluate.n=400", "attack.n=301"),
        dataset(),
        "expected attack.n of at most 300, the suite's images, got 301; lower it",
    ),
    "too few to tell": (
        (ALL,),
        dataset(60),
        "expected 117 images in the suite, for ort-cpu to detect a drop of 0.1 under 1 attack, got 60; give 117 "
        "test images or more (172 for checks against a baseline), or raise the target's statistics.detected_drop",
    ),
    "one class": ((), dataset(classes=("a",)), "expected two classes or more, got 1; give images of another"),
    "an unprintable class": (
        (),
        dataset(classes=("a", "b\x1b[2J")),
        "expected printable names of classes, got 'b\\x1b",
    ),
    "an empty class": (
        (),
        replace(dataset(), classes=(*TEN, "none")),
        "expected training images of every class, got none of 'none' in 300; add some, raise data.train_size, or leave",
    ),
    "weights of other classes": (
        ("train.class_weights=[1, 2]",),
        dataset(),
        "expected a number a class, 10, in train.class_weights, got 2; change it",
    ),
    "a huge batch": (
        ("bench.batches=[1, 65536]",),
        WIDE,
        "expected bench.batches of up to 16384 images of (1, 64, 64), ",
    ),
}


@pytest.mark.parametrize("name", OF_IMAGES)
def test_what_the_images_show(tmp_path: Path, name: str) -> None:
    overrides, images, text = OF_IMAGES[name]
    fitting = () if any("evaluate" in one for one in overrides) else (f"evaluate.n={len(images.test)}",)
    assert refusal(lambda: attempt(tmp_path, *fitting, *overrides, images=images)).startswith(text)


def test_a_filter_that_does_not_fit_the_images() -> None:
    loaded, target = settings(), load_target("ort-cpu")
    filtering = loaded.model_copy(update={"train": loaded.train.model_copy(update={"low_pass": 9})})
    said = refusal(lambda: check_images(filtering, target, dataset(side=(8, 20))))
    assert said == "expected a bandwidth in [1, 8], the side of the images, got 9; change it"
    check_images(filtering, target, dataset(side=(9, 20)))


def test_every_process_gets_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.distributed, "world", lambda: 4)
    said = refusal(lambda: attempt(tmp_path, "quant.batch_size=3"))
    assert said == "expected quant.batch_size of 4 or more, an image a process, got 3; start fewer processes"
    attempt(tmp_path, "quant.batch_size=4")


def test_what_no_runtime_executes_is_not_checked_and_needs_no_power(tmp_path: Path) -> None:
    attempt(tmp_path, "evaluate.n=10", target=load_target("qonnx"), widths=(4,))


def test_an_artifact_holds_no_larger_suite_or_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SUITE_BYTES", 100_000)
    said = refusal(lambda: attempt(tmp_path))
    most = re.fullmatch(
        r"expected a suite of at most 100000 bytes, got \d+ of 300 images; set export.suite_n to (\d+) .*", said
    )
    assert most is not None
    assert 117 < int(most[1]) < 300
    attempt(tmp_path, f"export.suite_n={most[1]}")
    monkeypatch.setattr(module, "MAX_PIXELS", 63)
    assert refusal(lambda: attempt(tmp_path)).startswith("expected images of at most 63 values, got (1, 8, 8)")


# images there are, overrides: each too few; the remedy is taken word for word
@pytest.mark.parametrize(
    ("available", "overrides"),
    [
        (300, ("evaluate.n=60",)),
        (300, ("export.suite_n=60",)),
        (120, ("evaluate.n=80", "export.suite_n=60")),
        (300, ("evaluate.n=60", "data.test_size=60")),
        (300, ("data.test_size=60", ALL)),
        (300, ("evaluate.n=60", "export.suite_attacks=['pgd-5', 'fgsm', 'apgd-ce']")),
    ],
)
def test_the_remedy_for_a_small_suite_works(tmp_path: Path, available: int, overrides: tuple[str, ...]) -> None:
    def images(chosen: tuple[str, ...]) -> Dataset:
        return dataset(min(available, settings(*chosen).data.test_size or available))

    said = refusal(lambda: attempt(tmp_path, *overrides, images=images(overrides)))
    found = re.search(r"; set ([\w. ]+) to (\d+) or more \(", said)
    assert found is not None, said
    mended = (*overrides, *(f"{key}={found[2]}" for key in found[1].split(" and ")))
    attempt(tmp_path, *mended, images=images(mended))
    fewer = (*overrides, *(f"{key}={int(found[2]) - 1}" for key in found[1].split(" and ")))
    assert "images in the suite" in refusal(lambda: attempt(tmp_path, *fewer, images=images(fewer)))


def test_what_it_asks_is_what_a_check_asks(tmp_path: Path) -> None:
    """On an artifact of one attack that export did not change."""
    report = check(Artifact.load(write(tmp_path / "one", suite_arrays())), queries=50)
    (asked,) = (verdict.needed for verdict in report.verdicts if verdict.needed)
    target = Target.model_validate(load_target("ort-cpu").model_dump() | {"statistics": STATISTICS})
    said = refusal(lambda: attempt(tmp_path, f"evaluate.n={asked - 1}", target=target))
    assert said.startswith(f"expected {asked} images in the suite")
    attempt(tmp_path, f"evaluate.n={asked}", target=target)


def test_the_other_remedy_for_a_small_suite_works(tmp_path: Path) -> None:
    target = load_target("ort-cpu")
    wider = target.model_copy(update={"statistics": target.statistics.model_copy(update={"detected_drop": 0.2})})
    attempt(tmp_path, "evaluate.n=60", target=wider)


# networks


def test_a_width_that_the_target_cannot_hold(tmp_path: Path) -> None:
    said = refusal(lambda: attempt(tmp_path, target=load_target("tensorrt"), widths=(32, 8)))
    assert said.startswith("QM-8: tensorrt: expected activations of 7 bits or fewer")


def test_an_operator_that_the_target_forbids_or_wants(tmp_path: Path) -> None:
    strict = load_target("ort-cpu").model_copy(update={"required_ops": ("QLinearMatMul",)})
    said = refusal(lambda: attempt(tmp_path, target=strict, widths=(4,)))
    assert said.startswith("QM-4: ort-cpu: expected 9 QLinearMatMul once optimised")


class Strided(nn.Sequential):
    """A network of a kernel larger than eight pixels."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def test_images_that_are_too_small_for_a_network(tmp_path: Path) -> None:
    said = refusal(lambda: attempt(tmp_path, network=lambda _: Strided(), widths=(32,)))
    assert said.startswith("expected a network for images of (1, 8, 8), got: ")
    assert said.endswith("; choose another model.name")


def test_an_output_that_is_no_logits(tmp_path: Path) -> None:
    soft = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))
    assert "expected logits, got probabilities" in refusal(
        lambda: attempt(tmp_path, network=lambda _: soft, widths=(32,))
    )


def test_a_file_that_cannot_be_attacked_where_the_recipe_attacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: Path) -> None:
        raise GraphError("expected operators that OnnxModule computes, got Det; covered: Abs")

    monkeypatch.setattr(module, "load_onnx", none)
    said = refusal(lambda: attempt(tmp_path, widths=(32,)))
    ending = "got Det; choose another export.target, or remove the table attack"
    assert said == f"QM-32: expected operators that OnnxModule computes, {ending}"
    loaded = settings().model_copy(update={"attack": None})
    preflight(loaded, load_target("ort-cpu"), tmp_path, dataset=dataset, network=network, widths=(32,))


# the machine


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal(lambda: check_folder(tmp_path / "file" / "run"))
    assert (
        said == f"expected a writable place for {tmp_path / 'file' / 'run'}, got Not a directory; choose another --out"
    )


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # type: ignore[attr-defined]
    said = refusal(lambda: attempt(tmp_path / "run", widths=(32, 4)))
    assert re.match(r"expected \d+ MB of free disk for checkpoints and artifacts in .*, got 1 MB; make room, or", said)
    check_space(tmp_path / "run", 10**6)


def test_a_target_of_another_machine_is_for_export_alone() -> None:
    said = refusal(lambda: check_provider(load_target("qonnx")))
    assert said.endswith("qrobust export RUN --target qonnx")
    check_provider(load_target("ort-cpu"))


@pytest.mark.parametrize("name", dict(resources.listing("recipes")))
def test_shipped_recipes_pass_what_needs_no_images(name: str) -> None:
    loaded = recipe.load(name)
    check_recipe(loaded, load_target(loaded.export.target))
