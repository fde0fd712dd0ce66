"""What stands between the command line and the rooms: verbs that need torch and more than one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from .attacks import Attack, attack_names, named
from .data import make_images
from .deployed.attack import WITHOUT_GRADIENTS, attack
from .deployed.attack import Settings as AttackSettings
from .deployed.model import SUITE, Served, find_images, find_sources, open_deployed
from .distributed import is_first, own
from .errors import RecipeError
from .evaluation import evaluate
from .progress import note
from .runs.folder import RunFolder
from .runs.run import Run
from .runtime import Artifact
from .storage import is_stream, read_json, write_json
from .threat import Threat

CPU = "CPUExecutionProvider"  # where `parity` compares, whatever the target
Results = dict[str, dict[str, Any]]
ResultsT = TypeVar("ResultsT")


def evaluate_folder(
    folder: Path,
    attacks: str,
    n: int | None,
    seed: int | None,
    json: Path | None,
    *,
    thorough: bool = False,
    averaged: bool = False,
) -> Results:
    """Results by network of a run folder, of one RUN/qm-N, or of an artifact, with the flags of their doubts.

    attacks: as in `attack_names`, "" for the recipe's. n: None takes all test images.
    json: for one network its result; for several all of them, and one each in a file with the network's name
    before the suffix; masks beside them; a stream gets the JSON alone. thorough: all doubts, else the cheap ones.
    averaged: the weight averages of a run's networks instead of what its recipe deploys; those without one are left
    out.
    """
    kept = _kept(json)
    if (folder / "manifest.json").exists():
        result = _evaluate_artifact(folder, attacks, n, seed, kept)
        return _streamed(json, result, next(iter(result.values())))
    files, one = RunFolder.find(folder)
    run = Run.open(files.path, averaged=averaged)
    widths = list(run.recipe.bits) if one is None else [run.expect_width(one)]
    widths = [bits for bits in widths if run.has_average(bits)] if averaged else widths
    if not widths:
        raise RecipeError(f"expected a run with weight averages, got {folder}; add a table train.average and train")
    chosen = _named(attacks, run.threat, run.recipe.evaluate.attacks)
    results = {}
    for bits in widths:
        path = kept if kept is None or one is not None else kept.with_name(f"{kept.stem}.qm-{bits}{kept.suffix}")
        results[f"qm-{bits}"] = run.attack(bits, chosen, n=n, seed=seed, path=path, thorough=thorough)
    if kept is not None and one is None and is_first():
        write_json(kept, results)
    return _streamed(json, results, results if one is None else next(iter(results.values())))


def exported(folder: Path) -> str:
    """One line on an artifact that was written: its size, and how it compares with torch."""
    manifest = read_json(folder / "manifest.json")
    line = f"{folder}: {manifest['files']['model.onnx']['size_bytes']:,} bytes"
    found, provider = manifest.get("parity"), manifest["target"]["provider"]
    if found is None:
        return f"{line}, executed by no runtime here"
    first = f", the first in {found['first']}" if found["first"] else ""
    compared = f"{found['flips']:.2%} of {found['n']} labels flip, {found['share']:.2g} of activations differ{first}"
    return f"{line}, {compared}" + ("" if provider == CPU else f"; measured on {CPU}, which stands in for {provider}")


def attack_file(
    path: Path,
    attacks: str,
    settings: Mapping[str, Any],
    *,
    transfer: Sequence[Path] = (),
    data: str = "",
    root: str | None = None,
    json: Path | None = None,
) -> dict[str, Any]:
    """The result of `deployed.attacking.attack` on an artifact or an ONNX file.

    attacks: as in `attack_names`, "" for all that fit. settings: others of `AttackSettings`. transfer: as in
    `find_sources`; data, root: as in `find_images`; json: as in `evaluate_folder`.
    """
    kept = _kept(json)
    deployed = open_deployed(path)
    sources = find_sources(deployed, transfer)
    images = find_images(deployed, data, root)
    chosen = AttackSettings(attacks=attack_names(attacks), sources=sources, **settings)
    result = attack(deployed, images, chosen, kept, data=data or SUITE)
    return _streamed(json, result, result)


def _evaluate_artifact(folder: Path, attacks: str, n: int | None, seed: int | None, json: Path | None) -> Results:
    artifact = Artifact.load(folder)
    threat = Threat(artifact.manifest["threat"]["norm"], artifact.eps)
    chosen = _named(attacks, threat, ("gn", "square-500"))
    for one in chosen:
        if one.family not in WITHOUT_GRADIENTS:
            raise RecipeError(
                f"expected attacks without gradients on an artifact (gn, square-500), got {one.name}; "
                "use qrobust attack ARTIFACT"
            )
    pixels, labels = (torch.from_numpy(artifact.suite[name]) for name in ("x.clean", "y"))
    outcomes = evaluate(
        Served(artifact.logits, artifact.manifest["files"]["model.onnx"]["sha256"]),
        make_images(pixels, labels, classes=len(artifact.classes)),
        attacks=chosen,
        threat=threat,
        n=n,
        seed=seed or 0,
        state=json.with_suffix(".partial.npz") if json else None,
        label=f"evaluate {artifact.name}",
    )
    if json is not None:
        if is_first():
            outcomes.save(json, flags=[])
        own(json.with_suffix(".partial.npz")).unlink(missing_ok=True)
    return {artifact.name: outcomes.to_dict() | {"flags": []}}


def _kept(json: Path | None) -> Path | None:
    """The file of a result that masks can lie beside; None for a stream, which gets the result alone."""
    if json is None or is_stream(json):
        return None
    if json.suffix != ".json":  # else the masks of all networks would share one .npz
        raise RecipeError(f"expected a file that ends in .json for --json, got {json}; masks go to .npz beside it")
    return json


def _streamed(json: Path | None, results: ResultsT, content: object) -> ResultsT:
    """The results, their JSON written where it is a stream's."""
    if json is not None and is_stream(json) and is_first():
        note(f"{json}: no masks, which qrobust compare needs; name a file to keep them")
        write_json(json, content)
    return results


def _named(attacks: str, threat: Threat, default: tuple[str, ...]) -> tuple[Attack, ...]:
    return tuple(named(name, threat) for name in attack_names(attacks, default))
