"""The stages of a run in order, none done twice: see `folder` for what each leaves, `stages` for when it is done.

train ─▶ quantize, width by width ─▶ evaluate ─▶ export ─▶ bench ─▶ check ─▶ attack the file ─▶ report
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from .. import data, devices, distributed, quant, recipe, runtime
from ..attacks import Attack, named
from ..bench import bench
from ..deployed.attack import Settings as AttackSettings
from ..deployed.attack import attack, default_attacks
from ..deployed.model import SUITE, Deployed, find_images, find_sources, open_deployed
from ..errors import RunError
from ..evaluation import CHEAP, DOUBTS, Outcomes, Subject, evaluate, examine
from ..export.artifact import Contents, make_suite, write_artifact
from ..export.sessions import optimised_ops
from ..export.target import Target, load_target
from ..progress import note
from ..recipe import Recipe
from ..storage import read_json, write_json, write_text
from ..threat import Threat
from .folder import FLOAT, RunFolder, judged, locked
from .networks import Networks
from .preflight import check_provider, preflight
from .results import results
from .stages import Stage, without_key
from .training import TrainStage

Record = dict[str, Any]
MOST_DOUBTED = 200  # images; the first of those that were evaluated


class Run:
    """A recipe at work in a folder. averaged: use weight averages where there are some, deployed or not."""

    def __init__(self, settings: Recipe, folder: Path, *, averaged: bool = False) -> None:
        self.recipe, self.folder, self.files = settings, folder, RunFolder(folder)
        self.threat = Threat(settings.threat.norm, settings.threat.eps)
        self.target = load_target(settings.export.target)
        self.networks = Networks(settings, self.files, averaged=averaged)

    @classmethod
    def open(cls, folder: Path, *, averaged: bool = False) -> Run:
        """The run of a folder. Raises RunError if it is none."""
        return cls(recipe.load(str(RunFolder.expect(folder).recipe)), folder, averaged=averaged)

    def expect_width(self, bits: int) -> int:
        """A width of this run. Raises RunError for another."""
        if bits not in self.recipe.bits:
            raise RunError(f"expected a width of {list(self.recipe.bits)}, got qm-{bits}; name one of the run's")
        return bits

    def all_stages(self) -> Record | None:
        """Everything, in order; returns the report. Of several processes the first goes on alone after evaluation."""
        if self._missing:
            check_provider(self.target)
        self._preflight()
        with self._alone():
            self._train()
            for bits in self.recipe.bits:
                self.evaluate(bits)
            if not distributed.is_first():
                return None
            with distributed.alone():
                return self._deployed()

    def _deployed(self) -> Record:
        """The stages on files; returns the report."""
        for bits in self.recipe.bits:
            self.export(bits)
        self.bench()
        for bits in self.recipe.bits:
            self.check(bits)
            self.attack_file(bits)
        result = results(self.recipe, self.files)
        write_json(self.files.report, result)
        return result

    def train(self) -> None:
        """Train the float network, then quantise width by width."""
        self._preflight()
        with self._alone():
            self._train()

    def _train(self) -> None:
        self._set_threads(trial=True)
        stages = [self.train_stage(bits) for bits in self.recipe.bits]
        for stage in stages:
            stage.reconcile()
        distributed.wait()
        if distributed.is_first():
            write_text(self.files.recipe, recipe.dump(self.recipe))
        for stage in stages:
            stage.run()
            distributed.wait()

    def train_stage(self, bits: int) -> TrainStage:
        """The training of a width."""
        return TrainStage(self.networks, self.threat, bits)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Others keep out of the folder; of several processes of one run the first sees to it."""
        with locked(self.folder) if distributed.is_first() else nullcontext():
            yield

    def evaluate(self, bits: int) -> None:
        """Attack the torch network."""
        settings, files = self.recipe.evaluate, self.files.network(bits)
        attacks = self._named(settings.attacks)
        stage = Stage(
            files.evaluation,
            [settings.model_dump(mode="json"), self._threat(), _described(attacks), self.dataset.fingerprint],
            self._weights(bits),
            {"outcomes": files.outcomes},
        )
        if self._done(stage):
            return

        def save(outcomes: Outcomes, more: Record) -> None:
            outcomes.save_masks(files.outcomes)
            self._finish(stage, outcomes.to_dict() | more)

        self._evaluated(bits, attacks, save, n=settings.n, state=files.evaluation.with_suffix(".partial.npz"))

    def attack(
        self,
        bits: int,
        attacks: Sequence[Attack],
        *,
        n: int | None = None,
        seed: int | None = None,
        path: Path | None = None,
        thorough: bool = False,
    ) -> Record:
        """Evaluate a width and doubt the result; saved to `path` (.json) if given. Goes on where it stopped.

        thorough: all doubts, else the cheap ones.
        """
        state = path.with_suffix(".partial.npz") if path else None
        save = (lambda outcomes, more: outcomes.save(path, **more)) if path else None
        return self._evaluated(bits, attacks, save, n=n, seed=seed, state=state, thorough=thorough)

    def _evaluated(
        self,
        bits: int,
        attacks: Sequence[Attack],
        save: Callable[[Outcomes, Record], None] | None,
        *,
        n: int | None,
        state: Path | None,
        seed: int | None = None,
        thorough: bool = False,
    ) -> Record:
        """`attack`, with the journal in `state`, which goes when the result is saved."""
        self._set_threads()
        seed = self.recipe.seed if seed is None else seed
        model, images, twin = self.network(bits), self.dataset.test, self.twin(bits)
        if twin is None:  # the float network itself: nothing to transfer from
            attacks = [attack for attack in attacks if attack.family != "transfer"] or attacks
        outcomes = evaluate(
            model,
            images,
            attacks=attacks,
            threat=self.threat,
            n=n,
            seed=seed,
            batch_size=self.recipe.evaluate.batch_size,
            twin=twin,
            state=state,
            label=f"evaluate qm-{bits}",
        )
        example = data.to_unit(images.take(slice(0, 1)).x, devices.device_of(model), channels_last=True)
        more: Record = {"cost": quant.cost(model, example).to_dict()}
        others = [self.network(width) for width in self.recipe.bits if width not in (bits, FLOAT)] if thorough else []
        if distributed.is_first():
            most = min(n or len(images), MOST_DOUBTED)
            subject = Subject(
                model, images, self.threat, twin=twin, others=others, outcomes=outcomes, n=most, seed=seed
            )
            found = examine(subject, DOUBTS if thorough else CHEAP)
            more |= {"doubts": found.measured, "flags": [flag.to_dict() for flag in found.flags]}
            if save is not None:
                save(outcomes, more)
        if state is not None:
            distributed.own(state).unlink(missing_ok=True)
        distributed.wait()
        return outcomes.to_dict() | more

    def export(
        self, bits: int, target: Target | None = None, folder: Path | None = None, input: str | None = None
    ) -> Path:
        """Write the artifact of a width; returns its folder. target, input: None for the recipe's.

        folder: None for RUN/qm-N/artifact. Raises RunError for one that holds anything but an artifact of ours.
        """
        chosen, images_as = target or self.target, input or self.recipe.export.input
        files = self.files.network(bits)
        place = folder or files.artifact
        stage = Stage(
            place.with_name(f"{place.name}.json") if folder else files.export,
            [
                self.recipe.model_dump(mode="json", exclude={"bench", "attack", "tensorboard"}),
                chosen.model_dump(mode="json"),
                images_as,
            ],
            {**self._weights(bits), "evaluation": files.evaluation},
            {"artifact": place},
        )
        if self._done(stage):
            return place
        if folder is not None and stage.record.exists() and "key" not in (stage.recorded() or {}):
            raise RunError(
                f"expected no file or the record of an export at {stage.record}, got another; choose another --out"
            )
        before = {key: value for key, value in without_key(read_json(files.evaluation)).items() if key != "indices"}
        contents = Contents(
            name=f"{self.recipe.name}-qm-{bits}",
            bits=bits,
            seed=self.recipe.seed,
            threat=self.threat,
            recipe=self.recipe.model_dump(mode="json", exclude_none=True),
            suite=self._suite(bits),
            before=before,
            input=images_as,
        )
        write_artifact(place, self.network(bits), self.dataset, chosen, contents, ours=folder is None)
        ops = optimised_ops(place / "model.onnx", chosen)
        self._finish(stage, {"target": chosen.name, "optimised_ops": dict(ops)})
        return place

    def _suite(self, bits: int) -> Any:
        images, _ = data.choose(
            self.dataset.test, self.recipe.export.suite_n or self.recipe.evaluate.n, self.recipe.seed
        )
        return make_suite(
            self.network(bits),
            images,
            attacks=self.suite_attacks,
            threat=self.threat,
            seed=self.recipe.seed,
            twin=self.twin(bits),
        )

    def bench(self) -> None:
        """Time all artifacts in one run."""
        settings = self.recipe.bench
        artifacts = {f"qm-{bits}": self.files.network(bits).artifact for bits in self.recipe.bits}
        stage = Stage(self.files.bench, settings.model_dump(mode="json"), artifacts)
        if not self._done(stage):
            result = bench(
                [runtime.Artifact.load(path) for path in artifacts.values()],
                batches=settings.batches,
                threads=settings.threads,
                seconds=settings.seconds,
            )
            self._finish(stage, result)

    def check(self, bits: int) -> None:
        """Check the artifact as a device would."""
        files = self.files.network(bits)
        stage = Stage(files.check, "check", {"artifact": files.artifact})
        if not self._done(stage):
            self._finish(stage, runtime.check(runtime.Artifact.load(files.artifact)).to_dict())

    def attack_file(self, bits: int) -> None:
        """Attack the artifact itself, white-box, if the recipe says so, and the torch network by the same attacks.

        What a user's own attack on this file left stands.
        """
        settings, files = self.recipe.attack, self.files.network(bits)
        if settings is None:
            return
        reads = {**self._weights(bits), "artifact": files.artifact, "float": self.files.network(FLOAT).artifact}
        described = [settings.model_dump(mode="json"), self.recipe.seed]
        stage = Stage(files.attack, described, reads, {"outcomes": files.attack_outcomes})
        if self._done(stage):
            return
        deployed = open_deployed(files.artifact)
        found = stage.recorded() or {}
        if "key" not in found and judged(found) == deployed.sha256:
            note(f"{self.files.name_of(files.attack)}: made by qrobust attack, stands")
            return
        sources = find_sources(deployed)
        names = settings.attacks or default_attacks(deployed, sources)
        in_torch = self._attacked_in_torch(bits, deployed, names)
        chosen = AttackSettings(names, settings.n, self.recipe.seed, sources=sources)
        more = {"key": stage.key, "in_torch": in_torch}
        self._finish(stage, attack(deployed, find_images(deployed), chosen, files.attack, data=SUITE, **more))

    def _attacked_in_torch(self, bits: int, deployed: Deployed, names: Sequence[str]) -> Record:
        """What is left of the torch network by the attacks that the file is under, on the same images."""
        assert self.recipe.attack is not None
        attacks, twin = self._named(tuple(names)), self.twin(bits)
        outcomes = evaluate(
            self.network(bits),
            find_images(deployed),
            attacks=[one for one in attacks if twin is not None or one.family != "transfer"],
            threat=self.threat,
            n=self.recipe.attack.n,
            seed=self.recipe.seed,
            batch_size=self.recipe.evaluate.batch_size,
            twin=twin,
            label=f"attack qm-{bits} in torch",
        )
        found = outcomes.to_dict()
        return {name: found[name] for name in ("n", "clean", "attacks", "worst_case")}

    @property
    def suite_attacks(self) -> tuple[Attack, ...]:
        """Those of the suite; not asked before they are needed, since an older run is read whatever it names."""
        return self._named(self.recipe.export.suite_attacks)

    @property
    def dataset(self) -> data.Dataset:
        """The images of the recipe."""
        return self.networks.dataset

    def network(self, bits: int) -> nn.Module:
        """The trained network of a width, on the device; see `Networks.network`."""
        return self.networks.network(bits)

    def twin(self, bits: int) -> nn.Module | None:
        """The float network that a quantised one was made from; None for the float one itself."""
        return self.networks.float_network(bits)

    def untrained(self, bits: int) -> nn.Module:
        """The network of a width before training; see `Networks.untrained`."""
        return self.networks.untrained(bits)

    def has_average(self, bits: int) -> bool:
        """Whether training of a width averages weights."""
        return self.networks.has_average(bits)

    def _set_threads(self, *, trial: bool = False) -> None:
        """Threads of torch: as the recipe says, as they were, or, with `trial`, as a short one finds them."""
        if devices.device().type != "cpu" or distributed.world() > 1:  # torchrun divides the cores
            return
        found = Stage(self.files.threads, None).recorded() or {}
        count = self.recipe.threads or found.get("threads")
        if trial and not (isinstance(count, int) and count > 0):
            count = devices.choose_threads(self.networks.one_pass())
            write_json(self.files.threads, {"threads": count, "hardware": devices.hardware()})
        if isinstance(count, int) and count > 0:
            devices.use_threads(count)

    def _preflight(self) -> None:
        """Raises what a later stage would end in, before the first epoch."""
        if self._missing:
            preflight(
                self.recipe,
                self.target,
                self.folder,
                dataset=lambda: self.dataset,
                network=self.untrained,
                widths=self._missing,
            )

    @property
    def _missing(self) -> list[int]:
        """Widths that are still to be trained."""
        return [bits for bits in self.recipe.bits if not self.files.network(bits).training.exists()]

    def _weights(self, bits: int) -> dict[str, Path]:
        """The files of a width's network and of the float one, which attacks transfer from."""
        return {f"qm-{w}": self.files.network(w).weights(self.networks.deployed(w)) for w in {bits, FLOAT}}

    def _recipe_without(self, *tables: str) -> Record:
        return self.recipe.model_dump(mode="json", exclude={*tables, "data"})

    def _threat(self) -> list[Any]:
        return [self.threat.norm, self.threat.eps, self.recipe.seed]

    def _done(self, stage: Stage) -> bool:
        if done := stage.done():
            note(f"{self.files.name_of(stage.record)}: done before")
        return done

    def _finish(self, stage: Stage, result: Record) -> None:
        stage.finish(result)
        note(f"{self.files.name_of(stage.record)}: written")

    def _named(self, names: tuple[str, ...]) -> tuple[Attack, ...]:
        return tuple(named(name, self.threat) for name in names)


def _described(attacks: Sequence[Attack]) -> list[Any]:
    return [[attack.name, attack.settings] for attack in attacks]
