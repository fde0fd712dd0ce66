"""How alike two layers see the same images: linear centred kernel alignment, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, ModelError, did_you_mean
from .responses import OnStep, channels_last_of, check_model

LEAST = 4  # images, for an unbiased estimate


class Alignment:
    r"""CKA between every one of L₁ sets of activations and every one of L₂, from minibatches of the same images.

        CKA(X, Y) = Σ_b HSIC(X_b, Y_b) / √(Σ_b HSIC(X_b, X_b) · Σ_b HSIC(Y_b, Y_b))
        HSIC = [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1 / ((n-1)(n-2)) - 2/(n-2)·1ᵀK̃L̃1] / (n(n-3)),  K = XXᵀ, K̃ with a diagonal of 0
        biased: HSIC = tr(KHLH) / (n-1)²,  H = 1 - 11ᵀ/n

    `update` takes Gram matrices (see `gram`) of a batch; `value` may be read after any. Holds six small matrices.
    The first estimate of HSIC is unbiased, so the batch size does not shift it; CKA is at most 1 and may fall below 0
    by chance. The biased one, as it was first published, gives a CKA in [0, 1], the higher the smaller the batch.
    Reference: Kornblith et al. 2019, arXiv 1905.00414, section 3; Nguyen et al. 2021, arXiv 2010.15327, eq. 2-3.
    """

    def __init__(self) -> None:
        self._sums: dict[bool, list[Tensor]] = {}  # of the biased estimate and of the other

    def update(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Count in a batch: matrices (n, n) of L₁ and of L₂ layers, n ≥ 4."""
        x, y = torch.stack(list(first)), torch.stack(list(second))
        for biased, hsic in ((False, _hsic), (True, _biased_hsic)):
            new = [hsic(x, y), hsic(x, x).diagonal(), hsic(y, y).diagonal()]
            before = self._sums.get(biased)
            self._sums[biased] = [a + b for a, b in zip(before, new, strict=True)] if before else new

    def value(self, *, biased: bool = False) -> Tensor:
        """(L₁, L₂), float32; 0 for a layer that says the same of every image. Raises DataError before any batch."""
        if not self._sums:
            raise DataError(f"expected a batch of at least {LEAST} images to compare on, got none; give larger ones")
        both, first, second = self._sums[biased]
        scale = (first.clamp_min(0)[:, None] * second.clamp_min(0)).sqrt()
        return torch.where(scale > 0, both / scale, 0.0).float()


def linear_cka(first: Tensor, second: Tensor, *, biased: bool = False) -> Tensor:
    """CKA of two sets of activations (n, ...) of the same n ≥ 4 images, a scalar.

    That is `Alignment` of a single batch; biased: its other estimate.
    """
    alignment = Alignment()
    alignment.update([gram(first)], [gram(second)])
    return alignment.value(biased=biased).squeeze()


def network_cka(
    first: nn.Module,
    second: nn.Module,
    batches: Iterable[Tensor],
    *,
    layers: tuple[Sequence[str], Sequence[str]] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """CKA between every layer of a network and every one of another (or itself) on the same images, (L₁, L₂).

    The unbiased one; parameters and errors as of `network_alignment`, which has the other too.
    """
    return network_alignment(first, second, batches, layers=layers, on_step=on_step).value()


def network_alignment(
    first: nn.Module,
    second: nn.Module,
    batches: Iterable[Tensor],
    *,
    layers: tuple[Sequence[str], Sequence[str]] | None = None,
    on_step: OnStep | None = None,
) -> Alignment:
    """`Alignment` of every layer of a network and every one of another (or itself) on the same images.

    batches: images (n, c, h, w) in [0,1]; larger ones vary less. A last one of fewer than 4 is left out. layers: names
    in each network, None for `layer_names`; a layer that runs more than once counts with its last output. Held are
    two sets of (n, n) matrices, and an activation only until its matrix is made. on_step: called with the number of
    images after each batch. Raises ModelError for a layer that is not there or does not run, or a network in train
    mode; its value DataError if no batch had 4 images. Reference: "A Fourier Domain-based Study", fig. 6 and 7.
    """
    one, two = (list(names) for names in layers or (layer_names(first), layer_names(second)))
    alignment = Alignment()
    for x in batches:
        if len(x) >= LEAST:
            grams = layer_grams(first, one, x)
            same = first is second and one == two
            alignment.update(grams, grams if same else layer_grams(second, two, x))
        if on_step:
            on_step(len(x))
    return alignment


def layer_names(model: nn.Module) -> list[str]:
    """Names of all convolutions and linear layers, in the order of their definition."""
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


@torch.no_grad()
def layer_grams(model: nn.Module, names: Sequence[str], x: Tensor) -> list[Tensor]:
    """The `gram` of what each named layer gives for images x, one pass. Raises as `network_cka`."""
    check_model(model)
    found: dict[str, Tensor] = {}
    with _listening(model, names, found):
        model(channels_last_of(x))
    if silent := [name for name in names if name not in found]:
        raise ModelError(f"expected layers that run, got {silent[0]!r}, which does not; leave it out")
    return [found[name] for name in names]


def gram(activations: Tensor) -> Tensor:
    """XXᵀ of activations (n, ...) with each feature's mean taken off, float64 (n, n).

    The unbiased HSIC is the same with and without the means; without them float32 products lose nothing to them.
    """
    x = activations.detach().float().flatten(1)
    x = x - x.mean(dim=0)
    return (x @ x.T).double()


def _hsic(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased HSIC of Gram matrices (L₁, n, n) and (L₂, n, n), (L₁, L₂); see `Alignment`."""
    n = first.shape[-1]
    (k, k_rows), (m, m_rows) = (_without_diagonal(grams) for grams in (first, second))
    trace = k.flatten(1) @ m.flatten(1).T
    totals = k_rows.sum(1)[:, None] * m_rows.sum(1) / ((n - 1) * (n - 2))
    return (trace + totals - 2 / (n - 2) * k_rows @ m_rows.T) / (n * (n - 3))


def _biased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """Biased HSIC of Gram matrices (L₁, n, n) and (L₂, n, n), (L₁, L₂): features are centred, so HKH is K."""
    return first.flatten(1) @ second.flatten(1).T / (first.shape[-1] - 1) ** 2


def _without_diagonal(grams: Tensor) -> tuple[Tensor, Tensor]:
    """K̃ (L, n, n) and its sums of rows (L, n)."""
    hollow = grams - torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
    return hollow, hollow.sum(dim=2)


@contextmanager
def _listening(model: nn.Module, names: Sequence[str], found: dict[str, Tensor]) -> Iterator[None]:
    """Inside, every pass writes the Gram matrices of the named layers into `found`."""
    modules = dict(model.named_modules())
    if unknown := [name for name in names if name not in modules]:
        raise ModelError(f"expected a layer, got {unknown[0]!r}{did_you_mean(unknown[0], modules)}")

    def keep(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG001, a hook's signature
        found[name] = gram(output)

    handles = [modules[name].register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
