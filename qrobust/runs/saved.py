"""A network as one file, and back; also out of a run or an artifact. No code comes out of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import torch
from torch import fx, nn

from .. import __version__, devices, models, zoo
from ..deployed.model import open_deployed
from ..errors import CheckpointError, ModelError, shown
from ..models.registry import REGISTERED
from ..quant import STRAIGHT_THROUGH, Origin, QuantConfig, quantizers
from ..quant.graph import ORIGIN
from ..runtime import Artifact
from ..spectrum import FAT
from ..train.checkpoint import fill, read_network, save_network
from .folder import FLOAT, RunFolder
from .run import Run

OWN = "give the module that it was saved from: qrobust.load(path, model=...)"


def save(model: nn.Module, path: str | Path) -> None:
    """Write a network, float or quantised, to one file: safetensors with a JSON header, no pickle.

    model: from the registry (`models.build`), `quantize`, `fit`, or any module of one's own. The file holds the
    weights, the name and options of a registered network, the `QuantConfig` and the widths of a quantised one; of a
    module of one's own its weights alone, so that `load` must be given it. Raises ModelError for what is no network,
    or a float one behind FAT; RunError for a place that cannot be written.

    >>> import qrobust
    >>> from qrobust import models
    >>> net = models.build("resnet8", in_channels=1, classes=10)
    >>> qrobust.save(net, "resnet8.safetensors")
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a network (torch.nn.Module) to save, got {shown(model)}; pass fitted.model")
    origin = model.meta.get(ORIGIN) if isinstance(model, fx.GraphModule) else None
    if next(quantizers(model), None) is None and any(isinstance(module, FAT) for module in model.modules()):
        raise ModelError("expected a float network without FAT to save, got one; call qrobust.quant.fold_fat(model)")
    source = model if origin is None else origin.network
    described = {
        "producer": f"qrobust {__version__}",
        "network": vars(source).get(REGISTERED),
        "class": type(source).__name__,
        "config": None if origin is None else asdict(origin.config),
        "shape": None if origin is None else origin.shape,
        "details": Origin.details(model),
        "channels_last": any(one.dim() == 4 and not one.is_contiguous() for one in model.parameters()),
    }
    save_network(Path(path), model, described)


@dataclass(frozen=True)
class FromZoo:
    """A network of the zoo in eval mode, on the device: the torch network, and the float model it was made from."""

    model: nn.Module
    float_model: nn.Module
    entry: zoo.Entry

    def artifact(self, root: str | None = None) -> Artifact:
        """Its artifact, the suite rebuilt on the data set in the folder `root`, in memory: `zoo get` writes it.

        Raises DataError for a data set that is missing, or of other images.
        """
        with TemporaryDirectory() as folder:
            return zoo.get(self.entry, Path(folder) / self.entry.name, root)


@overload
def load(path: Path, *, model: nn.Module | None = None) -> nn.Module: ...


@overload
def load(path: str, *, model: nn.Module | None = None) -> Any: ...


def load(path: str | Path, *, model: nn.Module | None = None) -> nn.Module | FromZoo:
    """A network in eval mode, on the device, that gives the logits it gave when it was kept.

    path: a file that `save` wrote; a run's folder, whose float network is meant, or RUN/qm-N; an artifact or an ONNX
    file, as a module with gradients; "zoo:NAME", then `FromZoo`: .model, .float_model, .artifact(root). model: the
    module of one's own that a file of `save` is of: float, whatever was saved (it is quantised again as it was), or
    quantised alike. It gets the weights; no file names code to run.
    Raises CheckpointError for a damaged file, or one of another network; RunError for a folder that holds none.

    >>> import torch, qrobust
    >>> net = qrobust.load("resnet8.safetensors")  # which `save` wrote
    >>> net.training, net(torch.zeros(1, 1, 8, 8)).shape
    (False, torch.Size([1, 10]))
    """
    if str(path).startswith(zoo.PREFIX) and not Path(path).exists():
        return _from_zoo(str(path), model)
    place = Path(path)
    if place.is_dir() or place.suffix == ".onnx":
        if model is not None:
            raise ModelError(f"expected no model beside {place}, which holds its own, got one; leave it out")
        return _of_folder(place)
    return _of_file(place, model)


def _from_zoo(name: str, given: nn.Module | None) -> FromZoo:
    if given is not None:
        raise ModelError(f"expected no model beside {name}, which holds its own, got one; leave it out")
    entry = zoo.find(name)
    model, float_model = (_of_file(entry.folder / file, None) for file in (zoo.TORCH, zoo.FLOAT))
    return FromZoo(model, float_model, entry)


def _of_file(place: Path, model: nn.Module | None) -> nn.Module:
    described, tensors = read_network(place)
    try:
        made = _made(described, place, model)
    except (AttributeError, LookupError, ModelError, TypeError, ValueError) as error:
        raise CheckpointError(f"expected a network as qrobust.save describes it in {place}, got: {error}; "
                              "save it again, or " + OWN) from error  # fmt: skip
    fill(made, tensors, place, OWN)
    form = torch.channels_last if described.get("channels_last") is True else torch.preserve_format
    moved: nn.Module = made.to(devices.device(), memory_format=form)  # type: ignore[call-overload]
    return moved.eval()


def _of_folder(path: Path) -> nn.Module:
    if path.suffix == ".onnx" or (path / "manifest.json").is_file():
        return devices.on_device(open_deployed(path).gradient()).eval()
    files, bits = RunFolder.find(path)
    run = Run.open(files.path)
    return run.network(FLOAT if bits is None else run.expect_width(bits))


def _made(described: Mapping[str, Any], path: Path, model: nn.Module | None) -> nn.Module:
    """The network that a file describes, its weights still to be set."""
    details, config = _checked(described["details"]), described["config"]
    network = _registered(described, path) if model is None else model
    if config is not None and next(quantizers(network), None) is None:
        return Origin(network, QuantConfig(**config), _shape(described.get("shape"))).rebuild(details)
    if (found := Origin.details(network)) != details:
        raise ValueError(f"quantisers of {found['bits']} bits, not {details['bits']}")
    return network


def _shape(stated: object) -> tuple[int, ...] | None:
    """Of the images, which files of earlier versions leave out. Raises ValueError."""
    if stated is None:
        return None
    if not (
        isinstance(stated, list) and len(stated) == 3 and all(type(one) is int and 0 < one < 10_000 for one in stated)
    ):
        raise ValueError(f"images of shape {shown(stated)}")
    return tuple(stated)


def _registered(described: Mapping[str, Any], path: Path) -> nn.Module:
    stated = described["network"]
    if stated is None:
        raise CheckpointError(f"expected a registered network in {path}, got a {shown(described['class'])}; {OWN}")
    if stated["name"] not in models.names():  # whatever else builds networks runs code that a user names
        raise CheckpointError(f"expected a registered network in {path}, got {shown(stated['name'])}; {OWN}")
    return models.build(**stated)


def _checked(details: Mapping[str, Any]) -> dict[str, Any]:
    """Details out of a file, if they are such as `Origin.details` gives. Raises ValueError."""
    bits, backward, folded = details["bits"], details["backward"], details["folded"]
    whole = all(type(width) is int and 2 <= width <= 8 for width in bits) and type(folded) is bool
    if not (whole and all(one in ("clipped", *STRAIGHT_THROUGH) for one in backward)):
        raise ValueError(f"details {shown(dict(details))}")
    return {"bits": bits, "backward": backward, "folded": folded}
