"""Writing an artifact with its regression suite: whole, or not at all."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from .. import __version__, devices, runtime
from ..attacks import Attack, Scene
from ..data import Dataset, Given, Images, as_images, choose, to_unit
from ..errors import ExportError, RunError
from ..evaluation import predict
from ..evaluation.cascade import TOGETHER, Shown, announce, is_strong
from ..onnx_module.file import opset_of
from ..progress import Bar, bar
from ..quant import bits_per_layer
from ..storage import described, write_json
from ..threat import Threat
from .parity import check_parity
from .sessions import present_provider
from .target import Target
from .write import INPUT, INPUTS, OUTPUT, Written, check_ops, written

Arrays = dict[str, npt.NDArray[Any]]
AS_IT_CAME = "clean"  # instead of a part of a cascade, as `Strongest.names` has it


@devices.exact_products()
def make_suite(
    model: nn.Module,
    images: Given,
    *,
    attacks: Sequence[Attack],
    threat: Threat,
    seed: int,
    float_model: nn.Module | None = None,
    batch_size: int = 250,
) -> Arrays:
    """Clean images and adversarial ones made on `model`, in 8 bits, with what the model says of each.

    Returns arrays: "y" int64 (n,), and for "clean" and every attack "x.NAME" uint8 (n, c, h, w) and
    "label.NAME" int64 (n,); "logits.clean" float32 (n, classes). Rounding stays inside the threat, and labels
    are those of the rounded images. Of `strong` the point where a wrong class leads by most, of images that are wrong
    when clean the image itself; "found_by.NAME" uint8 (n, w) names the part that found it, in ASCII behind which are
    zeros ("clean": the image as it came). images: as `data.as_images` takes them. float_model: what transfer attacks
    take gradients from.
    Raises ExportError for an attack that the threat does not bound, or whose images are the clean ones.
    """
    check_suite_attacks(attacks)
    images = as_images(images)
    images = Images(images.x.cpu().contiguous(), images.y.cpu())
    model.eval()
    scene = Scene(model, threat, float_model, seed, settle=partial(in_bytes, threat=threat), batch_size=batch_size)
    arrays = {"y": images.y.numpy(), **_clean(scene, images)}
    right = torch.from_numpy(arrays["label.clean"] == arrays["y"])
    with bar("suite", len(attacks) * len(images), "images") as moving:
        for attack in attacks:
            moving.describe(f"suite {attack.name}")
            if is_strong(attack):
                pixels, arrays[f"found_by.{attack.name}"] = _strongest(scene, images, attack, right, moving)
            else:
                pixels = _perturbed(scene, images, attack, moving)
            arrays[f"x.{attack.name}"] = pixels.numpy()
            arrays[f"label.{attack.name}"] = _labels(scene, Images(pixels, images.y))
            _check_changed(arrays, attack.name, threat)
    return arrays


def _clean(scene: Scene, images: Images) -> Arrays:
    with torch.no_grad():
        logits = torch.cat([scene.model(x) for x, _ in _batches(scene, images)])
    return {
        "x.clean": images.x.numpy(),
        "label.clean": _labels(scene, images),
        "logits.clean": logits.cpu().contiguous().numpy(),
    }


def _batches(scene: Scene, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """x in [0,1] and y where the network is."""
    device = devices.device_of(scene.model)
    return ((to_unit(one.x, device, channels_last=True), one.y.to(device)) for one in images.batches(scene.batch_size))


def _labels(scene: Scene, images: Images) -> npt.NDArray[Any]:
    return torch.cat([predict(scene.model, x) for x, _ in _batches(scene, images)]).cpu().numpy()


def _perturbed(scene: Scene, images: Images, attack: Attack, moving: Bar) -> Tensor:
    """Adversarial pixels (n, c, h, w) of all images, batch by batch."""
    parts = []
    for index, (x, y) in enumerate(_batches(scene, images)):
        x_adv = attack.perturb(scene, x, y, devices.generator(scene.seed, "suite", attack.name, index))
        parts.append(to_pixels(x_adv, x, scene.threat).cpu().contiguous())
        moving.advance(len(y))
    return torch.cat(parts)


def _strongest(
    scene: Scene, images: Images, attack: Attack, right: Tensor, moving: Bar
) -> tuple[Tensor, npt.NDArray[np.uint8]]:
    """Pixels of a cascade on the images that are right, and of every image the part that found it."""
    pixels, names, todo = images.x.clone(), [AS_IT_CAME] * len(images), right.nonzero()[:, 0]
    if not len(todo):
        raise ExportError(
            f"expected a network that is right on some of {len(images)} images, got none to attack by {attack.name}; "
            "train it longer, or mend the labels"
        )
    announce(replace(attack, name=f"suite {attack.name}"), scene, images.take(todo[: scene.batch_size]), len(todo))
    scene, device = replace(scene, memory=Shown(moving)), devices.device_of(scene.model)
    for index, which in enumerate(torch.split(todo, TOGETHER * scene.batch_size)):
        x, y = to_unit(images.x[which], device, channels_last=True), images.y[which].to(device)
        found = attack.strongest(scene, x, y, devices.generator(scene.seed, "suite", attack.name, index))
        pixels[which] = to_pixels(found.x, x, scene.threat).cpu()
        for place, name in zip(which.tolist(), found.names(), strict=True):
            names[place] = name
        moving.advance(len(which))
    moving.advance(len(images) - len(todo))  # at last: what was not attacked says nothing of the time that is left
    return pixels, _name_rows(names)


def _name_rows(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Numbers, as all that a suite holds: `runtime.Artifact.found_by` reads them."""
    rows = np.array([name.encode("ascii") for name in names])
    return rows.view(np.uint8).reshape(len(names), -1)


def check_suite_attacks(attacks: Sequence[Attack]) -> None:
    """Raises ExportError for an attack whose images a check could not tell from images of any other."""
    for unbounded in (attack for attack in attacks if not attack.bounded):
        raise ExportError(
            f"expected attacks within the threat in export.suite_attacks, got {unbounded.name}; leave it out there"
        )


def _check_changed(arrays: Arrays, name: str, threat: Threat) -> None:
    if np.array_equal(arrays[f"x.{name}"], arrays["x.clean"]):
        raise ExportError(
            f"expected images of {name} that differ from the clean ones in 8 bits, got the same; raise threat.eps, "
            f"{threat.eps:g} in {threat.norm}, or leave {name} out of export.suite_attacks"
        )


def in_bytes(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """The point that is judged of x_adv where images are bytes: inside the threat, in [0,1]."""
    return to_unit(to_pixels(threat.project(x_adv, x), x, threat), x.device)


def to_pixels(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """x_adv in [0,1] as uint8, rounded so that the change of the image stays within the threat, exactly.

    x: the clean images, on the 8-bit grid; x_adv: within the threat. In l-inf pixels are rounded to the nearest step;
    in l2 as many away from x as its length allows, those that were nearest to it first.
    """
    clean = (x * 255).round()
    change = x_adv * 255 - clean
    if threat.norm == "linf":
        reach = int(threat.eps * 255 + 1e-4)  # whole steps of a pixel inside the ball
        change = change.round().clamp(-reach, reach)
    else:
        change = _rounded_l2(change, threat.eps * 255)
    return (clean + change).clamp(0, 255).to(torch.uint8)


def _rounded_l2(change: Tensor, radius: float) -> Tensor:
    """Changes (n, c, h, w) in steps of a pixel as whole ones, about as long as they were and never above the radius.

    Cut towards zero, a change would lose half a step a pixel: a sixth of its length at eps 0.5 on 32 × 32 × 3 pixels.
    """
    flat = change.double().flatten(1)
    low = flat.abs().floor()
    spare = flat.square().sum(1).add(0.5).clamp_max(radius**2 + 1e-6).floor() - low.square().sum(1)
    left, order = (flat.abs() - low).sort(dim=1, descending=True)
    cost = (2 * low + 1).gather(1, order).cumsum(1)  # in squared length
    up = ((cost <= spare[:, None]) & (left > 1e-4)).double()  # below it lies the noise of float32
    return ((low + torch.zeros_like(low).scatter(1, order, up)) * flat.sign()).view_as(change).float()


def suite_bytes(arrays: Arrays) -> bytes:
    """The arrays as a compressed .npz without pickles."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def suite_accuracy(arrays: Arrays) -> dict[str, float]:
    """Accuracy of the torch network on each set of the suite."""
    names = [name.removeprefix("label.") for name in arrays if name.startswith("label.")]
    return {name: float((arrays[f"label.{name}"] == arrays["y"]).mean()) for name in names}


def checks(provider: str) -> dict[str, bytes]:
    """Files by which an artifact checks itself: verify.py, and, of what onnxruntime runs, the same in JavaScript."""
    found = {"verify.py": Path(runtime.__file__).read_bytes()}
    names = () if provider in (*runtime.LITERT, runtime.OPENVINO) else VERIFIERS
    return found | {name: (JAVASCRIPT / name).read_bytes() for name in names}


PARITY_IMAGES = 1000
JAVASCRIPT = Path(__file__).parent / "javascript"  # the same check in Node and browsers
VERIFIERS = tuple(sorted(path.name for path in JAVASCRIPT.iterdir() if path.name.startswith("verify")))
FILES = ("model.onnx", "model.tflite", "suite.npz", "verify.py", *VERIFIERS, "manifest.json")


@dataclass(frozen=True)
class Contents:
    """What goes into an artifact besides the graph.

    name: of the artifact. bits: 32 or the width. recipe: resolved. suite: from `make_suite`. before: metrics
    of the torch network, as its evaluation gives them. input: one of `INPUTS`.
    """

    name: str
    bits: int
    seed: int
    threat: Threat
    recipe: Mapping[str, Any]
    suite: Arrays
    before: Mapping[str, Any]
    input: str = INPUTS[0]


NO_PARITY = "none"  # in a manifest: no torch network is known that the file could be compared with


@dataclass(frozen=True)
class GivenFile:
    """Somebody's ONNX file as it is stored; of a torch network that it came from nothing is known.

    data: the bytes of model.onnx. input: of the manifest. output: the name of the logits, of which there are `classes`.
    bits_per_layer: widths of its weights. source: of the manifest: name and digest of the file as it came, and what was
    changed.
    """

    data: bytes
    input: dict[str, Any]
    output: str
    classes: int
    bits_per_layer: dict[str, int]
    source: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def bits(self) -> int:
        """The least width of any weight; 32 for a float network."""
        return min(self.bits_per_layer.values(), default=32)


def write_artifact(
    folder: Path,
    model: nn.Module | GivenFile,
    dataset: Dataset,
    target: Target,
    contents: Contents,
    *,
    ours: bool = False,
) -> None:
    """Export a network with its suite, manifest and verifier into `folder`, replacing the artifact there.

    model: or somebody's file, which is stored as it is. ours: the folder is the toolkit's own, whose artifact is
    replaced damaged or not. Raises ExportError if the graph is not what the target asks for, RunError if the folder
    holds anything else; what was there then stands.
    """
    expect_replaceable(folder, ours)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".artifact.") as scratch:
            whole = Path(scratch) / "artifact"
            whole.mkdir()
            _fill(whole, model, dataset, target, contents)
            if folder.exists():
                folder.rename(Path(scratch) / "before")
            whole.rename(folder)
    except OSError as error:
        raise RunError(f"expected a writable place for {folder}, got: {error}; choose another --out") from error


def expect_replaceable(folder: Path, ours: bool) -> None:
    """Raises RunError for a folder with anything but an artifact, which nothing here may delete."""
    if not folder.exists() and not folder.is_symlink():
        return
    expected = f"expected no folder or an artifact alone at {folder}"
    if folder.is_symlink() or not folder.is_dir():
        raise RunError(f"{expected}, got a file or a link; choose another --out")
    names = {path.name for path in folder.iterdir()}
    foreign = sorted(name for name in names if name not in FILES and not name.startswith("signature."))
    if foreign or (names and not ours and "manifest.json" not in names):
        raise RunError(f"{expected}, got {(foreign or sorted(names))[0]} in it; move it away, or choose another --out")


def _fill(folder: Path, model: nn.Module | GivenFile, dataset: Dataset, target: Target, contents: Contents) -> None:
    images = choose(dataset.test, PARITY_IMAGES, contents.seed)[0].x.float() / 255
    stated = {"recipe": str(contents.recipe.get("name", "")), "bits": str(contents.bits)}
    made = model if isinstance(model, GivenFile) else written(model, images[:1], target, stated, input=contents.input)
    (folder / "model.onnx").write_bytes(made.data)
    if isinstance(made, Written) and made.tflite:
        (folder / "model.tflite").write_bytes(made.tflite)
    (folder / "suite.npz").write_bytes(suite_bytes(contents.suite))
    for name, data in checks(target.provider).items():
        (folder / name).write_bytes(data)
    manifest = _manifest(folder, dataset, target, contents) | _described(model, dataset, target, contents)
    path = folder / "manifest.json"
    write_json(path, manifest)
    if not target.executable:
        return
    if isinstance(made, Written):
        assert isinstance(model, nn.Module)
        if contents.bits < 32:
            check_ops(made.data, target, model)
        manifest["parity"] = check_parity(model, made.data, images, target, activations=made.activations).to_dict()
    artifact = runtime.Artifact.load(folder)
    session = artifact.session(present_provider(target))
    labels = {name: artifact.logits(artifact.suite[f"x.{name}"], session).argmax(1) for name in artifact.sets}
    if isinstance(made, GivenFile):
        _expect_repeated(artifact, labels, target)
    y = artifact.suite["y"]
    manifest["metrics"]["after"] = {name: float((found == y).mean()) for name, found in labels.items()}
    manifest["metrics"]["after_provider"] = present_provider(target)
    if isinstance(session, runtime.LiteRtSession):
        manifest["metrics"]["after_kernels"] = session.kernels
    write_json(path, manifest)


def _described(model: nn.Module | GivenFile, dataset: Dataset, target: Target, contents: Contents) -> dict[str, Any]:
    """What a manifest says of the graph: its ends, its widths, its format, and whose it is."""
    stated: dict[str, Any]
    if isinstance(model, GivenFile):
        stated = {"input": model.input, "output": {"name": model.output}, "bits_per_layer": model.bits_per_layer}
        return stated | {"target": _target(target, "given"), "source": model.source, "parity": NO_PARITY}
    stated = {"input": {"name": INPUT, **_input(contents.input, dataset.shape)}, "output": {"name": OUTPUT}}
    return stated | {"bits_per_layer": bits_per_layer(model), "target": _target(target, target.format)}


def _target(target: Target, form: str) -> dict[str, Any]:
    return {
        "name": target.name,
        "format": form,
        "provider": target.provider,
        "session_options": target.session.model_dump(),
    }


def _expect_repeated(artifact: runtime.Artifact, labels: Mapping[str, npt.NDArray[Any]], target: Target) -> None:
    """Raises ExportError for a file that labels its own suite otherwise a second time."""
    flips = float(np.mean([labels[name] != artifact.suite[f"label.{name}"] for name in labels]))
    if flips > target.limits.label_flips:
        raise ExportError(
            f"expected a file that labels images alike each time, got {flips:.2%} of other labels; export it in "
            "evaluation mode, without random numbers"
        )


def _manifest(folder: Path, dataset: Dataset, target: Target, contents: Contents) -> dict[str, Any]:
    # All files: a check refuses what is not listed.
    files = {path.name: described(path.read_bytes()) for path in sorted(folder.iterdir())}
    graph = onnx.load(str(folder / "model.onnx"))
    return {
        # Readers of version 1 know no names of parts; artifacts without them are theirs too.
        "schema_version": 2 if any(name.startswith("found_by.") for name in contents.suite) else 1,
        "producer": f"qrobust {__version__}",
        "name": contents.name,
        "files": files,
        "classes": list(dataset.classes),
        "bits": contents.bits,
        "opset": opset_of(graph),
        "threat": {"norm": contents.threat.norm, "eps": contents.threat.eps},
        "seed": contents.seed,
        "recipe": dict(contents.recipe),
        "data_fingerprint": dataset.fingerprint,
        "versions": devices.versions(),
        "metrics": {"before": dict(contents.before), "after": {}},
        "reference": suite_accuracy(contents.suite),
        "limits": target.limits.model_dump(),
        "statistics": {**target.statistics.model_dump(), "test": runtime.TEST},
        "square": target.square.model_dump(),
    }


def _input(kind: str, shape: tuple[int, ...]) -> dict[str, Any]:
    channels, height, width = shape
    if kind == "uint8-nhwc":
        return {"shape": [height, width, channels], "layout": "NHWC", "range": [0, 255], "dtype": "uint8"}
    return {"shape": [channels, height, width], "layout": "NCHW", "range": [0, 1], "dtype": "float32"}
