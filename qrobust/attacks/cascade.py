"""The attack `strong`: a cascade of parts on the images that are still right, cheap ones first.

best-point APGD ─▶ at the classes that a linear look says are near ─▶ restarts, backward forms in turns ─▶ Square from
where they ended. After each part the network itself judges, in float32 and unfolded; of every image the point stays
where a wrong class led by most, and the name of the part that found it. A cascade may stop after any part and go on
with the same result: every part has a random stream of its own, and `Memory` keeps what was found.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor, nn

from .. import devices
from ..models.inference import frozen, input_gradient, ordinary
from ..objectives import margin
from ..straight_through import InForm, activation_quantizers
from ..threat import Threat
from .apgd import ApgdConfig, Found, apgd, linear_targets
from .auto import square_from
from .gradient import check_images, check_output
from .plan import SQUARE, Part, StrongConfig, most_passes, plan

REDRAWN = 0.3  # share of its pixels that a start near the best point draws anew
OWN, OTHERS = "own", ("soft", "leaky")  # the form that a network was trained with, and those that take turns with it
CLEAN = -1  # instead of the number of a part: the image as it came
STATE = ("best", "last", "lead", "broken", "found_by", "targets")  # tensors of a row an image
DONE, IMAGES = "done", "images"  # besides them: the parts that are done as JSON, and what tells images apart
Arrays = dict[str, npt.NDArray[Any]]
Settle = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PartResult:
    """What a part took and found. tried, broken: images. Passes count each image by itself; seconds are wall time."""

    part: str
    tried: int
    broken: int
    forward_passes: int
    gradient_passes: int
    seconds: float


@dataclass(frozen=True)
class Strongest:
    """x: of each image the point (n, c, h, w) where a wrong class led by most. lead: by how much, (n,). broken: mask
    (n,) of those that the network gets wrong. found_by: (n,), which of `parts` found it; -1 for the image as it came.
    """

    x: Tensor
    lead: Tensor
    broken: Tensor
    found_by: Tensor
    parts: tuple[PartResult, ...]

    @property
    def untouched(self) -> Tensor:
        """Mask (n,) of the images whose point is the image as it came."""
        return self.found_by == CLEAN

    def names(self) -> list[str]:
        """Of each image the part that found its point; "clean" for the image as it came."""
        return ["clean" if number == CLEAN else self.parts[number].part for number in self.found_by.tolist()]


class Memory(Protocol):
    """Keeps a cascade between its parts."""

    def load(self) -> Arrays:
        """What `save` was given last; empty at first."""

    def save(self, arrays: Arrays, parts: Sequence[PartResult]) -> None:
        """After each part."""


def strong(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    config: StrongConfig = StrongConfig(),
    forms: Mapping[str, nn.Module] | None = None,
    generator: Generator | None = None,
    memory: Memory | None = None,
    settle: Settle | None = None,
) -> Strongest:
    """The cascade on a network, float or quantised, of any number of classes.

    model: judges, and may have no gradient. x: images (n, c, h, w) in [0,1]. y: labels (n,). forms: networks of the
    same logits with gradients, by backward form, the first the main one; None for those of the model itself, which are
    several where it has quantisers of ours. memory: what a stopped cascade goes on from. settle: from points and images
    to points that the network can be given, where that is not every point of the threat; verdicts are on these.
    In a float network of which Square broke images that gradients could not, the turns for rounded ones follow.

    >>> from qrobust.threat import Threat
    >>> x, y = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> found = strong(net, x, y, threat=Threat("linf", 8 / 255), config=StrongConfig(quick=True))
    >>> found.x.shape, len(found.names())
    (torch.Size([4, 3, 2, 2]), 4)
    """
    check_images(x)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.inference_mode(False), devices.exact_products():
        x, y = ordinary(x, y)
        cascade = _Cascade(model, x, y, threat, config, forms or own_forms(model), settle or threat.project)
        if not len(x):
            return cascade.result()
        cascade.start(memory)
        while (part := cascade.next_part()) is not None and not cascade.broken.all():
            cascade.run(part, devices.generator(seed, len(cascade.done)))
            if memory is not None:
                memory.save(cascade.to_arrays(), cascade.done)
        return cascade.result()


def own_forms(model: nn.Module) -> dict[str, nn.Module]:
    """A network in its own backward form, and in the others if it has activation quantisers."""
    others = OTHERS if activation_quantizers(model) else ()
    return {OWN: model, **{form: InForm(model, form) for form in others}}


class _Cascade:
    """What is known of n images, and the parts that are done."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        config: StrongConfig,
        forms: Mapping[str, nn.Module],
        settle: Settle,
    ) -> None:
        self.model, self.x, self.y, self.threat, self.config, self.forms = model, x, y, threat, config, forms
        self.settle = settle
        self.best, self.last = x.clone(), x.clone()
        self.lead = torch.full((len(x),), -torch.inf, device=x.device)
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.found_by = torch.full((len(x),), CLEAN, device=x.device)
        self.targets = torch.zeros(len(x), 0, dtype=torch.long, device=x.device)
        self.done: list[PartResult] = []
        self.parts: tuple[Part, ...] = ()

    def start(self, memory: Memory | None) -> None:
        """The images as they are, or what a memory of the same images and parts holds of them."""
        self.lead, self.broken, classes = self._judge(self.x, self.y)
        self.parts = plan(self.config, forms=len(self.forms), classes=classes)
        self.more = plan(StrongConfig(), forms=2, classes=classes)[1:]
        if memory is not None:
            self._restore(memory.load())

    def next_part(self) -> Part | None:
        """The one that follows; None at the end of the plan."""
        if len(self.done) == len(self.parts) and self._is_masked():
            self.parts += self.more
        return self.parts[len(self.done)] if len(self.done) < len(self.parts) else None

    def _is_masked(self) -> bool:
        """Whether the plan of a float network ended with a find of Square's, which leads where gradients do not."""
        whole = not (self.config.quick or self.config.budget) and len(self.forms) == 1
        return whole and self.parts[-1].start == "best" and self.done[-1].broken > 0

    def run(self, part: Part, generator: Generator) -> None:
        """A part, on the images that are still right."""
        started, left = time.perf_counter(), (~self.broken).nonzero()[:, 0]
        forwards = gradients = 0
        if part.rank is not None and not self.targets.shape[1]:
            forwards, gradients = self._look_along_targets(left)
        begin = self._begin(part, left, generator)
        for rows in torch.split(torch.arange(len(left)), self.config.batch_size):
            found = self._attack(part, left[rows], begin[rows], generator)
            self._take(left[rows], found.x)
            forwards, gradients = forwards + found.forwards + len(rows), gradients + found.gradients
        name, broken = part.name([*self.forms]), int(self.broken[left].sum())
        seconds = time.perf_counter() - started
        self.done.append(PartResult(name, len(left), broken, forwards, gradients, round(seconds, 3)))

    def _begin(self, part: Part, left: Tensor, generator: Generator) -> Tensor:
        """Where a part starts at these images."""
        x, best = self.x[left], self.best[left]
        if part.start not in ("random", "near"):
            return {"image": x, "best": best, "last": self.last[left]}[part.start]
        drawn = self.threat.random_start(x, generator)
        if part.start == "random":
            return drawn
        anew = torch.rand(x.shape, generator=generator).to(x.device) < REDRAWN
        return self.threat.project(torch.where(anew, drawn, best), x)

    def _attack(self, part: Part, which: Tensor, start: Tensor, generator: Generator) -> Found:
        x, y, threat = self.x[which], self.y[which], self.threat
        if part.loss == SQUARE:
            with frozen(self.model):
                return square_from(
                    self.model, x, y, threat=threat, queries=part.steps, start=start, generator=generator
                )
        network = self.forms[part.form_of([*self.forms])]
        target = None if part.rank is None else self.targets[which, part.rank]
        with _ready(network):
            config = ApgdConfig(part.steps, part.loss)
            return apgd(network, x, y, threat=threat, config=config, start=start, target=target)

    def _look_along_targets(self, left: Tensor) -> tuple[int, int]:
        """The order of wrong classes, and the passes that it took."""
        network, found = next(iter(self.forms.values())), []
        with _ready(network):
            for which in torch.split(left, self.config.batch_size):
                found.append(linear_targets(network, self.x[which], self.y[which], threat=self.threat))
        order = torch.cat(found)
        self.targets = torch.zeros(len(self.x), order.shape[1], dtype=torch.long, device=self.x.device)
        self.targets[left] = order
        return len(left), order.numel()

    def _take(self, which: Tensor, found: Tensor) -> None:
        """What a part found, as the network judges it: a point that leads by more, or that is wrong at last."""
        found = self.settle(found, self.x[which])
        lead, broken, _ = self._judge(found, self.y[which])
        better = (lead > self.lead[which]) | broken
        at = which[better]
        self.last[which] = found
        self.best[at], self.lead[at], self.found_by[at] = found[better], lead[better], len(self.done)
        self.broken[which] |= broken

    @torch.no_grad()
    def _judge(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Lead of a wrong class and whether the label is wrong, (n,) each, and the number of classes."""
        with frozen(self.model, fold=False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            parts = [torch.split(one, self.config.batch_size) for one in (x, y)]
            logits = [self.model(images) for images in parts[0]]
        for rows, labels in zip(logits, parts[1], strict=True):
            check_output(rows, labels)
        whole = torch.cat(logits).float()
        return margin(whole, y), whole.argmax(1) != y, whole.shape[1]

    def result(self) -> Strongest:
        """Of each image the best point."""
        return Strongest(self.best, self.lead, self.broken, self.found_by, tuple(self.done))

    def to_arrays(self) -> Arrays:
        """All that the next part needs."""
        text = json.dumps([asdict(one) for one in self.done])
        arrays = {name: _array(getattr(self, name)) for name in STATE}
        return {**arrays, DONE: np.array(text), IMAGES: np.array(self._fingerprint())}

    def _fingerprint(self) -> str:
        state = hashlib.sha256(_array(self.y).tobytes())
        state.update(_array(self.x).tobytes())
        return state.hexdigest()

    def _restore(self, arrays: Arrays) -> None:
        """Go on from these, if they are of the same images and parts; else from the beginning."""
        if not {*STATE, DONE, IMAGES} <= {*arrays} or str(arrays[IMAGES]) != self._fingerprint():
            return
        done = [PartResult(**one) for one in json.loads(str(arrays[DONE]))]
        names = [part.name([*self.forms]) for part in (*self.parts, *self.more)]
        if [one.part for one in done] != names[: len(done)]:
            return
        self.targets = self.targets.new_zeros(arrays["targets"].shape)
        for name in STATE:
            getattr(self, name).copy_(torch.from_numpy(arrays[name]))  # keeps type, device and order in memory
        self.done = done
        if len(done) > len(self.parts):
            self.parts += self.more


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """For numpy, which knows no bfloat16."""
    tensor = tensor.detach().contiguous().cpu()
    array: npt.NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array.copy()


def _ready(network: nn.Module) -> AbstractContextManager[None]:
    """`frozen`; what a form wraps then has its batch-norms folded too."""
    return frozen(network.model if isinstance(network, InForm) else network)


@dataclass(frozen=True)
class Expected:
    """What an image takes which nothing breaks: passes, and seconds on this machine."""

    forwards: int
    gradients: int
    seconds: float


def expect(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    config: StrongConfig = StrongConfig(),
    forms: Mapping[str, nn.Module] | None = None,
) -> Expected:
    """What `strong` will take of an image that holds, by the time of two passes of this batch; arguments as there.

    Of a float network in which the turns for rounded ones follow, it takes more.
    """
    forms = forms or own_forms(model)
    network = next(iter(forms.values()))
    with torch.inference_mode(False), devices.exact_products():
        x, y = ordinary(x, y)
        with frozen(model), torch.no_grad():
            classes = model(x).shape[1]
            forward = _timed(lambda: float(model(x).sum()))
        with _ready(network):
            step = _timed(lambda: _step(network, x, y))
    forwards, gradients = most_passes(plan(config, forms=len(forms), classes=classes), classes)
    seconds = gradients * step + max(forwards - gradients, 0) * forward
    return Expected(forwards, gradients, seconds / len(x))


def _step(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """A forward and a gradient pass, as APGD makes them."""
    point = x.clone().requires_grad_(True)
    return float(input_gradient(margin(network(point), y).sum(), point).sum())


def _timed(work: Callable[[], object]) -> float:
    """Seconds of a call, behind one that warms up; it must end with what waits for the device."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
