"""The stages of a run in order, none done twice: see `folder` for what each leaves, `stages` for when it is done.

train ─▶ quantize, width by width ─▶ evaluate ─▶ export ─▶ bench ─▶ check ─▶ attack the file ─▶ report
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import data, devices, distributed, recipe, runtime
from ..attacks import Attack, named
from ..attacks.registry import STRONG, attack_names
from ..bench.measure import bench
from ..deployed.attack import Settings as AttackSettings
from ..deployed.attack import attack_deployed, default_attacks, evaluate_artifact
from ..deployed.model import SUITE, find_images, find_sources, open_deployed
from ..errors import RecipeError, RunError
from ..evaluation import Outcomes
from ..evaluation.outcomes import result_file, stream
from ..export.artifact import Contents, make_suite, write_artifact
from ..export.sessions import present_provider
from ..export.target import Target, load_target
from ..export.write import optimised_ops
from ..progress import detail, note, working
from ..recipe import Recipe
from ..storage import read_json, write_json, write_text
from ..threat import Threat
from ..train.listeners import Listener, event, teller
from .evaluation import Request, evaluate_as_file, evaluate_width
from .folder import FLOAT, RunFolder, judged, locked, seal
from .networks import Networks, recipe_of, source_record, with_source
from .preflight import check_provider, preflight
from .results import results
from .stages import Stage, announce, without_key
from .training import TrainStage

Record = dict[str, Any]
AFTER_EXPORT = {"bench", "attack", "analyze", "tensorboard", "on_event"}  # of a recipe: no artifact depends on them


class Run:
    """A recipe at work in a folder. averaged: use weight averages where there are some, deployed or not. model: whose
    factory makes its networks instead of the recipe's, see `with_source`.

    on_event: hears of every epoch and stage, see `train.listeners`; not the recipe's own, which a verb loads.
    """

    def __init__(
        self,
        settings: Recipe,
        folder: Path,
        *,
        averaged: bool = False,
        model: str = "",
        on_event: Listener | None = None,
    ) -> None:
        settings = with_source(settings, model)
        self.recipe, self.folder, self.files = settings, folder, RunFolder(folder)
        self.threat = Threat(settings.threat.norm, settings.threat.eps)
        self.target = load_target(settings.export.target)
        self.networks = Networks(settings, self.files, averaged=averaged)
        self.tell = teller(on_event)

    @classmethod
    def open(cls, folder: Path, *, averaged: bool = False, model: str = "") -> Run:
        """The run of a folder. Raises RunError if it is none, and as `recipe_of`."""
        return cls(recipe_of(RunFolder.expect(folder), model), folder, averaged=averaged, model=model)

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
            if self._missing and self.dataset.skipped:
                write_json(self.files.skipped, list(self.dataset.skipped))
            if self.recipe.model.sha256:
                seal(self.files, source_record(self.recipe))
        for stage in stages:
            stage.run()
            distributed.wait()

    def train_stage(self, bits: int) -> TrainStage:
        """The training of a width."""
        return TrainStage(self.networks, self.threat, bits, self.tell)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Others keep out of the folder; of several processes of one run the first sees to it, and tells of it."""
        with locked(self.folder) if distributed.is_first() else nullcontext():
            stated, status = {"run": self.recipe.name, "folder": str(self.folder)}, "stopped"
            self.tell(event("run", **stated, status="started", recipe=self.recipe.model_dump(mode="json")))
            try:
                yield
                status = "finished"
            finally:
                self.tell(event("run", **stated, status=status))

    def evaluate(self, bits: int) -> None:
        """Attack the torch network."""
        settings, files = self.recipe.evaluate, self.files.network(bits)
        attacks = self.attacks(settings.attacks)
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

        self._set_threads()
        evaluate_width(self.networks, bits, attacks, self.threat, Request(settings.n, path=files.evaluation), save)

    def attack(self, bits: int, attacks: Sequence[Attack], request: Request) -> Record:
        """Evaluate a width by other attacks; saved to the request's path if it has one. Goes on where it stopped."""
        path = request.path
        save = (lambda outcomes, more: outcomes.save(path, **more)) if path else None
        self._set_threads()
        return evaluate_width(self.networks, bits, attacks, self.threat, request, save)

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
                recipe.portable(self.recipe.model_dump(mode="json", exclude=AFTER_EXPORT)),
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
        present_provider(chosen)  # what cannot be written is refused before the suite, which takes long
        before = {key: value for key, value in without_key(read_json(files.evaluation)).items() if key != "indices"}
        contents = Contents(
            name=f"{self.recipe.name}-qm-{bits}",
            bits=bits,
            seed=self.recipe.seed,
            threat=self.threat,
            recipe=recipe.portable(self.recipe.model_dump(mode="json", exclude_none=True, exclude={"on_event"})),
            suite=self._suite(bits),
            before=before,
            input=images_as,
        )
        with working(f"export {place}"):
            write_artifact(place, self.network(bits), self.dataset, chosen, contents, ours=folder is None)
        ops = optimised_ops(place / "model.onnx", chosen)
        detail(f"{place}: runs as {', '.join(f'{count} {op}' for op, count in ops.items())}")
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
            float_model=self.float_model(bits),
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
            with working(self.files.name_of(files.check)):
                result = runtime.check(runtime.Artifact.load(files.artifact)).to_dict()
            self._finish(stage, result)

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
        sources, images = find_sources(deployed), find_images(deployed)
        names = settings.attacks or default_attacks(deployed, sources)
        in_torch = evaluate_as_file(self.networks, bits, self.attacks(names), self.threat, images)
        chosen = AttackSettings(names, settings.n, self.recipe.seed, sources=sources)
        more = {"key": stage.key, "in_torch": in_torch}
        self._finish(stage, attack_deployed(deployed, images, chosen, files.attack, data=SUITE, **more))

    def attacks(self, names: Sequence[str]) -> tuple[Attack, ...]:
        """Attacks by name within the run's threat."""
        return tuple(named(name, self.threat) for name in names)

    @property
    def suite_attacks(self) -> tuple[Attack, ...]:
        """Those of the suite; not asked before they are needed, since an older run is read whatever it names."""
        return self.attacks(self.recipe.export.suite_attacks)

    @property
    def dataset(self) -> data.Dataset:
        """The images of the recipe."""
        return self.networks.dataset

    def network(self, bits: int) -> nn.Module:
        """The trained network of a width, on the device; see `Networks.network`."""
        return self.networks.network(bits)

    def float_model(self, bits: int) -> nn.Module | None:
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
            detail(f"device: {devices.device()}, {distributed.world()} process{'es' * (distributed.world() > 1)}")
            return
        found, how = (Stage(self.files.threads, None).recorded() or {}).get("threads"), "as it was trained"
        count = self.recipe.threads or found
        if self.recipe.threads:
            how = "by the recipe"
        elif trial and not (isinstance(count, int) and count > 0):
            count, how = devices.choose_threads(self.networks.one_pass()), "by a short trial"
            write_json(self.files.threads, {"threads": count, "hardware": devices.hardware()})
        if isinstance(count, int) and count > 0:
            detail(f"device: cpu, threads: {count}, {how}")
            devices.use_threads(count)

    def _preflight(self) -> None:
        """Raises what a later stage would end in, before the first epoch."""
        if self._missing:
            for bits in {FLOAT, *self.recipe.bits[1:2]} & set(self._missing):  # one teacher for all below 32
                if self.networks.schedule(bits).teacher is not None:
                    self.networks.teacher(bits)
            _ = self.networks.extra
            preflight(
                self.recipe,
                self.target,
                self.folder,
                dataset=lambda: self.dataset,
                network=lambda bits: self.networks.initial() if bits == FLOAT else self.untrained(bits),
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
        name = self.files.name_of(stage.record)
        if done := stage.done():
            announce(self.tell, name, "done before", stage.recorded() or {})
        else:
            detail(f"{name}: {stage.why()}")
        return done

    def _finish(self, stage: Stage, result: Record) -> None:
        stage.finish(result)
        announce(self.tell, self.files.name_of(stage.record), "written", result)


def _described(attacks: Sequence[Attack]) -> list[Any]:
    return [[attack.name, attack.settings] for attack in attacks]


def _with_strong(names: Sequence[str]) -> tuple[str, ...]:
    """A recipe's attacks, and `strong` where they have no form of it: those of others may flatter a network."""
    return (*names, *(() if any(name.partition(":")[0] == STRONG for name in names) else (STRONG,)))


def evaluate_folder(
    folder: Path, attacks: str, request: Request, *, averaged: bool = False, model: str = ""
) -> dict[str, Record]:
    """Results by network of a run folder, of one RUN/qm-N, or of an artifact, with the flags of their sanity checks.

    attacks: as in `attack_names`, "" for the recipe's and `strong`. The request's path: for one network its
    result; for several all of them, and one each in a file with the network's name before the suffix; masks beside
    them; a stream gets the JSON alone. averaged: the weight averages of a run's networks instead of what its recipe
    deploys; those without one are left out. model: as of `Run`.
    """
    if (folder / "manifest.json").exists():
        return evaluate_artifact(folder, attacks, request.n, request.seed or 0, request.path)
    json, place = request.path, result_file(request.path)
    files, one = RunFolder.find(folder)
    run = Run.open(files.path, averaged=averaged, model=model)
    widths = list(run.recipe.bits) if one is None else [run.expect_width(one)]
    widths = [bits for bits in widths if run.has_average(bits)] if averaged else widths
    if not widths:
        raise RecipeError(f"expected a run with weight averages, got {folder}; add a table train.average and train")
    chosen = run.attacks(attack_names(attacks, _with_strong(run.recipe.evaluate.attacks)))
    results = {}
    for bits in widths:
        path = place if place is None or one is not None else place.with_name(f"{place.stem}.qm-{bits}{place.suffix}")
        results[f"qm-{bits}"] = run.attack(bits, chosen, replace(request, path=path))
    if place is not None and one is None and distributed.is_first():
        write_json(place, results)
    stream(json, results if one is None else next(iter(results.values())))
    return results
