"""What a run would be refused for after hours of training, said in seconds before its first epoch.

Files depend on a network's structure alone, but for the values of its weights: what an export would refuse shows here.

recipe and target ─ folder ─ images ─ every width's untrained network, quantised, written and loaded ─ disk
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from .. import data, devices, distributed, quant
from ..attacks import Attack, named
from ..attacks.registry import TRANSFER
from ..data import Dataset, Images
from ..deployed.model import as_floats
from ..errors import DataError, ExportError, GraphError, ModelError, QrobustError, RecipeError, RunError
from ..evaluation.accuracy import check_logits
from ..export.artifact import check_suite_attacks
from ..export.sessions import open_session, present_provider
from ..export.target import Target
from ..export.write import INPUT, check_ops, lower
from ..onnx_module import load_onnx
from ..progress import bar
from ..recipe import Recipe
from ..runtime import MAX_FILE_BYTES, MAX_PIXELS, MAX_SUITE_BYTES, ArtifactError, images_needed
from ..spectrum import low_pass
from ..threat import Threat
from ..train.listeners import check_tensorboard
from ..train.methods import class_weights

SEVERAL = 4  # images that go through


def rehearse(model: nn.Module, images: Images, target: Target, bits: int, *, input: str, attacked: bool) -> int:
    """The size in bytes of a network's file. Raises ModelError for one that does not suit the images, ExportError for
    one that cannot be written or that onnxruntime does not run, GraphError for a file that cannot be attacked, if it is
    to be.

    model: on the CPU, from `quantize` below 32 bits, its clips and biases placed here. input: as in `lower`.
    """
    some = images.take(torch.linspace(0, len(images) - 1, SEVERAL).long()).x.cpu()
    takes_bytes = input == "uint8-nhwc"
    _check_forward(model.eval(), data.to_unit(some, "cpu", channels_last=True))
    with tempfile.TemporaryDirectory() as folder, _of_width(bits):
        path = Path(folder) / "model.onnx"
        path.write_bytes(lower(model, data.to_unit(some, "cpu"), target, input=input))
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ExportError(
                f"expected a model.onnx of up to {MAX_FILE_BYTES} bytes, got {size}; take a smaller model"
            )
        if target.executable:
            _check_session(path, some, target, takes_bytes=takes_bytes)
            if isinstance(model, fx.GraphModule):
                check_ops(path, target, model)
            if attacked:
                _check_gradient(path, takes_bytes=takes_bytes)
    return size


def _check_forward(model: nn.Module, x: Tensor) -> None:
    try:
        if isinstance(model, fx.GraphModule):
            quant.calibrate(model, [x])
            quant.round_biases(model)
        with torch.no_grad():
            model(x)
    except QrobustError:
        raise
    except Exception as error:  # torch's errors share no base
        shape, reason = tuple(x.shape[1:]), str(error).splitlines()[0]
        raise ModelError(
            f"expected a network for images of {shape}, got: {reason}; choose another model.name"
        ) from error
    check_logits(model, x)


def _check_session(path: Path, some: Tensor, target: Target, *, takes_bytes: bool) -> None:
    pixels = some.permute(0, 2, 3, 1) if takes_bytes else data.to_unit(some, "cpu")
    session = open_session(path, target.session.graph_optimization_level, present_provider(target))
    session.run(None, {INPUT: np.ascontiguousarray(pixels.numpy())})


def _check_gradient(path: Path, *, takes_bytes: bool) -> None:
    try:
        load_onnx(as_floats(path.read_bytes()) if takes_bytes else path)
    except GraphError as error:
        reason = str(error).partition("; ")[0]
        raise GraphError(f"{reason}; choose another export.target, or remove the table attack") from error


@contextmanager
def _of_width(bits: int) -> Iterator[None]:
    """Errors say of which network they speak; those of onnxruntime become one line."""
    try:
        yield
    except (QrobustError, ArtifactError) as error:
        raise type(error)(f"QM-{bits}: {error}") from error
    except Exception as error:  # onnxruntime's share no base
        reason = str(error).splitlines()[0]
        raise ExportError(
            f"QM-{bits}: expected a file that onnxruntime runs, got: {reason}; choose another export.target"
        ) from error


FLOAT = 32
MOST_VALUES = 2**26  # of the images of one call that is timed: 256 MiB of floats
# What a width leaves, in units of its weights: state, momentum and best epoch, twice while they are replaced, and the
# weights themselves; with an average, its state and best epoch too.
COPIES, COPIES_WITH_AVERAGE = 7, 12


def preflight(
    recipe: Recipe,
    target: Target,
    folder: Path,
    *,
    dataset: Callable[[], Dataset],
    network: Callable[[int], nn.Module],
    widths: Sequence[int],
) -> None:
    """Raises the first error that a later stage of this run in this folder would end in; writes nothing.

    dataset, network: give the images, and a width's untrained network on the CPU; neither is asked before all that is
    known without it. widths: those still to be trained.
    """
    check_recipe(recipe, target)
    check_folder(folder)
    images = dataset()
    check_images(recipe, target, images)
    needed = 0
    # What is trained afterwards does not depend on what was rehearsed.
    with devices.own_randomness(), bar("rehearse", len(widths), "networks") as moving:
        for bits in widths:
            needed += _rehearse(recipe, target, images, network(bits), bits)
            moving.advance()
    check_space(folder, needed)


def check_provider(target: Target) -> None:
    """Raises ExportError unless this machine executes what is written for a target, to time and to check it."""
    if not target.executable or present_provider(target) != target.provider:
        raise ExportError(
            f"expected a target that can be executed here, got {target.name} ({target.provider}); train with "
            f"-o export.target=ort-cpu, then write for it by qrobust export RUN --target {target.name}"
        )


def check_recipe(recipe: Recipe, target: Target) -> None:
    """Raises RecipeError, RunError or ExportError for what is wrong whatever the images are."""
    if recipe.tensorboard:
        check_tensorboard()
    attacks = _attacks(recipe)
    if not attacks["export.suite_attacks"]:
        raise RecipeError("expected at least one attack in export.suite_attacks, got none; add strong")
    if all(one.family == TRANSFER or not one.bounded for one in attacks["evaluate.attacks"]):
        names = ", ".join(recipe.evaluate.attacks)  # a worst case without one would be the clean accuracy
        raise RecipeError(f"expected an attack on the network itself in evaluate.attacks, got {names}; add strong")
    for key in ("export.suite_attacks", "attack.attacks"):
        for one in attacks[key]:
            if one.family == TRANSFER:  # every run has the float network, which nothing transfers to
                raise RecipeError(
                    f"expected attacks that suit the float network in {key}, got {one.name}; leave it out"
                )
    check_suite_attacks(attacks["export.suite_attacks"])
    if recipe.threat.eps * 255 + 1e-4 < 1:
        raise RecipeError(
            f"expected threat.eps of 1/255 or more, one step of an 8-bit pixel, got {recipe.threat.eps:g}; raise it"
        )
    stored, evaluated = recipe.export.suite_n, recipe.evaluate.n
    if stored and evaluated and stored > evaluated:
        raise RecipeError(
            f"expected export.suite_n of at most {evaluated}, evaluate.n, got {stored}; lower it, or raise evaluate.n"
        )
    _check_power(recipe, target, recipe.data.test_size)


def check_folder(folder: Path) -> None:
    """Raises RunError unless files can be written there."""
    try:
        tempfile.TemporaryFile(dir=_existing(folder)).close()
    except OSError as error:
        raise RunError(f"expected a writable place for {folder}, got {error.strerror}; choose another --out") from error


def check_images(recipe: Recipe, target: Target, images: Dataset) -> None:
    """Raises DataError or RecipeError for images that do not go with a recipe, or into an artifact."""
    count = len(images.test)
    _check_classes(images)
    class_weights(recipe.train, images.train.y, len(images.classes))
    if recipe.train.low_pass is not None:
        low_pass(torch.zeros(1, *images.shape), recipe.train.low_pass)
    for key, wanted in (("evaluate.n", recipe.evaluate.n), ("export.suite_n", recipe.export.suite_n)):
        if wanted and wanted > count:
            raise DataError(f"expected {key} of at most {count}, all test images there are, got {wanted}; lower it")
    if recipe.quant is not None and recipe.quant.ptq is not None:
        from ..quant.posttraining import expect_images  # with brevitas, which takes seconds

        expect_images(min(recipe.quant.calibration, len(images.train)))
    stored = _suite_size(recipe, count) or count
    if recipe.attack and (recipe.attack.n or 0) > stored:
        raise RecipeError(f"expected attack.n of at most {stored}, the suite's images, got {recipe.attack.n}; lower it")
    _check_power(recipe, target, count)
    _check_sizes(recipe, images, stored)
    for key, schedule in (("train", recipe.train), ("quant", recipe.quant)):
        batch, world = min(schedule.batch_size, len(images.train)) if schedule else math.inf, distributed.world()
        if batch < world:
            raise RecipeError(
                f"expected {key}.batch_size of {world} or more, an image a process, got {batch}; start fewer processes"
            )


def check_space(folder: Path, needed: int) -> None:
    """Raises RunError where the disk has room for fewer bytes."""
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed:
        raise RunError(
            f"expected {needed / 1e6:,.0f} MB of free disk for checkpoints and artifacts in {folder}, got "
            f"{free / 1e6:,.0f} MB; make room, or choose another --out"
        )


def _rehearse(recipe: Recipe, target: Target, images: Dataset, model: nn.Module, bits: int) -> int:
    """Bytes that training and export of a width will leave; raises as `rehearse` does."""
    attacked = recipe.attack is not None
    size = rehearse(model, images.train, target, bits, input=recipe.export.input, attacked=attacked)
    schedule = recipe.train if bits == FLOAT else recipe.quant
    copies = COPIES_WITH_AVERAGE if schedule and schedule.average else COPIES
    copies += 2 if schedule and schedule.optimizer == "adamw" else 0  # its second moments
    weights = sum(value.nbytes for value in model.state_dict().values())
    stored = _suite_size(recipe, len(images.test)) or 0
    return int(copies * weights + size + _suite_bytes(recipe, images, stored))


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _attacks(recipe: Recipe) -> dict[str, list[Attack]]:
    """By key. Raises RecipeError for what is no attack within the threat, and names the key."""
    threat = Threat(recipe.threat.norm, recipe.threat.eps)
    keys = {"evaluate.attacks": recipe.evaluate.attacks, "export.suite_attacks": recipe.export.suite_attacks}
    keys["attack.attacks"] = recipe.attack.attacks if recipe.attack else ()
    found = {}
    for key, names in keys.items():
        with _named_after(key):
            found[key] = [named(name, threat) for name in names]
            _check_names(names)
    return found


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"expected each attack once, got {name} more often; remove the repetition")
        if not name.isprintable():  # settings may end in spaces of any kind
            raise RecipeError(f"expected a printable name, got {name!r}; remove what is not")


@contextmanager
def _named_after(key: str) -> Iterator[None]:
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{key}: {error}") from error


def _check_classes(images: Dataset) -> None:
    if len(images.classes) < 2:
        raise DataError(f"expected two classes or more, got {len(images.classes)}; give images of another")
    for name in images.classes:
        if not name.isprintable():
            raise DataError(f"expected printable names of classes, got {name!r}; rename it")
    counts = torch.bincount(images.train.y.cpu(), minlength=len(images.classes))
    if missing := [name for name, count in zip(images.classes, counts.tolist(), strict=True) if not count]:
        raise DataError(
            f"expected training images of every class, got none of {missing[0]!r} in {len(images.train)}; add some, "
            "raise data.train_size, or leave the class out"
        )


def _suite_size(recipe: Recipe, available: int | None) -> int | None:
    """Images of the suite; None where the data decides and are not known."""
    return recipe.export.suite_n or recipe.evaluate.n or available


def _check_power(recipe: Recipe, target: Target, available: int | None) -> None:
    """Raises RecipeError for a suite on which the tests of a check miss the drop that the target wants detected.

    What is asked is what the check of the run itself asks if no image is gained; a check against a baseline tests clean
    images and Square too, and there as many may be gained as labels may flip.
    """
    stored, stated, limits = _suite_size(recipe, available), target.statistics, target.limits
    drop, attacks = stated.detected_drop, len(recipe.export.suite_attacks)
    needed = images_needed(drop, limits.robust_drop, 0.0, stated.alpha / attacks, stated.power)
    if stored is None or stored >= needed or not target.executable:
        return
    most, gained = max(limits.accuracy_drop, limits.robust_drop), limits.label_flips
    safe = images_needed(drop, most, gained, stated.alpha / (attacks + 2), stated.power)
    sizes = {"export.suite_n": recipe.export.suite_n, "evaluate.n": recipe.evaluate.n}
    sizes["data.test_size"] = recipe.data.test_size
    keys = [key for key, size in sizes.items() if size is not None and size < needed]
    remedy = f"set {' and '.join(keys)} to {needed} or more" if keys else f"give {needed} test images or more"
    raise RecipeError(
        f"expected {needed} images in the suite, for {target.name} to detect a drop of {drop:.3g} under {attacks} "
        f"attack{'s' * (attacks > 1)}, got {stored}; {remedy} ({safe} for checks against a baseline), or raise the "
        "target's statistics.detected_drop"
    )


def _check_sizes(recipe: Recipe, images: Dataset, stored: int) -> None:
    pixels, one = math.prod(images.shape), _suite_bytes(recipe, images, 1)
    if pixels > MAX_PIXELS:
        raise DataError(f"expected images of at most {MAX_PIXELS} values, got {images.shape}; give smaller ones")
    if one * stored > MAX_SUITE_BYTES:
        raise RecipeError(
            f"expected a suite of at most {MAX_SUITE_BYTES} bytes, got {one * stored} of {stored} images; set "
            f"export.suite_n to {MAX_SUITE_BYTES // one} or fewer"
        )
    if (largest := max(recipe.bench.batches)) * pixels > MOST_VALUES:
        raise RecipeError(
            f"expected bench.batches of up to {MOST_VALUES // pixels} images of {images.shape}, got {largest}; lower it"
        )


def _suite_bytes(recipe: Recipe, images: Dataset, n: int) -> int:
    """At most: images and labels of every set, the true labels, the logits, and a little for names."""
    sets = 1 + len(recipe.export.suite_attacks)
    return n * (sets * (math.prod(images.shape) + 8) + 8 + 4 * len(images.classes) + 256)
