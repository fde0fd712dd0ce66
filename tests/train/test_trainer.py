"""Training goes on where it stopped, keeps the best epoch, and says why it gives up."""

import threading
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from qrobust import devices, objectives
from qrobust.attacks import PgdConfig, StrongConfig
from qrobust.errors import CheckpointError, RunError
from qrobust.spectrum import low_pass, low_to_high
from qrobust.train import fit, listeners, methods, save_weights, trainer
from qrobust.train.checkpoint import load_state

from .helpers import are_equal, deeper, distilling, job, metrics, network, some_data, vit, weights_of
from .test_listeners import events

DATA = some_data()


def checkpoint_of(task):
    return task.folder / "checkpoint" / "last.safetensors"


def train(task, data=DATA):
    """The weights at the end, and the history."""
    model = network()
    state = fit(model, data, task)
    return weights_of(model), state.history


def interrupt(monkeypatch, name, call):
    """Stop with Ctrl-C at a call of a function that training uses: attacks while it learns and while it validates."""
    attacks, written = ((methods, "pgd"), (trainer, "strong")), ((listeners, "write_text"),)
    places, calls = {"attack": attacks, "write_text": written}.get(name, ((trainer, name),)), []

    def stopping(original):
        def counted(*arguments, **options):
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return counted

    for module, function in places:
        monkeypatch.setattr(module, function, stopping(getattr(module, function)))


def snapshots(monkeypatch):
    """The weights after every epoch, as validation sees them."""
    seen, original = [], trainer._Work._validate

    def validate(work, epoch):
        seen.append(weights_of(work.model))
        return original(work, epoch)

    monkeypatch.setattr(trainer._Work, "_validate", validate)
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: weights and metrics."""
    task = job(tmp_path_factory.mktemp("whole"), schedule={"sar": {}})
    return train(task)[0], metrics(task.folder)


# Five calls of pgd an epoch: three batches, then two of validation.
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("attack", 2),
        ("attack", 4),
        ("attack", 6),
        ("attack", 13),
        ("attack", 18),
        ("attack", 20),
        ("save_state", 3),
        ("write_text", 1),
        ("write_text", 4),
    ],
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, capfd, whole, name, call):
    task = job(tmp_path, schedule={"sar": {}})
    with monkeypatch.context() as patch:
        interrupt(patch, name, call)
        with pytest.raises(KeyboardInterrupt):
            train(task)
    assert "QM-32: stopped; the same command continues after the last whole epoch" in capfd.readouterr().err
    weights, _ = train(task)
    assert are_equal(weights, whole[0])
    assert metrics(tmp_path) == whole[1]


def test_a_transformer_s_training_is_interrupted(tmp_path, monkeypatch):
    """AdamW's moments and the warm-up go on where they stood."""
    schedule = {"optimizer": "adamw", "lr": 0.01, "shape": "cosine", "warmup": 1.5, "milestones": [], "epochs": 3}
    tasks = [job(tmp_path / name, schedule=schedule) for name in ("whole", "cut")]
    models = [vit() for _ in range(3)]
    fit(models[0], DATA, tasks[0])
    with monkeypatch.context() as patch:
        interrupt(patch, "attack", 7)
        with pytest.raises(KeyboardInterrupt):
            fit(models[1], DATA, tasks[1])
    fit(models[2], DATA, tasks[1])
    assert are_equal(weights_of(models[0]), weights_of(models[2]))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_interrupted_again_and_again(tmp_path, monkeypatch, whole):
    task = job(tmp_path, schedule={"sar": {}})
    for _ in range(3):
        with monkeypatch.context() as patch:
            interrupt(patch, "attack", 7)
            with pytest.raises(KeyboardInterrupt):
                train(task)
    weights, _ = train(task)
    assert are_equal(weights, whole[0])
    assert metrics(tmp_path) == whole[1]


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch, whole):
    task = job(tmp_path, schedule={"sar": {}})
    train(task)
    interrupt(monkeypatch, "attack", 1)
    assert are_equal(train(task)[0], whole[0])


def test_no_thread_is_left_behind(tmp_path, monkeypatch):
    before = threading.active_count()
    train(job(tmp_path, schedule={"epochs": 1}))
    interrupt(monkeypatch, "attack", 1)
    with pytest.raises(KeyboardInterrupt):
        train(job(tmp_path, schedule={"epochs": 2}))
    assert threading.active_count() == before


def test_the_seed_decides(tmp_path, whole):
    other, _ = train(job(tmp_path, schedule={"sar": {}}, seed=1))
    assert not are_equal(other, whole[0])


def test_a_record_an_epoch(whole):
    assert [record["epoch"] for record in whole[1]] == [1, 2, 3, 4]
    assert [record["lr"] for record in whole[1]] == pytest.approx([0.05, 0.05, 0.005, 0.005])
    names = {"epoch", "lr", "loss", "train_accuracy", "validation_clean", "validation_robust"}
    assert all(set(record) == names for record in whole[1])


def test_it_learns(tmp_path):
    _, history = train(job(tmp_path, schedule={"epochs": 12, "milestones": [], "lr": 0.3}))
    assert history[-1]["loss"] < history[0]["loss"] - 0.3
    assert max(record["validation_robust"] for record in history) > 0.8


# The best epoch


@pytest.mark.parametrize(
    ("robust", "clean", "best"),
    [
        ([0.2, 0.5, 0.1, 0.4], [0.9, 0.6, 0.9, 0.9], 2),
        ([0.5, 0.5, 0.1, 0.4], [0.6, 0.7, 0.9, 0.9], 2),
        ([0.5, 0.5, 0.1, 0.4], [0.7, 0.6, 0.9, 0.9], 1),
        ([0.5, 0.5, 0.5, 0.4], [0.6, 0.6, 0.6, 0.9], 3),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], 4),
        ([0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0], 4),
        ([None, 0.2, None, 0.1], [None, 0.5, None, 0.9], 2),
        ([None, 0.2, None, 0.3], [None, 0.5, None, 0.0], 4),
        ([None] * 4, [None] * 4, 4),
    ],
)
@pytest.mark.parametrize("method", ["at", "natural"])
def test_the_best_epoch_is_kept(tmp_path, monkeypatch, robust, clean, best, method):
    """The most robust one; of natural training, which is not robust at all, the one most often right when clean."""
    if method == "natural":
        robust, clean = clean, robust
    seen = []

    def validate(work, epoch):
        seen.append(weights_of(work.model))
        found = {"validation_robust": robust[epoch], "validation_clean": clean[epoch]}
        return {} if robust[epoch] is None else found

    monkeypatch.setattr(trainer._Work, "_validate", validate)
    for model in (network(), network(seed=1)):  # trained, and taken from the checkpoint
        state = fit(model, DATA, job(tmp_path, method=method))
        assert (state.best["model"]["epoch"], list(state.best)) == (best, ["model"])
        assert are_equal(weights_of(model), seen[best - 1])
        assert are_equal(state.best_of("model"), seen[best - 1])


def test_without_a_validation_split_the_last_epoch_is_kept(tmp_path, monkeypatch):
    seen = snapshots(monkeypatch)
    weights, history = train(job(tmp_path), some_data(validation=0))
    assert "validation_robust" not in history[-1]
    assert are_equal(weights, seen[-1])


def test_validation_every_third_epoch_and_the_last(tmp_path):
    _, history = train(job(tmp_path, validation={"every": 3, "steps": 1}))
    assert ["validation_robust" in record for record in history] == [False, False, True, True]


def test_validation_is_the_quick_cascade_within_the_steps_asked_for(tmp_path, monkeypatch):
    """Seeded alike in every epoch: with nothing learned, the robust accuracy cannot move."""
    seen, original = [], trainer.strong

    def recording(model, x, y, *, generator, **options):
        seen.append((options, torch.rand(3, generator=generator.clone_state()).tolist()))
        return original(model, x, y, generator=generator, **options)

    monkeypatch.setattr(trainer, "strong", recording)
    task, model = job(tmp_path, validation={"steps": 40}), network().eval()
    first, second = (trainer.accuracies(model, DATA.validation, task) for _ in range(2))
    assert first == second
    assert seen[0] == ({"threat": task.threat, "config": StrongConfig(quick=True, budget=81)}, seen[2][1])
    assert seen[0][1] != seen[1][1]


def test_a_validation_step_of_older_recipes_is_not_read(tmp_path):
    assert job(tmp_path, validation={"step_size": 0.02, "steps": 2}).training.validation.steps == 2


def test_accuracies_are_those_of_the_split(tmp_path):
    """Shares by hand, in the last of two batches too; the network ends in eval mode."""
    task, model, images = job(tmp_path, validation={"steps": 3}), network().train(), DATA.validation
    clean, robust = trainer.accuracies(model, images, task)
    assert not model.training
    with torch.no_grad():
        right = model(images.x.to(devices.device()) / 255).argmax(1).cpu() == images.y
    assert clean == pytest.approx(float(right.float().mean()))
    assert robust <= clean


# The last batch


def on_points():
    """A network whose batch-norm sees one value an image."""
    layers = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)]
    return devices.on_device(nn.Sequential(*layers))


def test_a_last_image_on_its_own_is_learned_from_too(tmp_path):
    """60 images by 59: one batch of all of them, in training as in the average's statistics."""
    schedule = {"batch_size": 59, "average": {"start": 0}}
    state = fit(on_points(), DATA, job(tmp_path, schedule=schedule))
    assert len(state.history) == 4
    assert int(state.best_of("average")["2.num_batches_tracked"]) == 1


def test_batches_of_one_image_are_refused_where_batch_norm_needs_more(tmp_path):
    message = "QM-32: expected more than one image a batch, for batch-norm over 1x1 maps, got one; raise batch_size"
    with pytest.raises(RunError, match=message):
        fit(on_points(), DATA, job(tmp_path, schedule={"batch_size": 1}))
    fit(network(), some_data(validation=0), job(tmp_path, schedule={"batch_size": 1, "epochs": 1}))  # 6x6 maps


# Methods


def test_natural_training_attacks_nothing(tmp_path, monkeypatch):
    interrupt(monkeypatch, "attack", 1)
    _, history = train(job(tmp_path, method="natural"), some_data(validation=0))
    assert len(history) == 4


def test_the_method_matters(tmp_path):
    natural, _ = train(job(tmp_path / "natural", method="natural"))
    adversarial, _ = train(job(tmp_path / "at", method="at"))
    assert not are_equal(natural, adversarial)


@pytest.mark.parametrize(("sar", "start"), [({"start": 0}, 0), ({"start": 1}, 1), ({}, 2), ({"start": 3}, 3)])
def test_alignment_changes_weights_from_its_first_epoch_on(tmp_path, monkeypatch, sar, start):
    seen = snapshots(monkeypatch)
    train(job(tmp_path / "plain"))
    train(job(tmp_path / "aligned", schedule={"sar": sar}))
    same = [are_equal(plain, aligned) for plain, aligned in zip(seen[:4], seen[4:], strict=True)]
    assert same == [epoch < start for epoch in range(4)]


def test_alignment_without_weight_changes_statistics_alone(tmp_path, monkeypatch):
    """The clean images pass through batch-norm once more, which moves its running statistics alone."""
    seen = snapshots(monkeypatch)
    train(job(tmp_path / "plain", schedule={"epochs": 1}, attack={"steps": 1, "mode": "train"}))
    aligned = {"epochs": 1, "sar": {"start": 0, "weight": 0}}
    train(job(tmp_path / "aligned", schedule=aligned, attack={"steps": 1, "mode": "train"}))
    differing = {name for name, value in seen[0].items() if not torch.equal(value, seen[1][name])}
    assert differing == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_settings_reach_attack_and_augmentation(tmp_path, monkeypatch):
    attacked, batched, pgd, batches = [], [], methods.pgd, trainer.epoch_batches

    def recording_pgd(model, x, y, *, start, **options):
        attacked.append({"moved": not torch.equal(start, x), **options})
        return pgd(model, x, y, start=start, **options)

    def recording_batches(*arguments, **options):
        batched.append(arguments[1:2] + arguments[4:])
        assert options == {"extra": None}
        return batches(*arguments, **options)

    monkeypatch.setattr(methods, "pgd", recording_pgd)
    monkeypatch.setattr(trainer, "epoch_batches", recording_batches)
    perturb = {"steps": 3, "step_size": 0.01, "random_start": False, "mode": "train", "keep": "best"}
    task = job(tmp_path, schedule={"epochs": 1}, attack=perturb, validation={"steps": 2})
    train(task)
    attacking = {"moved": False, "config": PgdConfig(steps=3, step_size=0.01, keep="best", training=True)}
    assert attacked == [{"threat": task.threat, **attacking}] * 3
    assert batched == [(20, 1, True, None)]


def test_every_epoch_has_its_own_order_and_noise(tmp_path, monkeypatch):
    seen, original = [], methods.pgd

    def recording(model, x, y, *, start, **options):
        seen.append((x, start - x))
        return original(model, x, y, start=start, **options)

    monkeypatch.setattr(methods, "pgd", recording)
    train(job(tmp_path, schedule={"epochs": 2}))
    for part in (0, 1):
        assert not torch.equal(seen[0][part], seen[3][part])


# Learning from a teacher


def test_a_teacher_reaches_every_step_and_is_left_alone(tmp_path):
    teacher, asked = network(width=5, seed=7).eval(), []
    teacher.register_forward_hook(lambda module, args, output: asked.append((len(args[0]), module.training)))
    before, model = weights_of(teacher), network()
    state = fit(model, DATA, distilling(job(tmp_path, schedule={"epochs": 2}), "rslad"), teacher=teacher)
    assert asked == [(20, False)] * 6
    assert are_equal(weights_of(teacher), before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())
    assert state.history[1]["loss"] < state.history[0]["loss"]  # a divergence, which labels know nothing of


# Masks


@pytest.mark.parametrize("fat", ["paper", "normalised"])
def test_masks_are_recorded_in_every_epoch(tmp_path, fat):
    """Of the layers behind FAT, as they stand at the epoch's end; for programs nested, for eyes by path."""
    model = deeper(fat)
    task = replace(job(tmp_path, schedule={"epochs": 2, "lr": 0.3}), tensorboard=True)
    history = fit(model, some_data(validation=0), task).history
    assert [record["masks"] for record in metrics(tmp_path)] == [record["masks"] for record in history]
    assert [list(record["masks"]) for record in history] == [["3"], ["3"]]
    last, top = history[-1]["masks"]["3"], {"paper": 1, "normalised": 2}[fat]
    assert 0 < last["min"] < last["mean"] < last["max"] < top + 1e-6
    assert history[0]["masks"] != history[1]["masks"]
    layer = model.get_submodule("3")
    mask = layer.parametrizations.weight[0].mask(layer.parametrizations.weight.original).detach()
    assert last["mean"] == pytest.approx(float(mask.mean()), abs=1e-6)
    assert last["std"] == pytest.approx(float(mask.std()), abs=1e-6)
    written = events(tmp_path)["masks/3/mean"]
    assert written == [(r["epoch"], pytest.approx(r["masks"]["3"]["mean"])) for r in history]


@pytest.mark.parametrize("fat", ["identity", "none"])
def test_without_masks_none_are_recorded(tmp_path, fat):
    state = fit(deeper(fat), some_data(validation=0), job(tmp_path, schedule={"epochs": 1}))
    assert "masks" not in state.history[0]
    assert "masks" not in metrics(tmp_path)[0]


# Low against high frequencies


@pytest.mark.parametrize("low_pass_to", [None, 3])
def test_the_frequency_ratio_is_logged_when_asked(tmp_path, low_pass_to):
    """Of the first activation on the first images, as they stand, filtered where the network learns on filtered ones;
    training itself does not change.
    """
    asked = {"method": "natural", "low_pass": low_pass_to}
    plain, silent = train(job(tmp_path / "plain", **asked), some_data(validation=0))
    model = network()
    history = fit(model, some_data(validation=0), job(tmp_path / "logged", log_frequency_ratio=True, **asked)).history
    assert all("frequency_ratio" not in record for record in silent)
    assert are_equal(weights_of(model), plain)
    x = DATA.train.x[:20].to(devices.device()) / 255
    x = x if low_pass_to is None else low_pass(x, low_pass_to).clamp(0, 1)
    with torch.no_grad():
        expected = low_to_high(model.eval()[:3](x)).mean()
    assert history[-1]["frequency_ratio"] == pytest.approx(float(expected), rel=1e-4)
    assert [record["frequency_ratio"] for record in metrics(tmp_path / "logged")] == [
        record["frequency_ratio"] for record in history
    ]


# Statistics that stand still


def test_statistics_are_frozen_between_epochs(tmp_path, monkeypatch):
    """From the epoch on that the schedule names, through validation and all; weights are trained on."""
    seen = snapshots(monkeypatch)
    train(job(tmp_path, schedule={"freeze_statistics": 2}))
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        values = [epoch[name] for epoch in seen]
        still = [torch.equal(*pair) for pair in pairwise(values)]
        assert still == [False, True, True]
    assert not any(torch.equal(seen[k]["0.weight"], seen[k + 1]["0.weight"]) for k in range(3))


# Refusals


def refusal(error, task, model=None):
    with pytest.raises(error) as caught:
        fit(model or network(), DATA, task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_recipe_is_refused(tmp_path):
    train(job(tmp_path, schedule={"epochs": 1}))
    before = checkpoint_of(job(tmp_path)).read_bytes()
    assert refusal(RunError, job(tmp_path, key="another")) == (
        f"expected training state of this recipe in {checkpoint_of(job(tmp_path))}, got another's; "
        f"give another --out or remove {tmp_path}"
    )
    assert checkpoint_of(job(tmp_path)).read_bytes() == before


def test_what_another_recipe_changed_is_named(tmp_path):
    """Also of a state that an older version wrote, once it was continued."""
    short = {"epochs": 1}
    train(job(tmp_path, schedule=short))
    train(replace(job(tmp_path, schedule=short), settings={"train": {"lr": 0.1}}))
    train(replace(job(tmp_path, schedule={"epochs": 2}), settings={"train": {"lr": 0.1}}))
    same = {"train": {"lr": 0.1, "a_key_that_came_later": None}}
    train(replace(job(tmp_path, key="of another form", schedule={"epochs": 2}), settings=same))
    other = replace(job(tmp_path, key="another"), settings={"train": {"lr": 0.05}})
    assert "got another's (train.lr: trained with 0.1, the recipe has 0.05); give" in refusal(RunError, other)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    task = job(tmp_path, schedule={"epochs": 1})
    train(task)
    whole_file = checkpoint_of(task).read_bytes()
    checkpoint_of(task).write_bytes(whole_file[:-5])
    assert "expected a whole checkpoint" in refusal(CheckpointError, task)
    save_weights(checkpoint_of(task), network(), {})
    assert "expected state in" in refusal(CheckpointError, task)
    checkpoint_of(task).write_bytes(whole_file)
    assert "expected weights of this network" in refusal(CheckpointError, task, network(width=5))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    original, calls = objectives.cross_entropy, []

    def failing(logits, y, **options):
        calls.append(1)
        return original(logits, y, **options) * (float("nan") if len(calls) == 8 else 1)

    monkeypatch.setattr(objectives, "cross_entropy", failing)
    task = job(tmp_path)
    assert refusal(RunError, task) == (
        "QM-32: expected a finite loss, got nan at epoch 3, batch 2, lr 0.005; lower lr (the checkpoint before stands)"
    )
    assert load_state(checkpoint_of(task)).epoch == 2
    monkeypatch.setattr(objectives, "cross_entropy", original)
    assert [record["epoch"] for record in train(task)[1]] == [1, 2, 3, 4]


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    """Diverged at the very last batch of an epoch: no loss has seen it yet."""
    task = job(tmp_path, schedule={"lr": 1e38, "batch_size": 60, "weight_decay": 100}, method="natural")
    assert refusal(RunError, task) == (
        "QM-32: expected finite weights, got NaN or infinity after epoch 1, lr 1e+38; "
        "lower lr (the checkpoint before stands)"
    )
    assert not checkpoint_of(task).exists()


def test_class_weights_reach_every_step(tmp_path):
    def trained(name, **training):
        model = network()
        fit(model, some_data(), job(tmp_path / name, schedule={"epochs": 1, "milestones": []}, **training))
        return weights_of(model)

    plain, ones, balanced = (
        trained("plain"),
        trained("ones", class_weights=[1, 1, 1]),
        trained("balanced", class_weights="balanced"),
    )  # of as many images a class
    for same in (ones, balanced):
        assert all(torch.allclose(same[name], value, atol=1e-6) for name, value in plain.items())
    assert not torch.allclose(trained("first", class_weights=[9, 1, 1])["5.bias"], plain["5.bias"], atol=1e-3)
