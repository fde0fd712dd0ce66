"""Terms of training losses, pure functions of logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import DataError

ALIGNMENT_FORMS = ("batch", "sample")
ALIGNMENT_DISTANCES = ("l1", "l2", "cosine")


def spectral_distance(first: Tensor, second: Tensor, *, form: str = "batch", distance: str = "l1") -> Tensor:
    """Distance between the Fourier transforms of two batches of logits, a scalar.

    form "sample": the equation of the paper, F a DFT over the classes of each sample,
        mean_i Σ_k (|Re d_ik| + |Im d_ik|) with d = F(first) - F(second).
    form "batch": the authors' published code, F a two-dimensional DFT of the (n, classes) matrix, not
        normalised, mean over the 2·n·classes real numbers. It grows as √(n·classes) for random
        differences, so a coefficient belongs to a batch size. That the paper's numbers were made with it is an
        inference: the code is of an earlier version and prints others.
    distance: "l1"; "l2" squares instead; "cosine" is 1 - cosine of the real vectors.

    first, second: logits (n, classes), same shape.
    """
    a, b = _spectrum(first, form), _spectrum(second, form)
    if distance == "cosine":
        if form == "sample":
            return (1 - F.cosine_similarity(a, b, dim=1)).mean()
        return 1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    difference = (a - b).abs() if distance == "l1" else (a - b).square()
    return difference.mean() if form == "batch" else difference.sum(dim=1).mean()


def _spectrum(logits: Tensor, form: str) -> Tensor:
    """Real and imaginary parts side by side, (n, 2·classes)."""
    logits = logits.float()
    transformed = torch.fft.fft2(logits) if form == "batch" else torch.fft.fft(logits, dim=1)
    return torch.view_as_real(transformed).flatten(1)


def cross_entropy(logits: Tensor, y: Tensor, *, smoothing: float = 0.0, class_weights: Tensor | None = None) -> Tensor:
    """mean_i -Σ_k w_k t_ik log softmax(z_i)_k, with targets t = (1 - smoothing)·y + smoothing/classes.

    logits: (n, classes). y: labels (n,), which stand for their one-hot rows, or probabilities (n, classes)
    of mixed images. smoothing: in [0, 1] (Szegedy et al. 2016, arXiv 1512.00567, section 7). class_weights: w
    (classes,), None for ones. The sum is divided by n, not by the weights of the labels as torch does, so that the mean
    over the parts of a batch is that of the batch.
    """
    if class_weights is None:
        return F.cross_entropy(logits, y, label_smoothing=smoothing)
    return F.cross_entropy(logits, y, class_weights, label_smoothing=smoothing, reduction="none").mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """mean_ik -t_ik log sigmoid(z_ik) - (1 - t_ik) log(1 - sigmoid(z_ik)): every class a question of its own.

    logits: (n, classes). targets: probabilities (n, classes), or labels (n,), which stand for their one-hot
    rows. The mean is over all n·classes numbers, so gradients are smaller than cross-entropy's.

    Huang et al., "What Do Adversarially trained Neural Networks Focus: A Fourier Domain-based Study", section 3.2,
    names it for mixed labels.
    """
    if not targets.is_floating_point():
        targets = F.one_hot(targets, logits.shape[1])
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """mean_i KL(p_i ‖ q_i) = mean_i Σ_k p_ik (log p_ik - log q_ik), p = softmax(clean), q = softmax(adversarial).

    clean, adversarial: logits (n, classes), both with gradient.
    """
    return _divergences(clean, adversarial).mean()


def trades(
    clean: Tensor,
    adversarial: Tensor,
    y: Tensor,
    *,
    beta: float = 6.0,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """cross_entropy(clean, y) + beta · divergence(clean, adversarial).

    clean, adversarial: logits (n, classes), both with gradient. y, smoothing, class_weights: as in `cross_entropy`.

    Zhang et al. 2019, arXiv 1901.08573; beta is their 1/λ.
    """
    classified = cross_entropy(clean, y, smoothing=smoothing, class_weights=class_weights)
    return classified + beta * divergence(clean, adversarial)


def boosted_cross_entropy(logits: Tensor, y: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """mean_i w_y (-log p_y - log(1 - max_{k≠y} p_k)), p = softmax(z_i): the label up, its closest rival down.

    logits: (n, classes), at least two classes, in which case it is twice the cross-entropy. y: labels (n,).
    class_weights: w (classes,), None for ones. Raises DataError for mixed labels.

    Wang et al. 2020, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples".
    The second term is exact here, as the log of the summed probabilities of all classes but the rival.
    The authors' code adds 1e-4 to 1 - p_k instead, so there the term ends at 9.2 and its gradient fades
    for p_k above 0.9999; here both go on, with the gradient of each logit within ±2/n.
    """
    if y.is_floating_point():
        raise DataError("expected labels (n,), got probabilities; use cross_entropy or trades for mixed labels")
    log_p = F.log_softmax(logits, dim=1)
    rival = log_p.scatter(1, y[:, None], float("-inf")).argmax(dim=1, keepdim=True)
    log_rest = log_p.scatter(1, rival, float("-inf")).logsumexp(dim=1)
    boosted = -(_of_label(log_p, y) + log_rest)
    return (boosted if class_weights is None else boosted * class_weights[y]).mean()


def mart(
    clean: Tensor, adversarial: Tensor, y: Tensor, *, beta: float = 6.0, class_weights: Tensor | None = None
) -> Tensor:
    """boosted_cross_entropy(adversarial, y) + beta · mean_i KL(p_i ‖ q_i) (1 - p_i,y), p and q as in `divergence`.

    clean, adversarial: logits (n, classes), both with gradient, the weight 1 - p_y too. y: labels (n,).
    class_weights: of the first term, as in `boosted_cross_entropy`. Raises DataError for mixed labels.

    Wang et al. 2020, as in `boosted_cross_entropy`; beta is their λ. The authors' code adds 1e-12 to q
    and 1e-7 to the weight, here both are exact.
    """
    boosted = boosted_cross_entropy(adversarial, y, class_weights=class_weights)
    weights = -torch.expm1(_of_label(F.log_softmax(clean, dim=1), y))
    return boosted + beta * (_divergences(clean, adversarial) * weights).mean()


def ard(
    student_clean: Tensor,
    student_adversarial: Tensor,
    teacher_clean: Tensor,
    y: Tensor,
    *,
    temperature: float = 30.0,
    weight: float = 1.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """weight · t² · mean_i KL(T_i ‖ S_i) + (1 - weight) · cross_entropy(student_clean, y).

    T = softmax(teacher_clean / t), S = softmax(student_adversarial / t), t: temperature. Logits (n, classes);
    gradients reach the student alone. y, class_weights: as in `cross_entropy`, which takes logits at temperature 1.

    Adversarially robust distillation: Goldblum et al. 2020, arXiv 1905.09747; weight is their α. The authors' code
    means KL over n·classes numbers, so its first term is this one divided by the number of classes.
    """
    teacher = teacher_clean.detach()
    soft = temperature**2 * divergence(teacher / temperature, student_adversarial / temperature)
    return weight * soft + (1 - weight) * cross_entropy(student_clean, y, class_weights=class_weights)


def rslad(student_clean: Tensor, student_adversarial: Tensor, teacher_clean: Tensor, *, share: float = 5 / 6) -> Tensor:
    """share · mean_i KL(T_i ‖ A_i) + (1 - share) · mean_i KL(T_i ‖ S_i): the teacher's word instead of labels.

    T, A, S = softmax of teacher_clean, student_adversarial, student_clean. Logits (n, classes); gradients reach the
    student alone. share: in [0, 1].

    Robust soft label adversarial distillation: Zi et al. 2021, arXiv 2108.07969; the attack maximises KL(T ‖ A) too.
    The authors' code means over n·classes numbers, times ten for 100 classes, so it is a tenth of this, and it
    adds 1e-5 to T under the log.
    """
    teacher = teacher_clean.detach()
    return share * divergence(teacher, student_adversarial) + (1 - share) * divergence(teacher, student_clean)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} z_k - z_y per sample, (n,): positive where the label is lost."""
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.amax(dim=1) - _of_label(logits, y)


def sar(clean: Tensor, adversarial: Tensor, *, form: str = "batch", distance: str = "l1") -> Tensor:
    """Spectral alignment: the distance of the logits' Fourier transforms.

    clean, adversarial: (n, classes), both with gradient. In form "batch" of a whole batch: the transform of a part
    is not a part of the transform. No images are at no distance.

    Huang et al., "A Spectral Perspective towards Understanding and Improving Adversarial Robustness", eq. 3.
    """
    if not len(clean):  # a process without a part of a small batch; no FFT takes it
        return (clean - adversarial).sum()
    return spectral_distance(clean, adversarial, form=form, distance=distance)


def _divergences(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(softmax(clean) ‖ softmax(adversarial)) per sample, (n,)."""
    log_p, log_q = F.log_softmax(clean, dim=1), F.log_softmax(adversarial, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def _of_label(values: Tensor, y: Tensor) -> Tensor:
    """values[i, y_i], (n,)."""
    return values.gather(1, y[:, None])[:, 0]
