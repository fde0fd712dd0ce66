"""Weight averaging (Izmailov et al. 2018, arXiv 1803.05407): a second network whose weights are a running mean."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .. import recipe
from ..models.statistics import estimate_statistics


class Average(nn.Module):
    """The mean of a network's weights so far, as a network of its own: frozen, in eval mode.

    "equal":       w ← (w·k + W)/(k + 1), to be called after every epoch
    "exponential": w ← decay·w + (1 - decay)·W, after every step; W at the first
    """

    count: Tensor

    def __init__(self, model: nn.Module, settings: recipe.Average) -> None:
        super().__init__()
        self.network = copy.deepcopy(model).eval().requires_grad_(False)
        self.settings = settings
        self.register_buffer("count", torch.tensor(0))

    def begin(self, model: nn.Module) -> None:
        """Stand where the network stands, so that what is aligned to the average has a trained one from the start."""
        self.network.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the network's weights in; all else that it holds (statistics, clips' units) is copied."""
        k = int(self.count)
        share = 1 / (k + 1) if self.settings.kind == "equal" or k == 0 else 1 - self.settings.decay
        for mean, value in zip(self.network.parameters(), model.parameters(), strict=True):
            mean.lerp_(value.detach(), share)
        for own, buffer in zip(self.network.buffers(), model.buffers(), strict=True):
            own.copy_(buffer)
        self.count += 1

    def estimate(self, batches: Iterable[Tensor]) -> None:
        """Batch-norm statistics of the averaged weights, over images (n, c, h, w) in [0,1]: `settings.statistics`."""
        estimate_statistics(self.network, batches)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the averaged network, (n, classes)."""
        logits: Tensor = self.network(x)
        return logits
