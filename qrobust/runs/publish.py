"""A network of a finished run as an entry of the zoo: a folder that a hub takes, or export/zoo/, as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__, data, models, recipe, runtime
from ..errors import QrobustError, RunError, one_line
from ..evaluation import evaluate
from ..headline import headlines
from ..storage import described, read_json, write_json
from ..zoo import entries, generated, packing
from ..zoo.artifact import generated_logits
from ..zoo.card import card
from .folder import ARTIFACT, FLOAT, RunFolder
from .results import results
from .run import Run
from .saved import load, save

TRIED = 8  # images that a saved network must give the same logits for
FURTHER = ("n", "seed", "images", "clean", "attacks", "worst_case", "versions", "hardware")  # kept of an evaluation
ROUNDING = 0.005  # by how much clean accuracy may differ where another processor measured it
PRIVATE = ("root", "cache", "download")  # keys of a recipe's [data] that hold for one machine


@dataclass(frozen=True)
class Listing:
    """How the zoo names a network, and what it says of it beside the run's own results.

    license: SPDX, in small letters as hubs have it. description: "" for the recipe's words. evaluations: JSON of
    `qrobust eval RUN` by further attacks, of this network and its float model.
    """

    name: str
    license: str = "apache-2.0"
    description: str = ""
    evaluations: tuple[Path, ...] = ()


def push(source: Path, out: Path, listed: Listing) -> entries.Entry:
    """Write the entry of a network into a new folder, whole or not at all; returns it as it is read again.

    source: RUN/qm-N, or its artifact; RUN, if it has one quantised width. Raises RunError for anything but a finished
    run, for a folder that exists, and for a network that `qrobust.load` cannot make again; DataError for images that
    others cannot have.
    """
    entries.expect_name(listed.name)
    if out.exists() or out.is_symlink():
        raise RunError(f"expected no file or folder at {out}, got one; move it away, or choose another --out")
    run, bits = _network(source)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".artifact.") as scratch:
            whole = Path(scratch) / listed.name
            whole.mkdir()
            _fill(whole, run, bits, listed)
            found = entries.read(whole)
            whole.rename(out)
    except OSError as error:
        raise RunError(f"expected a writable place for {out}, got: {error}; choose another --out") from error
    return entries.Entry(out, found.index, found.files)


def _network(source: Path) -> tuple[Run, int]:
    place = source.absolute().parent if source.absolute().name == ARTIFACT else source
    try:
        files, bits = RunFolder.find(place)
    except RunError as error:
        raise RunError(f"expected RUN, RUN/qm-N or its artifact, whose weights lie beside it, got {source}; "
                       "name the network's run") from error  # fmt: skip
    run = Run.open(files.path)
    quantised = [width for width in run.recipe.bits if width != FLOAT]
    if bits is None and len(quantised) != 1:
        raise RunError(f"expected one network, got {source} with qm-{', qm-'.join(map(str, run.recipe.bits))}; "
                       f"name one, as {source}/qm-{run.recipe.bits[-1]}")  # fmt: skip
    return run, run.expect_width(quantised[0] if bits is None else bits)


def _fill(folder: Path, run: Run, bits: int, listed: Listing) -> None:
    artifact = _artifact(run, bits)
    settings = run.recipe.data
    kept = {key: getattr(settings, key) for key in ("name", "texture", "test_share")}
    table = packing.data_table(data.DataSettings(**kept, seed=run.recipe.seed))
    suite = packing.pack(artifact.suite, packing.test_images(table, settings.root))
    (folder / entries.MODEL).write_bytes(artifact.model)
    (folder / entries.PERTURBATIONS).write_bytes(suite)
    shape = run.dataset.shape
    for width, name in ((bits, entries.TORCH), (FLOAT, entries.FLOAT)):
        _save(run.network(width), folder / name, shape)
    manifest, result = artifact.manifest | {"name": listed.name}, _result(run, bits, listed.evaluations)
    manifest["recipe"] = _public(manifest["recipe"])
    write_json(folder / entries.MANIFEST, manifest)
    write_json(folder / entries.RESULT, result)
    (folder / entries.RECIPE).write_text(recipe.dump(_own(run.recipe)), encoding="utf-8")
    said = generated.table(generated_logits(artifact.model, manifest, generated.COUNT))
    index: dict[str, Any] = {
        "schema_version": entries.SCHEMA_VERSION,
        "producer": f"qrobust {__version__}",
        "name": listed.name,
        "description": listed.description or _words(run, bits, artifact),
        "license": listed.license,
        "data": table,
        "suite_sha256": packing.arrays_sha256(artifact.suite),
        "generated": said,
    }
    (folder / entries.CARD).write_text(card(index, result), encoding="utf-8")
    index["files"] = {name: described((folder / name).read_bytes()) for name in sorted(entries.FILES)}
    write_json(folder / entries.INDEX, index)


def _artifact(run: Run, bits: int) -> runtime.Artifact:
    return runtime.Artifact.load(run.files.network(bits).artifact)


def _result(run: Run, bits: int, evaluations: Sequence[Path]) -> dict[str, Any]:
    """Numbers of the network and of its float model, with what they were measured on."""
    if not all(run.files.network(width).check.exists() for width in (bits, FLOAT)):
        raise RunError(f"expected a finished run, got {run.folder} without a check of qm-{bits} or of qm-{FLOAT}; "
                       f"finish it by qrobust run {run.files.recipe} --out {run.folder}")  # fmt: skip
    found = results(run.recipe, run.files)
    by_width = {width["bits"]: width for width in found["widths"]}
    more = {key: found[key] for key in ("recipe", "threat", "activation_bits", "versions", "hardware")}
    both = [by_width[FLOAT], by_width[bits]]
    for path in evaluations:
        for width in both:
            width.setdefault("further", []).append(_evaluation(run, width["bits"], path))
    for width, said in zip(both, headlines(both), strict=True):
        width["headline"] = said.to_dict()
    return {**more, "network": both[1], "float_model": both[0]}


def _evaluation(run: Run, bits: int, path: Path) -> dict[str, Any]:
    """What `qrobust eval RUN --json` wrote of a width. Raises RunError for anything else, and for another network's."""
    name, told = f"qm-{bits}", f"write it by qrobust eval {run.folder} --attacks LIST --json {path}"
    try:
        found = read_json(path)[name]
        kept, threat = {key: found[key] for key in FURTHER}, found["threat"]
        clean = kept["clean"]["accuracy"]
    except (LookupError, TypeError) as error:
        raise RunError(f"expected a result with {name} in {path}, got one without {one_line(error)}; {told}") from error
    again = evaluate(run.network(bits), run.dataset.test, attacks=["gn"], threat=run.threat, n=kept["n"],
                     seed=kept["seed"]).to_dict()  # fmt: skip
    same = (again["threat"], again["images"]) == (threat, kept["images"])
    if not same or abs(again["clean"]["accuracy"] - clean) > ROUNDING:
        raise RunError(f"expected an evaluation of {name} of {run.folder} in {path}, got one of another network, "
                       f"threat or images; {told}")  # fmt: skip
    return kept


def _own(settings: recipe.Recipe) -> recipe.Recipe:
    """The recipe beside an entry: it starts from the entry's float network, if it starts from weights."""
    table = _public(recipe.portable(settings.model_dump(mode="json", exclude_none=True)))
    if settings.model.weights is not None:
        table["model"]["weights"] = entries.FLOAT
    return recipe.parse(table, source=entries.RECIPE)


def _public(table: dict[str, Any]) -> dict[str, Any]:
    """A recipe's table without what holds for one machine: where images lie, of [data] and of [train.extra]."""
    found = table | {"data": _placeless(table["data"])}
    if extra := table["train"].get("extra"):
        found["train"] = table["train"] | {"extra": _placeless(extra)}
    return found


def _placeless(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in PRIVATE}


def _words(run: Run, bits: int, artifact: runtime.Artifact) -> str:
    size = len(artifact.model)
    activations = (run.recipe.quant.activation_bits if run.recipe.quant else None) or bits
    widths = "float" if bits == FLOAT else f"W{bits}A{activations}"
    eps = f"{run.threat.eps * 255:g}/255" if run.threat.norm == "linf" else f"{run.threat.eps:g}"
    return f"{run.recipe.model.name} on {run.recipe.data.name}, {widths}, {run.threat.norm} eps {eps}, {size} bytes"


def _save(model: nn.Module, path: Path, shape: tuple[int, ...]) -> None:
    """Raises RunError unless the file makes the network again, with the logits that it gives."""
    save(model, path)
    parameter = next(model.parameters())
    x = torch.from_numpy(generated.images(TRIED, shape)).to(parameter.device).float() / 255
    try:
        with torch.no_grad():
            same = torch.equal(load(path)(x), model.eval()(x))
    except QrobustError as error:
        raise RunError(f"expected a network that one file makes again, got: {error}; "
                       f"train one of {', '.join(models.names())}") from error  # fmt: skip
    if not same:
        raise RunError(f"expected the same logits of {path.name} when it is loaded, got others; train the network anew")
