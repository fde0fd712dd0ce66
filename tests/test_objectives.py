"""Terms of losses against loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from qrobust.errors import DataError
from qrobust.objectives import (
    ard,
    binary_cross_entropy,
    boosted_cross_entropy,
    cross_entropy,
    divergence,
    margin,
    mart,
    rslad,
    sar,
    trades,
)


def logits_and_labels(n=6, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator), torch.arange(n) % classes


def test_cross_entropy_against_a_loop():
    logits, y = logits_and_labels()
    rows = [math.log(sum(map(math.exp, row))) - row[k] for row, k in zip(logits.tolist(), y.tolist(), strict=True)]
    assert cross_entropy(logits, y).item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)


def test_margin_against_a_loop():
    logits, y = logits_and_labels()
    expected = [
        max(value for k, value in enumerate(row) if k != label) - row[label]
        for row, label in zip(logits.tolist(), y.tolist(), strict=True)
    ]
    torch.testing.assert_close(margin(logits, y), torch.tensor(expected))


def test_margin_is_positive_where_the_label_is_lost():
    logits, y = logits_and_labels(n=100)
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)


def test_margin_has_a_gradient_at_two_logits():
    logits, y = logits_and_labels()
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(margin(logits, y).sum(), logits)
    assert torch.equal(gradient.gather(1, y[:, None]), -torch.ones(len(y), 1))
    assert torch.equal(gradient.sum(1), torch.zeros(len(y)))
    assert torch.equal(gradient.abs().sum(1), torch.full((len(y),), 2.0))


def doubles(n=6, classes=4, seed=0):
    """Clean and adversarial logits in double precision, spread enough to differ, and labels."""
    clean, y = logits_and_labels(n, classes, seed)
    adversarial, _ = logits_and_labels(n, classes, seed + 1)
    return 2 * clean.double(), 2 * adversarial.double(), y


def softmaxes(logits):
    """Softmax row by row, without torch."""
    rows = [[math.exp(value) for value in row] for row in logits.tolist()]
    return [[value / sum(row) for value in row] for row in rows]


def mixed_labels(n=6, classes=4):
    return doubles(n, classes, seed=7)[0].softmax(dim=1)


def mean(values):
    return sum(values) / len(values)


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def kl_loop(clean, adversarial):
    return [
        sum(p * math.log(p / q) for p, q in zip(ps, qs, strict=True))
        for ps, qs in zip(softmaxes(clean), softmaxes(adversarial), strict=True)
    ]


def boosted_loop(logits, y):
    terms = []
    for ps, label in zip(softmaxes(logits), y.tolist(), strict=True):
        rival = max(p for k, p in enumerate(ps) if k != label)
        terms.append(-math.log(ps[label]) - math.log(1 - rival))
    return mean(terms)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_of_mixed_and_smoothed_labels_against_a_loop(smoothing):
    logits, targets = doubles()[0], mixed_labels()
    expected = mean(
        [
            -sum(((1 - smoothing) * t + smoothing / 4) * math.log(p) for t, p in zip(ts, ps, strict=True))
            for ts, ps in zip(targets.tolist(), softmaxes(logits), strict=True)
        ]
    )
    assert cross_entropy(logits, targets, smoothing=smoothing).item() == close(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_labels_is_that_of_their_one_hot_rows(smoothing):
    logits, _, y = doubles()
    one_hot = F.one_hot(y, 4).float()  # single precision next to double logits, as mixing returns it
    expected = cross_entropy(logits, one_hot, smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, y, smoothing=smoothing), expected)


@pytest.mark.parametrize("term", [cross_entropy, binary_cross_entropy])
def test_mixed_labels_may_be_more_exact_than_logits(term):
    logits = doubles()[0].bfloat16().requires_grad_(True)
    targets = mixed_labels().float()
    expected = term(logits.detach().double(), targets.double())
    assert term(logits, targets).item() == pytest.approx(expected.item(), rel=0.01)
    assert torch.autograd.grad(term(logits, targets), logits)[0].isfinite().all()


def test_smoothing_of_zero_is_none_and_of_one_forgets_the_labels():
    logits, _, y = doubles()
    assert torch.equal(cross_entropy(logits, y, smoothing=0.0), cross_entropy(logits, y))
    torch.testing.assert_close(cross_entropy(logits, y, smoothing=1.0), cross_entropy(logits, y.flip(0), smoothing=1.0))
    assert not torch.equal(cross_entropy(logits, y, smoothing=0.1), cross_entropy(logits, y))


def test_binary_cross_entropy_against_a_loop():
    logits, targets = doubles()[0], mixed_labels()
    sigmoids = [1 / (1 + math.exp(-value)) for value in logits.flatten().tolist()]
    pairs = zip(targets.flatten().tolist(), sigmoids, strict=True)
    expected = mean([-t * math.log(s) - (1 - t) * math.log(1 - s) for t, s in pairs])
    assert binary_cross_entropy(logits, targets).item() == close(expected)


def test_binary_cross_entropy_of_labels_is_that_of_their_one_hot_rows():
    logits, _, y = doubles()
    expected = binary_cross_entropy(logits, F.one_hot(y, 4).float())
    torch.testing.assert_close(binary_cross_entropy(logits, y), expected)


def test_divergence_against_a_loop():
    clean, adversarial, _ = doubles()
    assert divergence(clean, adversarial).item() == close(mean(kl_loop(clean, adversarial)))


def test_divergence_is_positive_and_zero_for_equal_distributions_alone():
    clean, adversarial, _ = doubles()
    assert divergence(clean, adversarial) > 0.1
    assert divergence(clean, clean + 3).item() == pytest.approx(0, abs=1e-12)


def test_divergence_has_gradients_on_both_sides():
    clean, adversarial, _ = doubles()
    assert torch.autograd.gradcheck(divergence, (clean.requires_grad_(True), adversarial.requires_grad_(True)))
    gradients = torch.autograd.grad(divergence(clean, adversarial), (clean, adversarial))
    assert all(gradient.abs().sum() > 0.1 for gradient in gradients)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_trades_is_its_two_terms(smoothing, mixed):
    clean, adversarial, y = doubles()
    y = mixed_labels() if mixed else y
    expected = cross_entropy(clean, y, smoothing=smoothing).item() + 3 * mean(kl_loop(clean, adversarial))
    assert trades(clean, adversarial, y, beta=3, smoothing=smoothing).item() == close(expected)
    assert torch.equal(
        trades(clean, adversarial, y, beta=0, smoothing=smoothing), cross_entropy(clean, y, smoothing=smoothing)
    )


def test_boosted_cross_entropy_against_a_loop():
    logits, _, y = doubles(n=20)
    assert boosted_cross_entropy(logits, y).item() == close(boosted_loop(logits, y))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_losses_of_uniform_logits_are_closed_forms(classes):
    logits, y = torch.full((5, classes), 1.5, dtype=torch.float64), torch.arange(5) % classes
    uniform = math.log(classes)
    assert cross_entropy(logits, y, smoothing=0.1).item() == close(uniform)
    assert boosted_cross_entropy(logits, y).item() == close(uniform - math.log(1 - 1 / classes))
    assert binary_cross_entropy(0 * logits, y).item() == close(math.log(2))
    assert trades(logits, logits, y).item() == close(uniform)


def test_boosted_cross_entropy_of_two_classes_is_twice_the_plain():
    logits, _, y = doubles(classes=2)
    torch.testing.assert_close(boosted_cross_entropy(logits, y), 2 * cross_entropy(logits, y))


def test_mart_against_a_loop():
    clean, adversarial, y = doubles(n=20)
    divergences, certain = kl_loop(clean, adversarial), softmaxes(clean)
    weighted = [d * (1 - ps[label]) for d, ps, label in zip(divergences, certain, y.tolist(), strict=True)]
    expected = boosted_loop(adversarial, y) + 5 * mean(weighted)
    assert mart(clean, adversarial, y, beta=5).item() == close(expected)


def test_mart_leaves_out_the_divergence_of_confident_samples():
    clean, adversarial, y = doubles()
    sure = clean + 60 * F.one_hot(y, 4)
    torch.testing.assert_close(mart(sure, adversarial, y), boosted_cross_entropy(adversarial, y))
    lost = clean - 60 * F.one_hot(y, 4)
    expected = boosted_cross_entropy(adversarial, y) + 6 * divergence(lost, adversarial)
    torch.testing.assert_close(mart(lost, adversarial, y), expected)


@pytest.mark.parametrize("method", [trades, mart])
def test_the_gradients_of_trades_and_mart_are_those_of_differences(method):
    clean, adversarial, y = doubles()
    inputs = (clean.requires_grad_(True), adversarial.requires_grad_(True))
    assert torch.autograd.gradcheck(lambda a, b: method(a, b, y), inputs)


def teacher_logits():
    return doubles(seed=3)[0]


@pytest.mark.parametrize("temperature", [1, 4, 30])
@pytest.mark.parametrize("weight", [0, 0.7, 1])
def test_ard_against_a_loop(temperature, weight):
    clean, adversarial, y = doubles()
    teacher = teacher_logits()
    soft = mean(kl_loop(teacher / temperature, adversarial / temperature))
    hard = mean([-math.log(ps[label]) for ps, label in zip(softmaxes(clean), y.tolist(), strict=True)])
    expected = weight * temperature**2 * soft + (1 - weight) * hard
    assert ard(clean, adversarial, teacher, y, temperature=temperature, weight=weight).item() == close(expected)


def test_ard_is_by_default_the_teacher_alone_at_temperature_30():
    clean, adversarial, y = doubles()
    expected = 900 * mean(kl_loop(teacher_logits() / 30, adversarial / 30))
    assert ard(clean, adversarial, teacher_logits(), y).item() == close(expected)


def test_ard_of_a_high_temperature_is_a_squared_distance_of_centred_logits():
    clean, adversarial, y = doubles()
    gap = teacher_logits() - adversarial
    expected = (gap - gap.mean(1, keepdim=True)).square().mean(1).mean() / 2
    got = ard(clean, adversarial, teacher_logits(), y, temperature=1e4)
    assert got.item() == pytest.approx(expected.item(), rel=1e-3)


def test_rslad_against_a_loop():
    clean, adversarial, _ = doubles()
    teacher = teacher_logits()
    attacked, plain = mean(kl_loop(teacher, adversarial)), mean(kl_loop(teacher, clean))
    assert rslad(clean, adversarial, teacher).item() == close((5 * attacked + plain) / 6)
    assert rslad(clean, adversarial, teacher, share=0.25).item() == close((attacked + 3 * plain) / 4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    _, other, y = doubles()
    teacher = teacher_logits()
    assert ard(other, teacher + 3, teacher, y).item() == pytest.approx(0, abs=1e-9)
    assert rslad(teacher - 1, teacher + 3, teacher).item() == pytest.approx(0, abs=1e-12)
    assert rslad(other, teacher, teacher) > 0.1
    assert rslad(teacher, other, teacher) > 0.1


DISTILLATIONS = {
    "ard": lambda a, b, t, y: ard(a, b, t, y, temperature=2, weight=0.5),
    "rslad": lambda a, b, t, y: rslad(a, b, t),
}


@pytest.mark.parametrize("term", DISTILLATIONS.values(), ids=DISTILLATIONS)
def test_distillation_has_gradients_in_the_student_alone(term):
    clean, adversarial, y = doubles()
    teacher = teacher_logits().requires_grad_(True)
    inputs = (clean.requires_grad_(True), adversarial.requires_grad_(True))
    assert torch.autograd.gradcheck(lambda a, b: term(a, b, teacher.detach(), y), inputs)
    *student, none = torch.autograd.grad(term(*inputs, teacher, y), (*inputs, teacher), allow_unused=True)
    assert none is None
    assert all(gradient.abs().sum() > 0.1 for gradient in student)


EXTREMES = [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, -1e4], [0.0, 0.0, 0.0], [-1e4, -1e4, 1e4]]
TERMS = {
    "cross_entropy": lambda a, b, y: cross_entropy(b, y, smoothing=0.1),
    "binary_cross_entropy": lambda a, b, y: binary_cross_entropy(b, y),
    "divergence": lambda a, b, y: divergence(a, b),
    "boosted_cross_entropy": lambda a, b, y: boosted_cross_entropy(b, y),
    "trades": trades,
    "mart": mart,
    "ard": lambda a, b, y: ard(a, b, b.flip(0), y, weight=0.5),
    "rslad": lambda a, b, y: rslad(a, b, b.flip(0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("name", TERMS)
def test_losses_and_gradients_are_finite_at_extreme_logits(name, label, dtype):
    """Every extreme clean row beside every extreme adversarial row."""
    rows = torch.tensor(EXTREMES, dtype=dtype)
    clean, adversarial = rows.repeat(5, 1).requires_grad_(True), rows.repeat_interleave(5, 0).requires_grad_(True)
    loss = TERMS[name](clean, adversarial, torch.full((25,), label))
    gradients = torch.autograd.grad(loss, (clean, adversarial), allow_unused=True)
    assert loss.isfinite()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_the_gradient_of_boosted_cross_entropy_stays_at_a_certain_rival():
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss = boosted_cross_entropy(logits, torch.tensor([1]))
    assert loss.item() == pytest.approx(2e4)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, -2.0, 0.0]]))


def test_mixed_labels_are_refused_where_a_rival_is_sought():
    clean, adversarial, _ = doubles()
    message = r"expected labels \(n,\), got probabilities; use cross_entropy or trades for mixed labels"
    with pytest.raises(DataError, match=message):
        boosted_cross_entropy(adversarial, mixed_labels())
    with pytest.raises(DataError, match=message):
        mart(clean, adversarial, mixed_labels())


FORMS = pytest.mark.parametrize("form", ["batch", "sample"])
DISTANCES = pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])


@FORMS
@DISTANCES
def test_sar_is_zero_for_equal_logits_alone(form, distance):
    logits, _ = logits_and_labels()
    other, _ = logits_and_labels(seed=1)
    assert sar(logits, logits.clone(), form=form, distance=distance).item() == pytest.approx(0, abs=1e-6)
    assert sar(logits, other, form=form, distance=distance) > 0.1


@FORMS
@DISTANCES
def test_sar_has_gradients_on_both_sides(form, distance):
    clean, adversarial = (logits_and_labels(seed=seed)[0].requires_grad_(True) for seed in (0, 1))
    gradients = torch.autograd.grad(sar(clean, adversarial, form=form, distance=distance), (clean, adversarial))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@FORMS
@DISTANCES
def test_sar_of_no_images_is_nothing_with_a_way_back(form, distance):
    """Of a process that has no part of a small batch: the others wait for its backward pass."""
    clean, adversarial = (torch.zeros(0, 4, requires_grad=True) for _ in range(2))
    value = sar(clean, adversarial, form=form, distance=distance)
    value.backward()
    assert value == 0
    assert (clean.grad.shape, adversarial.grad.shape) == ((0, 4), (0, 4))


def test_sar_is_by_default_the_published_code():
    clean, adversarial = (logits_and_labels(seed=seed)[0] for seed in (0, 1))
    difference = torch.fft.fft2(clean) - torch.fft.fft2(adversarial)
    expected = (difference.real.abs().mean() + difference.imag.abs().mean()) / 2
    torch.testing.assert_close(sar(clean, adversarial), expected)
