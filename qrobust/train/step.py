"""One step: mix, attack, perturb, descend; and the running mean of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from .. import devices, distributed, recipe
from ..data import MIXES
from ..models.inference import computed_once, estimate_statistics, freeze_statistics
from ..quant import kurtosis, latent_weights, lipschitz
from ..spectrum import low_pass
from .cuda_graphs import Replayed, Tensors
from .job import Job
from .methods import METHODS, Views, aligned, draw_start, perturb


class Average(AveragedModel):
    """The mean of a network's weights so far, as a network of its own (`module`): frozen, in eval mode.

    "equal":       w ← (w·k + W)/(k + 1), to be called after every epoch
    "exponential": w ← decay·w + (1 - decay)·W, after every step; W at the first
    with warmup:   w ← d·w + (1 - d)·W, d = min(decay, (1 + t)/(10 + t)) at step t from 0, w before it what the network
                   began with (Rebuffi et al. 2021, arXiv 2103.01946, and their code)

    All else that the network holds (statistics, clips' units) is copied.
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, settings: recipe.Average) -> None:
        super().__init__(model, avg_fn=self._mean)
        self.eval().requires_grad_(False)
        self.settings = settings

    def _mean(self, mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        if self.settings.kind == "equal":
            return mean.lerp(value, 1 / (int(count) + 1))
        before = int(self.n_averaged)  # on the CPU, where it waits for no GPU; the start's weights were the first
        leaves = min(self.settings.decay, before / (before + 9)) if self.settings.warmup else self.settings.decay
        return mean.lerp(value, 1 - leaves)

    def begin(self, model: nn.Module) -> None:
        """Stand where the network stands, so that what is aligned to the average has a trained one from the start.

        With `settings.warmup` these weights are part of the mean, the first that are counted.
        """
        self.module.load_state_dict(model.state_dict())
        self.n_averaged.fill_(int(self.settings.warmup))

    def estimate(self, batches: Iterable[Tensor]) -> None:
        """Batch-norm statistics of the averaged weights, over images (n, c, h, w) in [0,1]: `settings.statistics`,
        unless they are copied.
        """
        estimate_statistics(self.module, batches)


@contextmanager
def perturbed(weights: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], gamma: float) -> Iterator[None]:
    """Inside, every weight stands at w + γ·‖w‖·g/‖g‖, up along its gradient g; afterwards at w again, to the bit.

    A weight without a gradient (None), which the loss does not use, stays.
    """
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight.add_(gradient * (gamma * weight.norm() / gradient.norm().clamp_min(1e-12)))
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch-norm in train mode normalises by the batch and leaves its running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


Objective = Callable[[nn.Module], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch: images x to learn from, labels y (or their shares), x_adv where attacked, and
    the teacher's logits of x where there is one.
    """

    x: Tensor
    y: Tensor
    x_adv: Tensor | None = None
    taught: Tensor | None = None


@dataclass(frozen=True)
class Stepper:
    """What every step of a training needs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    job: Job
    classes: int
    teacher: nn.Module | None = None
    class_weights: Tensor | None = None

    def step(self, whole: nn.Module, x: Tensor, y: Tensor, epoch: int, generator: Generator) -> Tensor:
        """Descend on a batch that all processes hold; (sum of losses, number right, number) of this one's part.

        whole: the model as passes go through it. generator: the same on all processes, of which some have no part
        of a batch with fewer images than processes.
        """
        frozen = self.job.schedule.freeze_statistics is not None and epoch >= self.job.schedule.freeze_statistics
        with fixed_statistics(self.model) if frozen else nullcontext():  # an attack in train mode would move them
            batch = self.prepare(x, y, epoch, generator)
        share = len(batch.y) * distributed.world() / len(y)  # gradients are averaged over processes, not images
        due = frozenset(part for part in ("sar", "awp") if self.job.started(part, epoch))
        views = batch.x, batch.y, batch.x_adv, batch.taught
        loss, logits, *gradients = self._descended(*views, whole=whole, share=share, frozen=frozen, due=due)
        assert loss is not None
        assert logits is not None
        parameters = list(self.model.parameters())
        for parameter, gradient in zip(parameters, distributed.averaged(parameters, gradients), strict=True):
            parameter.grad = gradient  # a replay leaves it where it was recorded
        if self.job.schedule.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.job.schedule.gradient_clip)
        self.optimizer.step()
        if self._averages_steps(epoch):
            assert self.average is not None
            self.average.update_parameters(self.model)
        right = (logits.argmax(1) == distributed.part(y)).sum()
        losses = loss.double() * len(y) / distributed.world() if len(batch.y) else torch.zeros_like(loss).double()
        return torch.stack([losses, right, right.new_tensor(len(batch.y))])

    @cached_property
    def _descended(self) -> Replayed:
        return Replayed(self._descend)

    @cached_property
    def _attacked(self) -> Replayed:
        training, threat = self.job.training, self.job.threat
        return Replayed(lambda x, goal, start: (perturb(self.model, x, goal, start, training, threat),))

    def _descend(
        self,
        x: Tensor,
        y: Tensor,
        x_adv: Tensor | None,
        taught: Tensor | None,
        *,
        whole: nn.Module,
        share: float,
        frozen: bool,
        due: frozenset[str],
    ) -> Tensors:
        """Loss, logits that are counted, and the gradient of every parameter. due: parts of the schedule that began."""
        self.model.train()
        if frozen:
            freeze_statistics(self.model)

        def objective(network: nn.Module) -> tuple[Tensor, Tensor]:
            with computed_once(self.model, (nn.Conv2d, nn.Linear)):
                loss, logits = self.loss(Views(network, x, y, x_adv, taught, self.class_weights), sar="sar" in due)
            return loss * share, logits

        with self._perturbed(objective) if "awp" in due else nullcontext():
            loss, logits = objective(whole)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits, *(parameter.grad for parameter in self.model.parameters())

    def loss(self, views: Views, *, sar: bool) -> tuple[Tensor, Tensor]:
        """The method's loss, spectral alignment where it is due, terms of the weights; the logits that are counted."""
        method = METHODS[self.job.training.method]
        loss = method.loss(views, self.job.training)
        if sar:
            assert self.job.schedule.sar is not None
            loss = loss + aligned(views, self.job.schedule.sar, self.average)
        if self.job.schedule.kurtosis:
            loss = loss + self.job.schedule.kurtosis * kurtosis(self.model)
        if self.job.schedule.lipschitz:
            loss = loss + self.job.schedule.lipschitz * lipschitz(self.model)
        logits: Tensor = getattr(views, method.judged)
        return loss, logits.detach()

    def prepare(self, x: Tensor, y: Tensor, epoch: int, generator: Generator) -> Batch:
        """Mixed, filtered and attacked. Starts are drawn for the whole batch: several processes do what one would."""
        training, threat = self.job.attacking(epoch)
        mix = training.mix
        if training.low_pass is not None:
            x = low_pass(x, training.low_pass).clamp(0, 1)
        if mix is not None and mix.on == "clean":
            x, y = self._mixed(x, y, mix, generator)
        x = x.contiguous(memory_format=torch.channels_last)
        method = METHODS[training.method]
        if method.ascends is None:
            return Batch(distributed.part(x), distributed.part(y))
        start = draw_start(x, training, threat, generator)
        x, y, start = (distributed.part(tensor) for tensor in (x, y, start))
        taught = self._taught(x) if method.teacher else None
        goal = y if method.ascends != "teacher" or taught is None else taught.softmax(1)
        if training.attack.mode == "eval" and threat == self.job.threat:
            (x_adv,) = self._attacked(x, goal, start)
        else:  # in train mode it moves batch-norm's statistics, or not, as its caller says; in warm-up eps moves
            x_adv = perturb(self.model, x, goal, start, training, threat)
        if mix is not None and mix.on == "adversarial" and x_adv is not None:
            own = devices.generator(int(torch.randint(2**62, (1,), generator=generator)), 0)
            whole = distributed.gathered(x_adv), distributed.gathered(y)  # images mix with any of the batch
            x_adv, y = self._mixed(*whole, mix, own)
            x_adv, y = distributed.part(x_adv), distributed.part(y)
        return Batch(x, y, x_adv, taught)

    def _mixed(self, x: Tensor, y: Tensor, mix: recipe.Mix, generator: Generator) -> tuple[Tensor, Tensor]:
        more = {"border": mix.border} if mix.kind == "cutmix" else {}
        return MIXES[mix.kind](x, y, classes=self.classes, alpha=mix.alpha, generator=generator, **more)

    @torch.no_grad()
    def _taught(self, x: Tensor) -> Tensor:
        assert self.teacher is not None
        logits: Tensor = self.teacher(x)
        return logits.float()

    def _averages_steps(self, epoch: int) -> bool:
        average = self.job.schedule.average
        return average is not None and average.kind == "exponential" and self.job.started("average", epoch)

    @contextmanager
    def _perturbed(self, objective: Objective) -> Iterator[None]:
        """Inside, the weights stand where adversarial weight perturbation moves them."""
        assert self.job.schedule.awp is not None
        weights = latent_weights(self.model)
        with fixed_statistics(self.model):
            gradients = torch.autograd.grad(objective(self.model)[0], weights, allow_unused=True)
        with perturbed(weights, distributed.averaged(weights, gradients), self.job.schedule.awp.gamma):
            yield
