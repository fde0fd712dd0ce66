"""Accuracies over all images, clean and attacked, from which nothing is left out."""

import io
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qrobust import devices
from qrobust.attacks import Attack, PgdConfig, gaussian_noise, named, pgd
from qrobust.data import Images, stratified_order
from qrobust.errors import DataError, ModelError, RecipeError
from qrobust.evaluation import evaluate, judge
from qrobust.threat import Threat

THREAT = Threat("linf", 8 / 255)


def some_images(n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return Images(x, torch.arange(n) % 3)


def greys(*levels):
    """Images of one colour, labelled by their brightness."""
    x = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return Images(x.contiguous(), (torch.tensor(levels) > 127).long())


def network():
    """A steep random network: right for some images, and some of those fall to small attacks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    return devices.on_device(model)


def attacks(*names):
    return [named(name, THREAT) for name in names]


def test_a_threat_is_no_text():
    with pytest.raises(RecipeError, match=r"expected a Threat, got 'linf'; pass qrobust\.Threat"):
        evaluate(network(), some_images(), attacks=["fgsm"], threat="linf")


def run(*names, images=None, **options):
    images = some_images() if images is None else images
    return evaluate(network(), images, attacks=attacks(*names), threat=THREAT, **options)


@dataclass(frozen=True)
class Scripted(Attack):
    """Records its calls and the seeds of their generators; returns inverted images, far outside the threat."""

    family: str = "scripted"
    seeds: list[int] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)

    def run(self, scene, x, y, generator, part=""):
        assert not scene.model.training
        self.seeds.append(generator.initial_seed())
        self.calls.append((part, len(x)))
        return 1 - x


class Brightness(nn.Module):
    """Label 1 for bright images, 0 for dark ones."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def test_every_image_counts_once_whatever_the_batch():
    whole, parts = (run("fgsm", batch_size=size) for size in (30, 7))
    assert (whole.n, len(whole.correct["fgsm"])) == (30, 30)
    for name in ("clean", "fgsm"):
        assert np.array_equal(whole.correct[name], parts.correct[name])


def test_clean_accuracy_is_the_plain_one():
    images, model = some_images(), network().eval()
    x = (images.x / 255).to(devices.device())
    right = (model(x).argmax(1).cpu() == images.y).numpy()
    assert np.array_equal(run("gn").correct["clean"], right)


def test_attacks_are_projected_and_noise_is_clipped():
    """A bounded attack that inverts every image gains what the threat allows, an unbounded one all."""
    images = greys(10, 240)
    both = [Scripted("bounded"), Scripted("free", bounded=False)]
    found = evaluate(Brightness(), images, attacks=both, threat=THREAT)
    assert found.correct["bounded"].tolist() == [True, True]
    assert found.correct["free"].tolist() == [False, False]
    assert found.worst_case().tolist() == [True, True]


def test_n_images_are_a_stratified_choice():
    """Of data in class order, of which the first would be of one class."""
    images = some_images()
    in_order = images.take(images.y.argsort(stable=True))
    few, fewer = (run("fgsm", images=in_order, n=n, seed=2) for n in (12, 6))
    assert few.n == 12
    assert few.indices == stratified_order(in_order.y, seed=2)[:12].tolist()
    assert in_order.y[few.indices].bincount().tolist() == [4, 4, 4]
    assert few.indices[:6] == fewer.indices
    chosen = run("fgsm", images=in_order.take(few.indices), seed=2)
    assert np.array_equal(few.correct["fgsm"], chosen.correct["fgsm"])
    assert few.images == chosen.images


@pytest.mark.parametrize("n", [None, 30])
def test_all_images_stay_in_their_order(n):
    whole = run("fgsm", n=n)
    assert (whole.indices, whole.to_dict()["indices"]) == (None, None)
    assert np.array_equal(whole.correct["clean"], run("fgsm").correct["clean"])


def test_images_and_attacks_as_users_have_them():
    images, expected = some_images(), run("fgsm", "pgd-2")
    x, y = images.x.numpy() / 255, images.y.numpy().astype(np.int32)
    loader = DataLoader(TensorDataset(torch.tensor(x).float(), images.y), batch_size=7)
    for given in ((x, y), (x.tolist(), y.tolist()), loader):
        assert same(expected, evaluate(network(), given, attacks=["fgsm", "pgd-2"], threat=THREAT))
    assert list(evaluate(network(), (x, y), attacks="pgd-2", threat=THREAT).correct) == ["clean", "pgd-2"]


def test_accuracy_by_class_is_that_of_the_chosen_images():
    """Those of n = 12, not of all 30."""
    images = some_images()
    found = run("fgsm", "gn", n=12, seed=2)
    y, per_class = images.y[found.indices].numpy(), found.to_dict()["per_class"]
    assert per_class["n"] == [4, 4, 4]
    assert per_class["clean"] == [found.correct["clean"][y == k].mean() for k in range(3)]
    assert per_class["worst_case"] == [found.worst_case()[y == k].mean() for k in range(3)]


def test_labels_that_the_network_has_no_class_for_are_refused():
    """Else they would count as wrong, and their images never be attacked."""
    images = some_images()
    images.y[-1] = 3
    with pytest.raises(DataError, match=r"expected labels in \[0, 2\], got 3; number the classes from 0"):
        run("fgsm", images=images, batch_size=7)


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_numbers(caller):
    expected = run("pgd-2", "cw-inf-2:keep=best")
    with caller():
        found = run("pgd-2", "cw-inf-2:keep=best")
    assert same(expected, found)
    assert expected.worst_case().mean() < expected.correct["clean"].mean()


def test_what_stands_for_the_targeted_loss_of_few_classes_is_said(capsys):
    run("fgsm")
    assert "apgd-t" not in capsys.readouterr().err
    run("apgd-t", n=3)
    assert "apgd-t: ascends the margin of 3 classes; its own loss needs 4" in capsys.readouterr().err


@pytest.mark.parametrize("n", [31, 0, -1])
def test_an_impossible_n_is_refused(n):
    with pytest.raises(DataError) as caught:
        run("fgsm", n=n)
    assert str(caught.value) == f"expected n in [1, 30], as many test images as there are, got {n}; change it"


def test_no_images_are_refused():
    with pytest.raises(DataError, match="expected at least one image, got none; give some"):
        run("fgsm", images=some_images().take(slice(0, 0)))


def test_no_attack_is_refused():
    with pytest.raises(RecipeError) as caught:
        run()
    text = "expected at least one attack, got none; a clean accuracy says nothing of robustness"
    assert str(caught.value) == text


def test_the_seed_decides():
    first, again = (run("gn", "pgd-2", seed=3) for _ in range(2))
    assert first.correct.keys() == {"clean", "gn", "pgd-2"}
    for name, mask in first.correct.items():
        assert np.array_equal(mask, again.correct[name])


def test_every_attack_and_batch_has_a_stream_of_its_own():
    def seeds(order, seed):
        scripted = [Scripted(name, bounded=False) for name in order]
        evaluate(network(), some_images(), attacks=scripted, threat=THREAT, seed=seed, batch_size=10)
        return {attack.name: attack.seeds for attack in scripted}

    first = seeds("ab", seed=0)
    assert first == seeds("ba", seed=0)
    drawn = [*first["a"], *first["b"], *seeds("ab", seed=1)["a"]]
    assert len(drawn) == len(set(drawn)) == 9


def test_what_is_wrong_when_clean_is_wrong_under_every_bound_and_costs_nothing():
    """The third image is labelled wrongly; the attack that inverts would turn it right if it had no bound."""
    images = greys(10, 240, 20, 230)
    images.y[2] = 1
    bounded, free = Scripted("bounded"), Scripted("free", bounded=False)
    found = evaluate(Brightness(), images, attacks=[bounded, free], threat=THREAT)
    assert found.correct["clean"].tolist() == [True, True, False, True]
    assert found.correct["bounded"].tolist() == [True, True, False, True]
    assert found.correct["free"].tolist() == [False, False, True, False]
    assert (bounded.calls, free.calls) == ([("", 3)], [("", 4)])


def test_bounded_attacks_are_never_better_than_clean_and_noise_may_be():
    found = run("fgsm", "gn:std=1/2")
    clean = found.correct["clean"]
    assert not (found.correct["fgsm"] & ~clean).any()
    assert (found.correct["gn:std=1/2"] & ~clean).any()


def test_batches_hold_what_is_right_when_clean():
    """An attack's numbers, made again by hand from batches of the images that count."""
    images, model = some_images(), network().eval()
    found = run("pgd-3", batch_size=4)
    x, y = (images.x / 255).to(devices.device()), images.y.to(devices.device())
    (right,) = np.nonzero(found.correct["clean"])
    expected = np.zeros(30, bool)
    for start in range(0, len(right), 4):
        which = right[start : start + 4]
        generator = devices.generator(0, "pgd-3", "", start)
        config = PgdConfig(steps=3, step_size=THREAT.eps / 4)
        x_adv = pgd(model, x[which], y[which], threat=THREAT, config=config, generator=generator)
        expected[which] = judge(model, x[which], y[which], x_adv, THREAT).cpu().numpy()
    assert len(right) > 8
    assert np.array_equal(found.correct["pgd-3"], expected)


@dataclass(frozen=True)
class Last(Scripted):
    """Each part inverts the last image that it is given."""

    def run(self, scene, x, y, generator, part=""):
        super().run(scene, x, y, generator, part)
        return torch.cat([x[:-1], 1 - x[-1:]])


def test_a_part_sees_what_the_parts_before_left_right():
    near = Threat("linf", 1.0)
    attack = Last("parts", parts=("first", "second", "third"))
    found = evaluate(Brightness(), greys(10, 240, 20, 230, 30), attacks=[attack], threat=near, batch_size=2)
    assert found.correct["parts"].tolist() == [False] * 5
    assert attack.calls == [("first", 2), ("first", 2), ("first", 1), ("second", 2), ("third", 1)]
    assert len(set(attack.seeds)) == 5


class Stopped(Exception):
    """Someone pulled the plug."""


@dataclass(frozen=True)
class Counting(Attack):
    """Noise that counts its batches, and stops at the one of that number."""

    family: str = "counting"
    stop_at: int | None = None
    sizes: list[int] = field(default_factory=list)

    def run(self, scene, x, y, generator, part=""):
        if len(self.sizes) == self.stop_at:
            raise Stopped
        self.sizes.append(len(x))
        return gaussian_noise(x, std=0.3, generator=generator)


@pytest.fixture
def eager(monkeypatch):
    """The state is written after every batch."""
    monkeypatch.setattr("qrobust.evaluation.journal.SAVE_EVERY", 0.0)


def counted(stop_at=None, *, state=None, model=None, images=None, **options):
    """Outcomes, None if stopped, and the batches of two attacks, of which the second may stop."""
    first = Counting("first", bounded=False)
    second = Counting("second", bounded=False, stop_at=stop_at, parts=("one", "two"))
    options = {"threat": Threat("linf", 1.0), "seed": 4, "batch_size": 7} | options
    images = some_images() if images is None else images
    try:
        found = evaluate(model or network(), images, attacks=[first, second], state=state, **options)
    except Stopped:
        found = None
    return found, len(first.sizes), len(second.sizes)


def same(first, second):
    return all(np.array_equal(mask, second.correct[name]) for name, mask in first.correct.items())


@pytest.mark.parametrize("stop_at", [0, 2, 5])
def test_a_stopped_evaluation_goes_on_where_it_was(eager, tmp_path, stop_at):
    state = tmp_path / "state.npz"
    whole, *calls = counted()
    total = calls[1]
    assert total > 5
    assert counted(stop_at, state=state) == (None, 5, stop_at)
    found, *calls = counted(state=state)
    assert calls == [0, total - stop_at]
    assert same(whole, found)
    again, *calls = counted(state=state)
    assert calls == [0, 0]
    assert same(whole, again)


def test_a_state_is_not_written_with_every_batch(tmp_path):
    counted(state=tmp_path / "state.npz")
    assert not (tmp_path / "state.npz").exists()  # done in less than the seconds between two


OTHERS = {
    "seed": lambda: {"seed": 5},
    "batch size": lambda: {"batch_size": 8},
    "threat": lambda: {"threat": Threat("linf", 0.5)},
    "norm": lambda: {"threat": Threat("l2", 1.0)},
    "n": lambda: {"n": 29},
    "images": lambda: {"images": some_images(seed=1)},
    "labels": lambda: {"images": Images(some_images().x, 2 - some_images().y)},
    "network": lambda: {"model": moved(network())},
    "float model": lambda: {"float_model": network()},
    "forward pass": lambda: {"model": Signed(1)},
    "sign": lambda: {"model": Signed(-1)},
    "backward pass": lambda: {"model": Reversed()},
}


class Signed(nn.Module):
    """A network times a number that is in no state."""

    def __init__(self, sign):
        super().__init__()
        self.model, self.sign = network(), sign

    def forward(self, x):
        return self.sign * self.model(x)


class Reversed(nn.Sequential):
    """The same logits, the opposite gradient."""

    def __init__(self):
        super().__init__(*network())

    def forward(self, x):
        logits = super().forward(x)
        return 2 * logits.detach() - logits


@pytest.mark.parametrize(("first", "second"), [(1, -1), (1, 100)])
def test_a_state_of_equal_weights_is_not_one_of_equal_networks(eager, tmp_path, first, second):
    state = tmp_path / "state.npz"
    counted(state=state, model=Signed(first))
    found, *calls = counted(state=state, model=Signed(second))
    whole, *anew = counted(model=Signed(second))
    assert calls == anew
    assert same(whole, found)


def moved(model):
    """The network with its running statistics changed, its parameters not."""
    model[1].running_mean += 0.1
    return model


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_state_of_another_evaluation_is_begun_anew(eager, tmp_path, other):
    state = tmp_path / "state.npz"
    counted(state=state)
    whole, *calls = counted(**other())
    found, *anew = counted(state=state, **other())
    assert anew == calls
    assert same(whole, found)
    _, *again = counted(state=state, **other())  # and the file is now of these
    assert again == [0, 0]


def test_a_state_of_other_attack_settings_is_begun_anew(eager, tmp_path):
    state = tmp_path / "state.npz"
    weak, strong = (Counting("one", settings={"std": std}, bounded=False) for std in (0.1, 0.2))
    for attack in (weak, strong, weak):
        evaluate(network(), some_images(), attacks=[attack], threat=THREAT, state=state)
    assert (len(weak.sizes), len(strong.sizes)) == (2, 1)


CORRUPT = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no archive"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "changed": lambda path: path.write_bytes(path.read_bytes().replace(b"\x01", b"\x00")),
    "one array": lambda path: path.write_bytes(_one_array()),
    "without a key": lambda path: np.savez(path, clean=np.zeros(30)),
    "another value": lambda path: _forged(path, lambda array: np.full_like(array, 2)),
    "other sizes": lambda path: _forged(path, lambda array: array[:-1]),
    "another type": lambda path: _forged(path, lambda array: array.astype(np.int64)),
    "floats": lambda path: _forged(path, lambda array: array * 1.0),
}


def _forged(path, change):
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{name: change(array) if "/" in name else array for name, array in arrays.items()})


def test_what_a_state_says_of_clean_images_is_not_believed(eager, tmp_path):
    state = tmp_path / "state.npz"
    whole, *_ = counted(state=state)
    with np.load(state) as stored:
        arrays = dict(stored)
    np.savez(state, **arrays, **{"clean/": np.ones(30, np.int8)})
    found, *_ = counted(state=state)
    assert same(whole, found)
    assert not whole.correct["clean"].all()


def _one_array():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("spoil", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_state_is_begun_anew(eager, tmp_path, spoil):
    state = tmp_path / "state.npz"
    whole, *calls = counted(state=state)
    spoil(state)
    found, *anew = counted(state=state)
    assert anew == calls
    assert same(whole, found)


class Returning(nn.Module):
    """What a network gives, made into something else."""

    def __init__(self, change):
        super().__init__()
        self.model, self.change = network(), change

    def forward(self, x):
        return self.change(self.model(x))


REFUSED = {
    "probabilities": (lambda z: z.softmax(1), "expected logits, got probabilities (rows sum to 1); return what"),
    "percent": (lambda z: z.softmax(1) * 100, "expected logits, got probabilities (rows sum to 100); return what"),
    "one logit": (lambda z: z[:, :1], "expected logits of two classes or more, got 1; return one a class: torch.cat("),
    "tuple": (lambda z: (z, None), "expected logits of shape (30, classes), got tuple; return the logits alone"),
    "NaN": (lambda z: z * float("nan"), "expected finite logits, got NaN or infinity; the network has diverged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_logits_is_refused_before_any_attack(name):
    change, text = REFUSED[name]
    attack = Scripted("a")
    with pytest.raises(ModelError) as caught:
        evaluate(Returning(change), some_images(), attacks=[attack], threat=THREAT)
    assert str(caught.value).startswith(text)
    assert not attack.calls


@pytest.mark.parametrize("shape", [(6, 6, 3), (3, 9, 9)], ids=["channels last", "another size"])
def test_images_that_the_network_does_not_take_are_told_in_one_line(shape):
    images = Images(torch.zeros(8, *shape, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    message = r"^expected a network that takes images \(8, .*\) \(n, c, h, w\), got: .*; pass its own size$"
    with pytest.raises(ModelError, match=message):
        run("fgsm", images=images)
