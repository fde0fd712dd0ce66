"""Every key of every file that is read, harmed in every way: one line, or what the file says is free.

Keys are those of files that were written, and of the schemas; a harm is text in place of a key's value.
"""

import copy
import json
import re
import shutil
import tomllib
import typing
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from qrobust import recipe
from qrobust.bench.measure import _File
from qrobust.evaluation import compare
from qrobust.export.target import Target, load_target
from qrobust.recipe.reading import checked
from qrobust.report import collect, write
from qrobust.resources import find
from qrobust.runtime import BASELINE, SAME, Artifact, policy_of, read_baseline
from qrobust.storage import read_json
from qrobust.train.checkpoint import FORMAT, State, load_state, load_weights, save_state, save_weights

from .harms import ANY, MARKUP, NEVER, TEXT, harmed, paths, refused, wrong

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "0.1.0"


# JSON


# What a key that is read may also be, by its name; other keys that are read may be nothing else.
READ = {
    r"(name|reason|hint|reference|images|data_fingerprint|model|part)$": TEXT | {"missing", "null"},
    r"(passed|bounded)$": {"truth", "missing"},
    r"(measured|limit|seed|sanity_checks/[^/]+|masks/[^/]+/[^/]+)$": {"negative", "fraction", "missing"},
    r"(accuracy|ci95)/[^/]+(/0)?$|(ci95|steps)/0$|_(ms|ci95/0)$": {"fraction", "missing"},
    r"(accuracy|worst_case|label_flips|seconds|speedup|images_per_second|size_bytes)$": {"fraction", "missing"},
    r"accuracy$": {"table"},
    r"(gap|in_torch|replayed|parts)$": {"missing", "null", "table", "list"},
    r"replayed/[^/]+$": {"missing", "fraction"},
    r"(zero_share|activation_bits|weight_bits|steps|n)$": {"fraction", "missing", "null"},
    r"(clean|worst_case|cost|attacks/[^/]+|layers/[^/]+|best/model|(verdicts|flags|results|parts)/0)$": {"missing"},
    r"(attacks|settings|versions|hardware|sanity_checks|flags|layers|best|masks(/[^/]+)?)$": {
        "missing",
        "table",
        "list",
    },
}
SCHEMAS = {"run/qm-4/eval": collect.Evaluation, "run/qm-4/check": collect.Checked, "run/qm-4/train": collect.Trained,
           "run/qm-4/attack": collect.Attacked, "run/bench": collect.Timed}  # fmt: skip


def is_read(annotation, path):
    """Whether a schema names what lies at a path; what is shown as text is not named."""
    if not path:
        return annotation is not typing.Any
    parts = [annotation, *typing.get_args(annotation)]
    for part in parts:
        if isinstance(part, type) and issubclass(part, BaseModel):
            field = part.model_fields.get(path[0])
            return field is not None and is_read(field.annotation, path[1:])
        if typing.get_origin(part) in (dict, list):
            return is_read(typing.get_args(part)[-1], path[1:])
    return any(is_read(part, path) for part in parts[1:] if typing.get_args(part))


def free_in(schema):
    def free(path, harm):
        where = "/".join(map(str, path))
        allowed = [harms for name, harms in READ.items() if re.search(name, where)]
        return not is_read(schema, path) or any(harm in harms for harms in allowed)

    return free


@pytest.fixture
def files(tmp_path):
    return shutil.copytree(FIXTURE, tmp_path / "files")


def fuzz(place, read, free, step=1):
    """Harm a file in every way, or in each `step`-th; the number of cases. Fails with the first that were wrong."""
    whole = place.read_text()
    cases = list(harmed(json.loads(whole)))
    found, count = wrong(cases[::step], place, read, lambda path, harm: harm not in NEVER and free(path, harm))
    place.write_text(whole)
    assert not found, (len(found), found[:10])
    return count


def fuzz_results(files, tmp_path, step=1):
    out, count = tmp_path / "out" / "page.html", 0

    def read():
        shutil.rmtree(out.parent, ignore_errors=True)
        try:
            write(files / "run", out)
        except Exception:
            assert not out.parent.exists()  # nothing is written of what was refused
            raise
        for text in (out.read_text(), out.with_name("model-card.md").read_text().split("---\n", 2)[2]):
            assert "<script" not in text.replace("\\<script", "")

    for name, schema in SCHEMAS.items():
        count += fuzz(files / f"{name}.json", read, free_in(schema), step)
    return count


def fuzz_others(files, step=1):
    """An evaluation that is compared, and results of which a key at most is read."""
    place, other = files / "eval.json", FIXTURE / "eval.json"
    count = fuzz(place, lambda: compare(place, other), free_in_outcomes, step)
    for name in ("run/report.json", "run/qm-4/export.json"):
        count += fuzz(files / name, lambda path=files / name: read_json(path), lambda _path, _harm: True, step)
    return count


def free_in_outcomes(path, harm):
    """The masks and what they are of decide; there may be fewer attacks."""
    where = ".".join(map(str, path))
    if not re.fullmatch(r"n|images|threat.*|clean|clean.accuracy|attacks(\.[^.]+(\.accuracy|\.bounded)?)?", where):
        return True
    fewer = {1: "table", 2: "missing"}.get(len(path)) == harm and path[0] == "attacks"
    return fewer or (path[-1], harm) == ("bounded", "truth")


def fuzz_artifact(files, step=1):
    """A manifest, and a baseline as this version pins it."""
    artifact, baseline = files / "run" / "qm-4" / "artifact", files / "baseline.json"
    manifest, pinned = Artifact.load(artifact).manifest, json.loads(baseline.read_text())
    pinned |= {"policy": policy_of(manifest), "suite": manifest["files"]["suite.npz"]["sha256"]}
    baseline.write_text(json.dumps({"schema_version": 2, "reason": "", **{key: pinned[key] for key in BASELINE}}))
    same = {name: pinned[name] for name in ("model", "suite", *SAME)}
    assert read_baseline(baseline, **same)[1]
    count = fuzz(artifact / "manifest.json", lambda: Artifact.load(artifact), free_in_manifest, step)
    return count + fuzz(baseline, lambda: read_baseline(baseline, **same), free_in_baseline, step)


def free_in_baseline(path, harm):
    """What a baseline says for people; limits that are null stay so, and 1 may be written as true."""
    same = {"null": ("latency_ms", "size_bytes"), "truth": ("x64quantprecision",)}
    return path[0] in ("artifact", "reason", "versions") or path[-1] in same.get(harm, ())


# What decides in a manifest, and how else it may be; options are judged when a session opens, by provider.
DECIDES = {
    "schema_version": {"truth"}, "name": TEXT, "classes.0": TEXT, "input.name": TEXT, "output.name": TEXT,
    "target.name": TEXT, "target.provider": TEXT, "target.format": ANY, "target.session_options": {"table"},
    "threat.eps": {"fraction"}, "limits.label_flips": {"fraction"}, "limits.square_gap": {"fraction"},
    "statistics.power": {"fraction"}, "statistics.detected_drop": {"fraction"}, "square.queries": {"huge"},
    "square.n": {"huge"}, "files": set(), "reference": set(),
    **{f"limits.{name}": {"missing", "null", "huge", "fraction"}
       for name in ("logit_change", "latency_ms", "size_bytes")},
    **{f"target.session_options.{name}": ANY
       for name in ("graph_optimization_level", "intra_op_num_threads", "x64quantprecision")},
}  # fmt: skip


def free_in_manifest(path, harm):
    tops = {key.split(".")[0] for key in DECIDES}
    return path[0] not in tops or harm in DECIDES.get(".".join(map(str, path)), ())


# TOML


VALUES = {
    "null": None, "truth": True, "text": "x", "no text": "", "list": [], "table": {}, "negative": -1, "fraction": 0.5,
    "NaN": float("nan"), "infinite": float("inf"), "huge": 10**30, "digits": 10**5000, "large": 1e300, "markup": MARKUP,
    "escape": "\x1b[2J\nheld", "nested": [[[[1]]]], "path": "../../x", "many": ["x"] * 9, "bytes": b"x",
}  # fmt: skip


def deep(levels):
    value = 1
    for _ in range(levels):
        value = {"a": value}
    return value


VALUES["deep"] = deep(300)
NOWHERE = ("NaN", "infinite", "huge", "digits", "large", "deep", "bytes")
FULL = (
    "train.milestones=[2]", "train.sar={}", "train.awp={}", "train.average={}", "train.mix={kind = 'mixup'}",
    "quant.milestones=[1]", "quant.sar={}", "quant.awp={}", "quant.average={}", "quant.layers={fc = 8}", "attack={}",
    "train.extra={name = 'npz', share = 0.5}", "data.resized_crop=[0.5, 1.0]", "data.crop=0", "train.nesterov=true",
    "claim={table = 'I', clean = 0.8}", "model.shortcut=A",
)  # fmt: skip


def at(table, path, value):
    """A copy of a table with another value at a path, or none."""
    whole = copy.deepcopy(table)
    part = whole
    for key in path[:-1]:
        part = part[key]
    if value is REMOVED:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return whole


REMOVED = object()


def held(found, path):
    for key in path:
        found = found.get(key) if isinstance(found, dict) else found[key] if len(found) > key else None
    return found


def fuzz_table(schema, table, step=1):
    """Every key of a table of a schema; what is accepted is what was given, and survives TOML."""
    cases = [(path, harm) for path in paths(table) for harm in (*VALUES, "missing", "unknown")]
    for path, harm in cases[::step]:
        given = VALUES.get(harm, REMOVED)
        unknown = harm == "unknown" and isinstance(path[-1], str)
        changed = at(table, (*path[:-1], "unknwon"), 1) if unknown else at(table, path, given)
        try:
            if refused(lambda changed=changed: checked(schema, changed, source="x.toml")):
                continue
            assert harm not in NOWHERE
            found = checked(schema, changed, source="x.toml")
            dumped = found.model_dump(mode="json", exclude_none=True)
            if harm not in ("missing", "unknown", "null"):
                assert alike(held(dumped, path), given)
            if schema is recipe.Recipe and harm != "null":  # which TOML has not
                assert recipe.parse(tomllib.loads(recipe.dump(found)), source="x") == found
        except Exception as error:
            raise AssertionError(f"{schema.__name__} {path} {harm}") from error
    return len(cases)


def alike(found, given):
    """Whether a schema took a value for what it is; an empty table is filled with what is usual."""
    return found == given or given == {} or (given in ([], True) and found in ([], {}, 1))


def fuzz_toml(tmp_path, step=1):
    """Text harms: a key twice, thousands of digits, deep arrays."""
    text, count = recipe.dump(recipe.load("digits", FULL)), 0
    lines = text.splitlines()
    for number, line in list(enumerate(lines))[::step]:
        key, equals, _ = line.partition(" = ")
        if not equals:
            continue
        for raw in (
            f"{line}\n{line}",
            f"{key} = {'9' * 5000}",
            f"{key} = {'[' * 9999}",
            f"{key} = nan\u202e",
            f"{key} =",
        ):
            (tmp_path / "r.toml").write_text("\n".join([*lines[:number], raw, *lines[number + 1 :]]))
            assert refused(lambda: recipe.load(str(tmp_path / "r.toml"))), raw[:50]
            count += 1
    return count


def tables():
    full = recipe.load("digits", FULL).model_dump(mode="json")
    target = load_target("ort-cpu").model_dump(mode="json")
    return {recipe.Recipe: full, Target: target, _File: find("benches/scenarios", "offline").table}


# Checkpoints


def fuzz_checkpoint(tmp_path, step=1):
    """The header's keys, and those of the description inside it."""
    network, path, count = torch.nn.Linear(2, 3), tmp_path / "c.safetensors", 0
    history, best, tensors = [{"loss": 0.5}], {"model": {"epoch": 1}}, {"model.weight": torch.ones(2)}
    state = State("k", 2, history, best, tensors, {"train": {"lr": 0.1}})
    save_weights(path, network, {"key": "k", "bits": 4})
    count += fuzz_header(path, lambda: load_weights(path, network), step)
    save_state(path, state)
    return count + fuzz_header(path, lambda: load_state(path), step)


def fuzz_header(path, read, step):
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def packed(text):
        return len(text.encode()).to_bytes(8, "little") + text.encode() + data

    inner = json.loads(header["__metadata__"][FORMAT])
    cases = [(where, harm, packed(text)) for where, harm, text in harmed(header)]
    for where, harm, text in harmed(inner):
        changed = at(header, ("__metadata__", FORMAT), text)
        cases.append((("inner", *where), harm, packed(json.dumps(changed))))
    lengths = (0, 1, size - 1, size + 1, 2**40, 2**63)
    cases += [((), f"length {n}", n.to_bytes(8, "little") + whole[8:]) for n in lengths]
    found, count = wrong(cases[::step], path, read, free_in_header)
    assert not found, (len(found), found[:10])
    path.write_bytes(whole)
    return count


def free_in_header(path, harm):
    """What was measured, as it was measured; what describes weights; other keys of others."""
    kept = path[:2] in (("inner", "history"), ("inner", "best")) or (path[:2] == ("inner", "settings") and path[2:])
    measured = kept and harm not in ("duplicated", "digits", "deep")
    described = path[:2] in (("inner", "key"), ("inner", "bits")) and harm not in NEVER
    older = path == ("inner", "settings") and harm in ("missing", "table")
    return measured or described or older


# All of it, and a sample


def everything(files, tmp_path, step):
    """The number of cases, in every `step`-th of which each file was harmed."""
    counts = [fuzz_table(schema, table, step) for schema, table in tables().items()]
    counts += [fuzz_toml(tmp_path, step), fuzz_checkpoint(tmp_path, step), fuzz_others(files, step)]
    return sum(counts) + fuzz_results(files, tmp_path, step) + fuzz_artifact(files, step)


def test_a_sample_of_all_harms(files, tmp_path):
    assert everything(files, tmp_path, 199) > 60


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_harm_of_every_key(files, tmp_path):
    assert everything(files, tmp_path, 1) > 10_000
