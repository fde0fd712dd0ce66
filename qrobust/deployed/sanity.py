"""Sanity checks of a number measured on a file: does the module lead where the session goes, however it is fused?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ..attacks import Attack
from ..attacks.registry import SQUARE, STRONG, TRANSFER, WITHOUT_GRADIENTS
from ..data import Images, to_unit
from ..evaluation import CHEAP_CHECKS, CheckedModel, Flag, Outcomes, check_sanity
from ..evaluation import SANITY_CHECKS as ALL
from ..evaluation.accuracy import predict
from ..evaluation.sanity import SanityCheck, SanityReport
from ..evaluation.sanity_measures import parts
from ..onnx_module.file import whole
from ..onnx_module.fusing import FAKE
from ..runtime import LEVELS, LITERT, ArtifactError, load_session
from .model import Array, Deployed, Served, rounding

BEST_POINT = (STRONG, "apgd-ce", "apgd-t")  # families that return no last step, whatever their settings
HIDDEN = (
    "gradients do not lead the attack: state the worst case, and attack by strong with more passes (strong:budget=N)"
)
STEP = 1.01  # a value between two steps may fall to either


@torch.no_grad()
def first_apart(deployed: Deployed, x: Tensor) -> str | None:
    """The value's name in the file, on images x (n, c, h, w) in [0,1]; None if no quantiser is to blame, or where the
    file that names them is not the one that runs, as on LiteRT.
    """
    if deployed.provider in LITERT:
        return None
    inside = deployed.module.inside(deployed.gradient().fed(x))
    proto, _ = whole(deployed.path)
    named = {name for node in proto.graph.node for name in node.output}
    watched = [node for node in rounding(deployed.module) if node.outputs[0] in named]
    theirs = _session_values(deployed, proto, [node.outputs[0] for node in watched], x)
    for node, value in zip(watched, theirs, strict=True):
        name = node.outputs[0]
        unit = float(inside[node.inputs[1]].min()) if node.op == FAKE else 1.0
        if float(((inside[name].cpu() - torch.from_numpy(value)) / unit).abs().max()) > STEP:
            return str(name)
    return None


def _session_values(deployed: Deployed, proto: onnx.ModelProto, names: Sequence[str], x: Tensor) -> list[Array]:
    if not names:  # of which a session would give all
        return []
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    pixels = x.contiguous().cpu().numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        session = load_session(path, deployed.provider, None, deployed.session_options)
        feed = deployed.artifact.feed(pixels) if deployed.artifact else pixels
        found = session.run([*names], {session.get_inputs()[0].name: feed})
    return [np.asarray(value, np.float32) for value in found]


# What quantisers are trained with. "identity" also passes what a relu stops that is a saturating QuantizeLinear: on a
# ResNet-20 with 8-bit activations that points nowhere, cosine 0.06 with the float model's gradient, not 0.95.
TRAINED_FORM = "clipped"
Labels = Mapping[str, Tensor]  # by set of images: int64 (n,)


class CheckedFile(CheckedModel):
    """A file whose attacks are checked; gradients are the module's at the session's logits, as in training.

    sets: images by name, "clean" and what the file's suite stores. stored: what torch said of each before export.
    """

    outcomes: Outcomes

    def __init__(
        self,
        deployed: Deployed,
        served: Served,
        images: Images,
        outcomes: Outcomes,
        *,
        source: Deployed | None = None,
        batch_size: int,
    ) -> None:
        through = deployed.through(served, TRAINED_FORM if TRAINED_FORM in deployed.forms else deployed.forms[0])
        float_model = source.gradient() if source else None
        n = outcomes.n
        super().__init__(
            through, images, outcomes.threat, float_model=float_model, outcomes=outcomes, n=n, seed=outcomes.seed,
            batch_size=batch_size,
        )  # fmt: skip
        self.deployed, self.served = deployed, served
        self.sets, self.stored = suite_of(deployed, images, outcomes)

    @cached_property
    def labels(self) -> Labels:
        """The session's."""
        return self.labels_of(self.served)

    def labels_of(self, network: nn.Module) -> Labels:
        """What a network says of all sets."""
        device = self.x.device
        return {
            name: torch.cat([predict(network, to_unit(some, device, channels_last=True)).cpu()
                             for some in parts(pixels, self.batch_size)])
            for name, pixels in self.sets.items()
        }  # fmt: skip

    def mask(self, chosen: Callable[[Attack], bool]) -> Tensor | None:
        """Images right under every bounded attack that is chosen; None where none was made."""
        masks = [
            torch.from_numpy(self.outcomes.correct[a.name]) for a in self.outcomes.attacks if a.bounded and chosen(a)
        ]
        return torch.stack(masks).all(0) if masks else None

    def beaten_by(self, family: str) -> float | None:
        """Share of images that an attack of this family breaks, and none that has gradients of the file's own.

        Those keep the best point, as `strong` does; only where no such attack was made, the last step's stand for them.
        """
        white, other = self.mask(_keeps_best), self.mask(lambda one: one.family == family)
        white = self.mask(_has_gradients) if white is None else white
        return None if white is None or other is None else float((white & ~other).double().mean())

    def square_within(self) -> float | None:
        """Share of images by which Square within `strong` broke more than its gradients did."""
        found = [part for one in self.outcomes.attacks if one.family == STRONG
                 for part in self.outcomes.parts.get(one.name, ())]  # fmt: skip
        signed = [part.broken if part.part.startswith(SQUARE) else -part.broken for part in found]
        return max(0, sum(signed)) / self.outcomes.n if found else None


def _has_gradients(one: Attack) -> bool:
    # AutoAttack holds Square and is left out: it would hide what Square alone finds.
    return one.family not in ("autoattack", TRANSFER, *WITHOUT_GRADIENTS)


def _keeps_best(one: Attack) -> bool:
    return _has_gradients(one) and (one.family in BEST_POINT or one.settings.get("keep") == "best")


def suite_of(deployed: Deployed, images: Images, outcomes: Outcomes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The images that were attacked, by set of the suite, and the labels that torch gave them before export; of images
    that are in no suite clean ones alone.
    """
    chosen = slice(None) if outcomes.indices is None else outcomes.indices
    if deployed.artifact is None or not np.array_equal(images.x.cpu().numpy(), deployed.artifact.suite["x.clean"]):
        return {"clean": images.take(chosen).x}, {}
    suite, names = deployed.artifact.suite, deployed.artifact.sets
    taken = [{name: torch.from_numpy(suite[f"{kind}.{name}"][chosen]) for name in names} for kind in ("x", "label")]
    return taken[0], taken[1]


def module_differs(checked: CheckedFile) -> float:
    """Share of other labels, over all sets."""
    return apart(checked.labels, checked.labels_of(checked.deployed.gradient()))


def replay_differs(checked: CheckedFile) -> float | None:
    """Share of labels that export changed, over all sets."""
    return apart(checked.labels, checked.stored) if checked.stored else None


def level_differs(checked: CheckedFile) -> float | None:
    """The largest share of other labels at another level of fusion."""
    found = [apart(checked.labels, labels) for labels in _at_levels(checked)]
    return max(found, default=None)


def square_wins(checked: CheckedFile) -> float | None:
    """What Square on the session breaks beyond gradients, from scratch or within `strong`."""
    found = [one for one in (checked.beaten_by(SQUARE), checked.square_within()) if one is not None]
    return max(found, default=None)


def transfer_wins(checked: CheckedFile) -> float | None:
    """What examples from other files break."""
    return checked.beaten_by(TRANSFER)


def apart(first: Labels, second: Labels) -> float:
    """Share of labels that differ, over the sets of both."""
    differs = torch.cat([first[name] != second[name] for name in first])
    return float(differs.double().mean())


def _at_levels(checked: CheckedFile) -> Iterable[Labels]:
    deployed = checked.deployed
    for level in LEVELS:
        if level == deployed.level:
            continue
        try:
            logits = deployed.at(level)
        except ArtifactError:  # a provider need not offer every level
            continue
        yield checked.labels_of(Served(logits, deployed.sha256).to(checked.x.device))


def _known(name: str, measure: Callable[[CheckedFile], float | None]) -> SanityCheck[CheckedFile]:
    """A check of `evaluation.SANITY_CHECKS`, measured here, where other attacks on the file are at hand."""
    one = next(one for one in ALL if one.name == name)
    return SanityCheck(name, measure, one.limit, one.reason, HIDDEN)


def check_file_sanity(checked: CheckedFile) -> SanityReport:
    """All that is asked of a file, and the cheap checks of its gradients; the first layer apart is named."""
    found, cheap = check_sanity(checked, SANITY_CHECKS), check_sanity(checked, CHEAP_CHECKS)
    return SanityReport(
        cheap.measured | found.measured, [*cheap.flags, *(_located(checked, one) for one in found.flags)]
    )


def _located(checked: CheckedFile, flag: Flag) -> Flag:
    if flag.name != "module-differs":
        return flag
    layer = first_apart(checked.deployed, checked.x[: checked.batch_size])
    return replace(flag, reason=f"{flag.reason}, first in {layer}") if layer else flag


SANITY_CHECKS: tuple[SanityCheck[CheckedFile], ...] = (
    SanityCheck("module-differs", module_differs, 0.01,
          "the module rebuilt in torch gives other labels than the session",
          "its gradients belong to another network: compare the graph's operators with what the runtime makes of them"),
    SanityCheck("replay-differs", replay_differs, 0.01, "the session gives other labels than its suite holds",
          "compare layers with the parity in the manifest, and export again"),
    SanityCheck("level-differs", level_differs, 0.01, "another graph_optimization_level gives other labels",
          "pin the level in the target, and attack the file at the level that it is deployed with"),
    _known("square-wins", square_wins),
    _known("transfer-wins", transfer_wins),
)  # fmt: skip
