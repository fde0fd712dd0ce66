"""The stages in order, each leaving its result in the run folder, none done twice.

    RUN/recipe.toml                      resolved
    RUN/qm-N/train.json                  ← train, or quantize below 32 bits (also checkpoint/, metrics.jsonl, events)
    RUN/qm-N/model.safetensors
    RUN/qm-N/eval.json, eval.npz         ← evaluate
    RUN/qm-N/export.json, artifact/      ← export
    RUN/bench.json                       ← bench
    RUN/qm-N/check.json                  ← check
    RUN/qm-N/attack.json, attack.npz     ← attack_file, where the recipe has [attack]
    RUN/report.json, report.html, model-card.md

A stage's file holds a key: the digest of all settings that decide it. A file with another key is made anew,
but training is never thrown away: there another key is an error.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import data, distributed, machine, models, quant, recipe, runtime
from .attacks import Attack, named
from .bench import bench
from .deployed.attacking import Settings as AttackSettings
from .deployed.attacking import attack
from .deployed.material import SUITE, find_images, find_sources
from .deployed.serving import open_deployed
from .errors import RunError
from .evaluate import CHEAP, DOUBTS, Subject, evaluate, examine
from .export import Contents, Target, load_target, make_suite, optimised_ops, write_artifact
from .models.statistics import estimate_statistics
from .progress import note
from .recipe import Recipe
from .storage import digest, read_json, write_json, write_text
from .summary import conclude
from .threat import Threat
from .train import AVERAGE, METHODS, MODEL, Job, fit, load_weights, plain_images, read_metadata, save_weights

FLOAT = 32


class Run:
    """A recipe at work in a folder. averaged: use weight averages where there are some, deployed or not."""

    def __init__(self, settings: Recipe, folder: Path, *, averaged: bool = False) -> None:
        self.recipe, self.folder, self.averaged = settings, folder, averaged
        self.threat = Threat(settings.threat.norm, settings.threat.eps)
        self.target = load_target(settings.export.target)
        self.attacks = self._named(settings.evaluate.attacks)
        self.suite_attacks = self._named(settings.export.suite_attacks)
        self._named(settings.attack.attacks if settings.attack else ())  # a misspelt one is told before training
        self._networks: dict[int, nn.Module] = {}

    @classmethod
    def open(cls, folder: Path, *, averaged: bool = False) -> Run:
        """The run of a folder. Raises RunError if it is none."""
        path = folder / "recipe.toml"
        if not path.is_file():
            raise RunError(f"expected a run folder with recipe.toml, got {folder}; make one by qrobust run RECIPE")
        return cls(recipe.load(str(path)), folder, averaged=averaged)

    def all_stages(self) -> dict[str, Any] | None:
        """Everything, in order; returns the report. Of several processes the first goes on alone after evaluation."""
        self.train()
        for bits in self.recipe.bits:
            self.evaluate(bits)
        if not distributed.is_first():
            return None
        for bits in self.recipe.bits:
            self.export(bits)
        self.bench()
        for bits in self.recipe.bits:
            self.check(bits)
            self.attack_file(bits)
        return conclude(self.recipe, self.folder)

    def train(self) -> None:
        """Train the float network, then quantise width by width."""
        self._refuse_another_training()  # before anything in the folder changes
        self._refuse_unquantisable()
        distributed.wait()
        if distributed.is_first():
            write_text(self.folder / "recipe.toml", recipe.dump(self.recipe))
        for bits in self.recipe.bits:
            self._stage(self._at(bits) / "train.json", self.train_key(bits), partial(self._train, bits))
            distributed.wait()

    def evaluate(self, bits: int) -> None:
        """Attack the torch network."""
        settings = self.recipe.evaluate
        key = digest([self.train_key(bits), settings.model_dump(mode="json")])
        path = self._at(bits) / "eval.json"
        if self._done(path, key):
            return
        self.attack(bits, self.attacks, n=settings.n, path=path, key=key)
        if distributed.is_first():
            self._tell(path)

    def attack(
        self,
        bits: int,
        attacks: Sequence[Attack],
        *,
        n: int | None = None,
        seed: int | None = None,
        path: Path | None = None,
        thorough: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        """Evaluate a width and doubt the result; saved to `path`, with `more`, if given. Goes on where it stopped.

        thorough: all doubts, else the cheap ones.
        """
        chosen = self.recipe.seed if seed is None else seed
        state = path.with_suffix(".partial.npz") if path else None
        model, images, twin = self.network(bits), self.dataset.test, self.twin(bits)
        if twin is None:  # the float network itself: nothing to transfer from
            attacks = [attack for attack in attacks if attack.family != "transfer"] or attacks
        outcomes = evaluate(
            model,
            images,
            attacks=attacks,
            threat=self.threat,
            n=n,
            seed=chosen,
            batch_size=self.recipe.evaluate.batch_size,
            twin=twin,
            state=state,
            label=f"evaluate qm-{bits}",
        )
        some = images.take(slice(0, n))
        example = data.to_unit(some.take(slice(0, 1)).x, machine.device_of(model), channels_last=True)
        more["cost"] = quant.cost(model, example).to_dict()
        others = [self.network(width) for width in self.recipe.bits if width not in (bits, FLOAT)] if thorough else []
        if distributed.is_first():
            subject = Subject(model, some, self.threat, twin=twin, others=others, seed=chosen)
            found = examine(subject, DOUBTS if thorough else CHEAP)
            more |= {"doubts": found.measured, "flags": [flag.to_dict() for flag in found.flags]}
            if path is not None:
                outcomes.save(path, **more)
        if state is not None:
            distributed.own(state).unlink(missing_ok=True)
        distributed.wait()
        return outcomes.to_dict() | more

    def export(
        self, bits: int, target: Target | None = None, folder: Path | None = None, input: str | None = None
    ) -> Path:
        """Write the artifact of a width; returns its folder. target, input: None for the recipe's."""
        chosen, images_as = target or self.target, input or self.recipe.export.input
        place = folder or self._at(bits) / "artifact"
        before = {k: v for k, v in read_json(self._at(bits) / "eval.json").items() if k != "key"}
        key = digest([self._export_key(bits, chosen), images_as])
        record = place.with_name(f"{place.name}.json") if folder else self._at(bits) / "export.json"
        if place.is_dir() and self._done(record, key):
            return place
        images = self.dataset.test.take(slice(0, self.recipe.export.suite_n or self.recipe.evaluate.n))
        suite = make_suite(
            self.network(bits),
            images,
            attacks=self.suite_attacks,
            threat=self.threat,
            seed=self.recipe.seed,
            twin=self.twin(bits),
        )
        contents = Contents(
            name=f"{self.recipe.name}-qm-{bits}",
            bits=bits,
            seed=self.recipe.seed,
            threat=self.threat,
            recipe=self.recipe.model_dump(mode="json", exclude_none=True),
            suite=suite,
            before=before,
            input=images_as,
        )
        write_artifact(place, self.network(bits), self.dataset, chosen, contents)
        ops = optimised_ops(place / "model.onnx", chosen)
        write_json(record, {"key": key, "target": chosen.name, "optimised_ops": dict(ops)})
        self._tell(record)
        return place

    def bench(self) -> None:
        """Time all artifacts in one run."""
        settings = self.recipe.bench
        key = digest([settings.model_dump(mode="json"), [self._export_key(b, self.target) for b in self.recipe.bits]])
        artifacts = [self._at(bits) / "artifact" for bits in self.recipe.bits]
        self._stage(
            self.folder / "bench.json",
            key,
            lambda: bench(
                [runtime.Artifact.load(path) for path in artifacts],
                batches=settings.batches,
                threads=settings.threads,
                seconds=settings.seconds,
            ),
        )

    def check(self, bits: int) -> None:
        """Check the artifact as a device would."""
        artifact = self._at(bits) / "artifact"
        key = digest(["check", self._export_key(bits, self.target)])
        self._stage(
            self._at(bits) / "check.json",
            key,
            lambda: runtime.check(runtime.Artifact.load(artifact)).to_dict(),
        )

    def attack_file(self, bits: int) -> None:
        """Attack the artifact itself, white-box, if the recipe says so; what a user's own attack on it left stands."""
        settings, artifact, path = self.recipe.attack, self._at(bits) / "artifact", self._at(bits) / "attack.json"
        if settings is None:
            return
        key = digest(["attack", self._export_key(bits, self.target), settings.model_dump(mode="json")])
        deployed = open_deployed(artifact)
        if path.exists():
            found = read_json(path)
            if "key" not in found and found.get("artifact", {}).get("sha256") == deployed.sha256:
                note(f"{path.relative_to(self.folder)}: made by qrobust attack, stands")
                return
        if self._done(path, key):
            return
        sources = find_sources(deployed)
        chosen = AttackSettings(settings.attacks, settings.n, self.recipe.seed, sources=sources)
        with distributed.alone():  # the other processes ended after evaluation
            attack(deployed, find_images(deployed), chosen, path, data=SUITE, key=key)
        self._tell(path)

    @cached_property
    def dataset(self) -> data.Dataset:
        """The images, read once, when a stage needs them."""
        table = self.recipe.data.model_dump(exclude={"crop", "flip"})
        found = data.load(data.DataSettings(**table, seed=self.recipe.seed))
        record = self._at(FLOAT) / "train.json"
        if record.exists() and read_json(record)["data_fingerprint"] != found.fingerprint:
            raise RunError(
                f"expected the images that {self.folder} was trained on, got others (fingerprint "
                f"{found.fingerprint[:12]}); give the same data, or another --out"
            )
        return found

    def network(self, bits: int) -> nn.Module:
        """The trained network of a width, on the device: its weight average where the recipe deploys that."""
        if bits not in self._networks:
            model = self.untrained(bits)
            load_weights(self._weights(bits, self._deployed(bits)), model)
            self._networks[bits] = machine.placed(model).eval()
        return self._networks[bits]

    def twin(self, bits: int) -> nn.Module | None:
        """The float network that a quantised one was made from; None for the float one itself."""
        return None if bits == FLOAT else self.network(FLOAT)

    def train_key(self, bits: int) -> str:
        """Digest of all that decides a width's weights."""
        tables = self.recipe.model_dump(mode="json", include={"model", "threat", "train", "seed"})
        images = self.recipe.data.model_dump(mode="json", exclude={"root", "download", "cache"})
        key = digest([tables, images, self.recipe.model.options])
        patterns = list(self.recipe.quant.layers) if self.recipe.quant else []  # a digest drops their order
        for width in self._widths_to(bits):
            key = digest([key, width, self.recipe.model_dump(mode="json", include={"quant"}), patterns])
        return key

    def _train(self, bits: int) -> dict[str, Any]:
        started = time.perf_counter()
        model = machine.placed(self._start(bits))
        job = Job(
            label=f"train qm-{bits}" if bits == FLOAT else f"quantize qm-{bits}",
            key=self.train_key(bits),
            folder=self._at(bits),
            schedule=self._schedule(bits),
            training=self._training(bits),
            data=self.recipe.data,
            threat=self.threat,
            seed=self.recipe.seed,
            precision=(self.recipe.train if bits == FLOAT or not self.recipe.quant else self.recipe.quant).precision,
        )
        teacher = self.network(FLOAT) if METHODS[job.training.method].teacher else None
        state = fit(model, self.dataset, job, teacher=teacher)
        for name in state.best:
            model.load_state_dict(state.best_of(name))
            if job.schedule.estimate_statistics:
                estimate_statistics(model, plain_images(self.dataset.train, job))
            if isinstance(model, fx.GraphModule):
                quant.round_biases(model)
            if distributed.is_first():
                kept = quant.fold_fat(copy.deepcopy(model)) if bits == FLOAT else model
                save_weights(self._weights(bits, name), kept, {"key": job.key, "bits": bits})
        distributed.wait()
        return {
            "bits": bits,
            "epochs": state.epoch,
            "best": state.best,
            "seconds": round(time.perf_counter() - started, 1),
            "data_fingerprint": self.dataset.fingerprint,
            "versions": machine.versions(),
            "hardware": machine.hardware(),
        }

    def _start(self, bits: int) -> nn.Module:
        """The network that training of a width starts from."""
        if bits == FLOAT:
            model, settings = machine.placed(self.untrained(FLOAT)), self.recipe.train
            if settings.fat == "none":
                return model
            images = self._calibration(settings.batch_size)  # behind FAT, batch-norm's first statistics are far off
            return quant.quantize(model, FLOAT, fat=settings.fat, calibration=images)
        assert self.recipe.quant is not None
        images = self._calibration(self.recipe.quant.calibration)
        before = self.recipe.bits[self.recipe.bits.index(bits) - 1]
        if before == FLOAT:
            return self._quantized(self.network(FLOAT), bits, images)
        return quant.requantize(self.network(before), bits, calibration=images)

    def untrained(self, bits: int) -> nn.Module:
        """The network of a width before training, on the CPU; quantisers not yet placed."""
        channels = self.dataset.shape[0]
        with machine.own_randomness():
            torch.manual_seed(self.recipe.seed)
            model = models.build(
                self.recipe.model.name,
                in_channels=channels,
                classes=len(self.dataset.classes),
                **self.recipe.model.options,
            )
        return model if bits == FLOAT else self._quantized(model, bits, None)

    def _quantized(self, model: nn.Module, bits: int, calibration: tuple[Tensor, ...] | None) -> nn.Module:
        settings = self.recipe.quant
        assert settings is not None
        quantized = quant.quantize(
            model,
            {quant.EVERY: bits, **settings.layers} if settings.layers else bits,
            fat=settings.fat,
            edge_layers=settings.edge_layers,
            per_channel=settings.per_channel,
            activation_bits=settings.activation_bits,
            calibration=calibration,
        )
        quant.set_straight_through(quantized, settings.straight_through)
        return quantized

    def _calibration(self, count: int) -> tuple[Tensor, ...]:
        images = self.dataset.train.take(slice(0, count))
        return (data.to_unit(images.x, machine.device(), channels_last=True),)

    def _stage(self, path: Path, key: str, work: Callable[[], dict[str, Any]]) -> None:
        if not self._done(path, key):
            result = {"key": key, **work()}
            if distributed.is_first():
                write_json(path, result)
                self._tell(path)

    def _refuse_another_training(self) -> None:
        """Raises RunError if a width was trained, or is in training, with other settings."""
        for bits in self.recipe.bits:
            record, state = self._at(bits) / "train.json", self._at(bits) / "checkpoint" / "last.safetensors"
            if record.exists():
                found = read_json(record).get("key")
            else:
                found = read_metadata(state).get("key") if state.exists() else None
            if found not in (None, self.train_key(bits)):
                raise RunError(
                    f"expected a run of this recipe in {self.folder}, got one trained with other settings "
                    "(data, model, threat, train, quant or seed differ); give another --out or remove it"
                )

    def _refuse_unquantisable(self) -> None:
        """Raises ModelError for what quantisation would refuse of the network, before the float one takes its hours."""
        missing = [b for b in self.recipe.bits if b != FLOAT and not (self._at(b) / "train.json").exists()]
        if missing:  # one tells for all: patterns and modules are the same
            self.untrained(missing[0])

    def _done(self, path: Path, key: str) -> bool:
        """Whether a stage's file is there and of these settings."""
        if not path.exists():
            return False
        if read_json(path).get("key") == key:
            note(f"{path.relative_to(self.folder) if path.is_relative_to(self.folder) else path}: done before")
            return True
        return False

    def _tell(self, path: Path) -> None:
        note(f"{path.relative_to(self.folder) if path.is_relative_to(self.folder) else path}: written")

    def _training(self, bits: int) -> recipe.Training:
        """How a width is trained: as the float network, but for a method of its own."""
        own = self.recipe.quant.method if bits != FLOAT and self.recipe.quant is not None else None
        return self.recipe.train if own is None else self.recipe.train.model_copy(update={"method": own})

    def _schedule(self, bits: int) -> recipe.Schedule:
        schedule = self.recipe.train if bits == FLOAT else self.recipe.quant
        assert schedule is not None
        return schedule

    def _deployed(self, bits: int) -> str:
        average = self._schedule(bits).average
        return AVERAGE if average is not None and (average.deploy or self.averaged) else MODEL

    def has_average(self, bits: int) -> bool:
        """Whether training of a width averages weights."""
        return self._schedule(bits).average is not None

    def _weights(self, bits: int, name: str) -> Path:
        return self._at(bits) / f"{name}.safetensors"

    def _at(self, bits: int) -> Path:
        return self.folder / f"qm-{bits}"

    def _widths_to(self, bits: int) -> Iterator[int]:
        return (width for width in self.recipe.bits if FLOAT > width >= bits)

    def _export_key(self, bits: int, target: Target) -> str:
        parts = [self.recipe.evaluate, self.recipe.export, target]
        return digest([self.train_key(bits), [part.model_dump(mode="json") for part in parts]])

    def _named(self, names: tuple[str, ...]) -> tuple[Attack, ...]:
        return tuple(named(name, self.threat) for name in names)
