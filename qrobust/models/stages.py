"""The frame of residual networks: a stem, stages of equal blocks, mean pooling, a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..errors import ModelError

Block = Callable[[int, int, int], nn.Module]  # in_channels, out_channels, stride
Stem = Literal["cifar", "imagenet"]


@dataclass(frozen=True)
class Stages:
    """Stage i has counts[i] blocks and gives widths[i + 1] channels; widths[0] is what the stem gives.

    From the second stage on, the first block halves height and width.
    """

    block: Block
    counts: tuple[int, ...]
    widths: tuple[int, ...]

    def build(self) -> Iterator[nn.Sequential]:
        """The stages, in the order of execution."""
        for stage, count in enumerate(self.counts):
            before, width = self.widths[stage : stage + 2]
            first = self.block(before, width, 1 if stage == 0 else 2)
            rest = [self.block(width, width, 1) for _ in range(count - 1)]
            yield nn.Sequential(first, *rest)


class StagedNetwork(nn.Module):
    """Holds stages as `layer1`, `layer2`, …, and a classifier behind mean pooling; subclasses bring the stem."""

    def add_stages(self, stages: Stages) -> None:
        """Append the stages to what is there."""
        self.layers = tuple(f"layer{number}" for number in range(1, len(stages.counts) + 1))
        for name, layer in zip(self.layers, stages.build(), strict=True):
            self.add_module(name, layer)

    def add_classifier(self, width: int, classes: int) -> None:
        """Append mean pooling over height and width, and a linear layer."""
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, classes)

    def run_stages(self, x: Tensor) -> Tensor:
        """(n, widths[0], h, w) → (n, widths[-1], h/2^(stages - 1), w/2^(stages - 1)), rounded up."""
        for name in self.layers:
            x = self.get_submodule(name)(x)
        return x

    def classify(self, x: Tensor) -> Tensor:
        """(n, width, h, w) → logits (n, classes)."""
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def check_stem(stem: str) -> None:
    """Raises ModelError unless `stem` is one of `Stem`."""
    if stem not in ("cifar", "imagenet"):
        raise ModelError(f"expected stem 'cifar' or 'imagenet', got {stem!r}")
