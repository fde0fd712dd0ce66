"""`check` of runtime.py: verdicts, baselines, reports and both command lines."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from qrobust import runtime
from qrobust.__main__ import main
from qrobust.runtime import Artifact, ArtifactError, check

from .conftest import evidence
from .test_runtime import (
    EPS,
    LIMITS,
    SHAPE,
    WEIGHT,
    edit,
    flip_bit,
    floats,
    images,
    linear,
    manifest_of,
    model_bytes,
    name_rows,
    patch,
    put,
    suite_arrays,
    worst_case,
    write,
)

FIXTURES = Path(__file__).resolve().parent / "fixtures" / "0.1.0"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "checking.md"
TWIST = np.random.default_rng(2).normal(size=16).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "artifact", suite_arrays())


def remodel(folder, **change):
    """Another network in the file; the suite with torch's labels stays."""
    (folder / "model.onnx").write_bytes(model_bytes(**change))
    edit(folder)


def suite_of(weight):
    """Plain grey images with the suite that is made against `linear(weight)`."""
    grey = np.repeat(np.linspace(0, 255, 64).astype(np.uint8), 16).reshape(64, *SHAPE)
    arrays = {"y": (grey[:, 0, 0, 0] > 127).astype(np.int64), "x.clean": grey}
    adversarial = worst_case(floats(grey), arrays["y"], weight)
    arrays |= {"x.pgd-20": np.round(adversarial * 255).astype(np.uint8), "logits.clean": linear(weight)(floats(grey))}
    labels = {name: linear(weight)(floats(arrays[f"x.{name}"])).argmax(1) for name in ("clean", "pgd-20")}
    return arrays | {f"label.{name}": found.astype(np.int64) for name, found in labels.items()}


def run(folder, **arguments):
    return check(Artifact.load(folder), **arguments)


def broken_of(report):
    return [verdict.name for verdict in report.verdicts if not verdict.passed]


def pin(folder, path):
    assert runtime.main([str(folder), "--update-baseline", "--reason", "first", "--baseline", str(path)]) == 0
    return path


# Verdicts


def test_check_passes_on_a_sound_artifact(folder):
    steps = []
    report = run(folder, on_step=lambda *at: steps.append(at))
    assert report.passed
    assert report.label_flips == 0
    assert report.accuracy["clean"] == pytest.approx(60 / 64)
    assert report.reference == Artifact.load(folder).manifest["reference"]
    assert report.worst_case == report.accuracy["pgd-20"] < report.accuracy["clean"]  # exact: Square cannot beat it
    assert report.counts == {"clean": 64, "pgd-20": 64, "square": 32}
    assert [v.name for v in report.verdicts] == ["label_flips", "accuracy_drop", "square_gap", "pgd-20 accuracy"]
    assert steps == [(at, 50) for at in range(1, 51)]
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


def test_outcomes_are_the_images_that_are_right(folder):
    report, y = run(folder), suite_arrays()["y"]
    for name, packed in report.outcomes.items():
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8), count=report.counts[name])
        assert bits.mean() == report.accuracy[name]
        if name == "clean":
            np.testing.assert_array_equal(bits, linear(WEIGHT)(floats(images())).argmax(1) == y)


def test_check_sees_another_model(folder):
    remodel(folder, weight=-WEIGHT)
    assert set(broken_of(run(folder))) >= {"label_flips", "accuracy_drop"}


def test_a_drop_is_judged_image_by_image(folder):
    remodel(folder, weight=WEIGHT + 2 * TWIST)
    report, suite = run(folder), suite_arrays()
    before = suite["label.pgd-20"] == suite["y"]
    after = linear(WEIGHT + 2 * TWIST)(floats(suite["x.pgd-20"])).argmax(1) == suite["y"]
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    (verdict,) = [v for v in report.verdicts if v.name == "pgd-20 accuracy"]
    assert lost > 0
    assert verdict.measured == pytest.approx((lost - gained) / 64)
    assert verdict.p_value == runtime.mcnemar_tolerated(lost, gained, 64, 0.02)
    assert verdict.passed == (verdict.p_value > 0.05)
    assert verdict.ci95 == runtime.paired_interval(lost, gained, 64)
    assert f"lost {lost}, gained {gained}, tolerated 2.0%" in verdict.reason


def test_labels_of_other_images_are_refused(folder):
    arrays, order = suite_arrays(), np.random.default_rng(0).permutation(64)
    reference = manifest_of(arrays)["reference"]
    write(folder, {**arrays, "y": arrays["y"][order]})
    put("reference", reference)(folder)
    with pytest.raises(ArtifactError, match=r"labels of clean that are right in 0\.9375, as the manifest says, got"):
        run(folder)


def test_check_sees_that_the_stored_attack_was_too_weak(tmp_path):
    arrays = suite_arrays(attacked=False)
    arrays["x.pgd-20"] ^= 1  # a step a pixel is all that it found
    report = run(write(tmp_path / "weak", arrays))
    assert broken_of(report) == ["square_gap"]
    assert "broken square_gap: accuracy" in runtime.format_report(report)
    assert "gradients misled" in runtime.format_report(report)
    assert report.worst_case < report.accuracy["pgd-20"]


@pytest.mark.parametrize(("limit", "held"), [(1 / 16, True), (0.062, False)])
def test_a_fact_that_meets_its_limit_exactly_has_held(folder, limit, held):
    arrays = suite_arrays()
    arrays["label.clean"][:4] = arrays["y"][:4]  # as if torch had these four of 64 right
    put("reference", manifest_of(arrays)["reference"])(write(folder, arrays))
    put("limits", "accuracy_drop", limit)(folder)
    put("limits", "label_flips", 0.1)(folder)
    put("statistics", "detected_drop", 0.5)(folder)
    assert broken_of(run(folder)) == ([] if held else ["accuracy_drop"])


@pytest.mark.parametrize(
    ("limit", "value", "held"),
    [("latency_ms", 1000, True), ("latency_ms", 1e-6, False), ("size_bytes", 1e6, True), ("size_bytes", 10, False)],
)
def test_latency_and_size_have_limits_if_asked(folder, limit, value, held):
    put("limits", limit, value)(folder)
    report = run(folder)
    (verdict,) = [v for v in report.verdicts if v.name == limit]
    assert (verdict.passed, verdict.limit) == (held, value)
    if limit == "size_bytes":
        assert verdict.measured == (folder / "model.onnx").stat().st_size


@pytest.mark.parametrize("arguments", [{"queries": 0}, {"queries": 49}, {"queries": 10**9}, {"seed": -1}])
def test_check_refuses_a_budget_of_nothing_and_a_negative_seed(folder, arguments):
    with pytest.raises(ArtifactError, match="50 to 1000000 queries for Square and a seed of 0 or more"):
        run(folder, **arguments)


def test_the_test_that_the_manifest_names_is_applied_and_none_is_that_of_0_1_0(folder, monkeypatch):
    assert run(folder).policy["statistics"]["test"] == runtime.FIRST_TEST == "mcnemar-tolerated"
    monkeypatch.setitem(runtime.TESTS, "always", lambda *counts: 0.0)
    assert run(folder).passed
    put("statistics", "test", "always")(folder)
    assert broken_of(run(folder)) == ["pgd-20 accuracy"]


def test_the_published_test_is_applied_at_its_share_of_alpha(folder, tmp_path):
    """Of 3 tests, each has a third of 0.05; Holm's first step triples the smallest p-value."""
    put("statistics", "test", "exact-score")(folder)
    path = pin(folder, tmp_path / "b.json")
    remodel(folder, weight=WEIGHT + 2 * TWIST)
    report = run(folder, baseline=path)
    assert report.statistics["test"] == "exact-score"
    tests = {v.name: v for v in report.verdicts if v.ci95}
    p_values = {}
    for name, verdict in tests.items():
        lost, gained = (int(re.search(rf"{word} (\d+)", verdict.reason)[1]) for word in ("lost", "gained"))
        n, tolerated = 32 if name == "square accuracy" else 64, 0.01 if name == "clean accuracy" else 0.02
        p_values[name] = runtime.drop_p_value(lost, gained, n, tolerated, 0.05 / 3)
    smallest = min(p_values, key=p_values.get)
    assert 0 < p_values[smallest] < 1
    assert tests[smallest].p_value == pytest.approx(min(3 * p_values[smallest], 1))


def test_the_test_of_the_baseline_applies_whichever_the_manifest_names(folder, tmp_path, monkeypatch):
    """A later version names another one in what it exports: no baseline is refused for it, and none loosened."""
    path = pin(folder, tmp_path / "b.json")
    remodel(folder, weight=WEIGHT + 2 * TWIST)
    before = run(folder, baseline=path)
    monkeypatch.setitem(runtime.TESTS, "always", lambda *counts: 1.0)
    for test in ("exact-score", "always"):
        put("statistics", "test", test)(folder)
        after = run(folder, baseline=path)
        assert [v.p_value for v in after.verdicts if v.ci95] == [v.p_value for v in before.verdicts if v.ci95]
        assert after.statistics["test"] == after.policy["statistics"]["test"] == "mcnemar-tolerated"
        assert run(folder).statistics["test"] == test


def test_too_few_images_are_refused_with_the_number_needed(folder):
    put("statistics", "detected_drop", 0.1)(folder)
    needed = runtime.images_needed(0.1, 0.02, 0, 0.05, 0.8)
    with pytest.raises(ArtifactError, match=f"expected {needed} images or more .* pgd-20 accuracy .*, got 64; export"):
        run(folder)


def test_images_needed_count_the_tests_the_images_gained_and_what_is_tolerated(folder, tmp_path):
    baseline = pin(folder, tmp_path / "b.json")
    remodel(folder, weight=WEIGHT + TWIST)
    for verdict in run(folder, baseline=baseline).verdicts:
        if verdict.ci95:
            name = verdict.name.removesuffix(" accuracy")
            gained, n = int(re.search(r"gained (\d+)", verdict.reason)[1]), 32 if name == "square" else 64
            tolerated = 0.01 if name == "clean" else 0.02
            assert verdict.limit == tolerated
            assert verdict.needed == runtime.images_needed(0.4, tolerated, gained / n, 0.05 / 3, 0.8)
            assert gained > 0


def test_what_is_broken_is_broken_on_few_images_too(folder):
    put("statistics", "detected_drop", 0.1)(folder)
    remodel(folder, weight=-WEIGHT)
    assert not run(folder).passed


# Baselines


def test_a_baseline_holds_outcomes_images_versions_and_the_reason(folder, tmp_path):
    pinned = json.loads(pin(folder, tmp_path / "new" / "b.json").read_text())
    report = run(folder).to_dict()
    assert (pinned["schema_version"], pinned["reason"], pinned["artifact"]) == (2, "first", "linear")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert pinned["suite"] == manifest["files"]["suite.npz"]["sha256"]
    assert pinned["policy"] == {
        "limits": manifest["limits"],
        "statistics": {**manifest["statistics"], "test": "mcnemar-tolerated"},
        "square": {"queries": 50, "n": 32},
        "classes": ["a", "b"],
        "target": manifest["target"],
        "threat": {"norm": "linf", "eps": EPS},
    }
    assert {key: pinned[key] for key in runtime.BASELINE} == {
        key: json.loads(json.dumps(report))[key] for key in runtime.BASELINE
    }


def test_an_unchanged_artifact_holds_against_its_baseline(folder, tmp_path):
    report = run(folder, baseline=pin(folder, tmp_path / "b.json"))
    assert report.passed
    assert report.reference == report.accuracy
    assert {v.name for v in report.verdicts} >= {f"{name} accuracy" for name in ("clean", "pgd-20", "square")}
    assert [v.p_value for v in report.verdicts if v.ci95] == [1, 1, 1]


def test_a_natural_network_in_place_of_a_robust_one_is_seen_by_the_baseline_alone(tmp_path):
    """Equal on clean images; its own adversarial examples, and its own torch network agrees with them."""
    robust, fragile = np.ones(16, np.float32), np.tile(np.float32([5, -3]), 8)
    baseline = pin(write(tmp_path / "a", suite_of(robust), model_bytes(robust)), tmp_path / "b.json")
    other = write(tmp_path / "a", suite_of(fragile), model_bytes(fragile))
    assert run(other).passed
    report = run(other, baseline=baseline)
    assert not report.same_suite
    assert "made against another network" in runtime.format_report(report)
    assert report.accuracy["clean"] == report.reference["clean"]
    assert report.accuracy["pgd-20"] < report.reference["pgd-20"] - 0.3
    assert "pgd-20 accuracy" in broken_of(report)
    assert "--update-baseline" in runtime.format_report(report)


def set_key(key, value):
    return lambda pinned: pinned | {key: value}


def wrong_outcomes(pinned):
    return pinned | {"outcomes": pinned["outcomes"] | {"clean": "00" * 8}}


def later(pinned, *test):
    pinned["policy"]["statistics"].pop("test")
    pinned["policy"]["statistics"] |= dict(zip(["test"], test, strict=False))
    return pinned


UNFIT = {
    "other images": (set_key("images", "0" * 64), "expected images 0{64}, as .* pins it"),
    "other queries": (set_key("queries", 77), "expected queries 77, as .* pins it, got 50"),
    "other seed": (set_key("seed", 7), "expected seed 7, as .* pins it, got 0"),
    "other attacks": (
        set_key("counts", {"clean": 64, "fgsm": 64, "apgd-t": 64, "square": 32}),
        "expected a suite under apgd-t, fgsm, as .* pins it, got one under pgd-20; pin again by qrobust check /",
    ),
    "no counts": (set_key("counts", [3]), "a baseline in .*, got"),
    "other suite of this model": (set_key("suite", "0" * 64), "the suite that .* pins for this model.onnx"),
    "no policy": (lambda pinned: {key: pinned[key] for key in pinned if key != "policy"}, "got KeyError: 'policy'"),
    "a later version": (set_key("schema_version", 3), "schema_version 2 in .*, got 3; upgrade qrobust, or pin again"),
    "outcomes changed by hand": (wrong_outcomes, "outcomes of clean .* right in 0.9375, got 0.0"),
    "a later test": (
        lambda pinned: later(pinned, "wald"),
        "a test out of .*, got 'wald'; upgrade qrobust, or pin",
    ),
    "no test": (lambda pinned: later(pinned), "a baseline in .*, got KeyError: 'test'"),
    "no outcomes": (set_key("outcomes", {}), "a baseline in .*, got KeyError"),
    "no hexadecimals": (set_key("outcomes", {"clean": "xyz"}), "a baseline in .*, got ValueError"),
    "no table": (lambda pinned: [], "a baseline in .*, got TypeError"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_baseline_is_refused_in_one_line(folder, tmp_path, capsys, case):
    change, message = UNFIT[case]
    path = pin(folder, tmp_path / "b.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    capsys.readouterr()
    assert runtime.main([str(folder), "--baseline", str(path)]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert re.search(message, error)
    assert error.endswith("--update-baseline --reason TEXT\n")


def test_other_clean_images_and_a_missing_baseline_are_refused(folder, tmp_path):
    path = pin(folder, tmp_path / "b.json")
    arrays = suite_arrays()
    for name in ("x.clean", "x.pgd-20"):
        arrays[name][0, 0, 0, 0] ^= 1
    with pytest.raises(ArtifactError, match=r"expected images [0-9a-f]{64}, as"):
        run(write(folder, arrays), baseline=path)
    with pytest.raises(ArtifactError, match=r"expected a baseline at .*no\.json, got no file"):
        run(folder, baseline=tmp_path / "no.json")


LOOSENED = {
    **{f"limits.{name}": (("limits", name, 0.05), f"{value}", "0.05") for name, value in LIMITS.items()},
    "limits.logit_change": (("limits", "logit_change", 9), "nothing", "9"),
    "statistics.alpha": (("statistics", "alpha", 0.04), "0.05", "0.04"),
    "statistics.power": (("statistics", "power", 0.5), "0.8", "0.5"),
    "statistics.detected_drop": (("statistics", "detected_drop", 0.5), "0.4", "0.5"),
    "target.name": (("target", "name", "phone"), "cpu", "phone"),
    "target.session_options.intra_op_num_threads": (("target", "session_options", "intra_op_num_threads", 2), "1", "2"),
    "target.session_options.x64quantprecision": (("target", "session_options", "x64quantprecision", 1), "nothing", "1"),
    "square.n": (("square", "n", 33), "32", "33"),
    "classes": (("classes", ["b", "a"]), "['a', 'b']", "['b', 'a']"),
    "threat.eps": (("threat", "eps", 0.07), f"{EPS}", "0.07"),
}


@pytest.mark.parametrize("key", LOOSENED)
def test_what_a_baseline_pins_cannot_be_loosened_in_the_manifest(folder, tmp_path, key):
    path, (change, was, found) = pin(folder, tmp_path / "b.json"), LOOSENED[key]
    put(*change)(folder)
    expected = re.escape(f"{key} {was}, as {path} pins it, got {found}; restore what was pinned, or pin anew")
    if key == "square.n":
        expected = "counts.square 32"
    with pytest.raises(ArtifactError, match=expected):
        run(folder, baseline=path)
    assert run(folder, baseline=pin(folder, path)).passed  # the remedy


def test_a_network_that_says_one_class_fails_however_its_limits_are_written(folder, tmp_path):
    """Its accuracy of a half would be a drop that is tolerated, if a manifest could say so."""
    path = pin(folder, tmp_path / "b.json")
    remodel(folder, weight=np.zeros(16, np.float32))
    assert {"clean accuracy", "label_flips"} <= set(broken_of(run(folder, baseline=path)))
    edit(folder, lambda manifest: manifest["limits"].update(dict.fromkeys(LIMITS, 0.9)))
    with pytest.raises(ArtifactError, match=r"up to 0\.1, got 0\.9"):
        run(folder)


def test_stored_images_of_a_pinned_model_cannot_be_exchanged(folder, tmp_path):
    path, arrays = pin(folder, tmp_path / "b.json"), suite_arrays()
    arrays["x.pgd-20"] = arrays["x.clean"] ^ 1
    arrays["label.pgd-20"] = linear(WEIGHT)(floats(arrays["x.pgd-20"])).argmax(1).astype(np.int64)
    with pytest.raises(ArtifactError, match=r"the suite that .* pins for this model\.onnx, got another suite\.npz"):
        run(write(folder, arrays), baseline=path)


def test_an_older_baseline_says_what_it_lacks_and_can_be_pinned_again(folder, tmp_path, capsys):
    path, older = tmp_path / "b.json", json.loads((FIXTURES / "baseline.json").read_text())
    path.write_text(json.dumps(older | {"images": run(folder).images}))
    assert runtime.main([str(folder), "--baseline", str(path)]) == 2
    error = capsys.readouterr().err
    assert "got 1, which pins no limits, statistics, target, threat and suite; pin again by qrobust check " in error
    remedy = shlex.split(error.strip().partition("pin again by qrobust check ")[2].replace("TEXT", "limits-too"))
    assert runtime.main(remedy) == 0
    assert json.loads(path.read_text())["reason"] == "limits-too"
    assert run(folder, baseline=path).passed


def stronger(arrays):
    """The same images under `strong`, with the parts that found them."""
    renamed = {name.replace("pgd-20", "strong"): array for name, array in arrays.items()}
    return renamed | {"found_by.strong": name_rows(["clean"] * 4 + ["margin-30"] * 59 + ["square-240, last"])}


@pytest.mark.parametrize("given", [(), ("--queries", "60", "--seed", "3")], ids=["manifest's", "given"])
def test_a_baseline_of_other_attacks_names_both_and_the_command_that_pins_it_again(tmp_path, capsys, given):
    folder, path = write(tmp_path / "an artifact", suite_arrays()), tmp_path / "b.json"
    pin(folder, path)
    write(folder, stronger(suite_arrays()))
    put("schema_version", 2)(folder)
    capsys.readouterr()
    assert runtime.main([str(folder), "--baseline", str(path), *given]) == 2
    error = capsys.readouterr().err
    assert f"expected a suite under pgd-20, as {path} pins it, got one under strong; pin again by qrobust" in error
    program, verb, *remedy = shlex.split(error.partition("pin again by ")[2])
    assert (program, verb) == ("qrobust", "check")
    assert runtime.main(remedy) == 0
    assert runtime.main([str(folder), "--baseline", str(path), *given]) == 0
    assert json.loads(path.read_text())["counts"] == {"clean": 64, "strong": 64, "square": 32}


def test_the_order_of_attacks_is_no_other_suite(folder, tmp_path):
    arrays = suite_arrays()
    path = pin(write(folder, arrays | stronger(arrays)), tmp_path / "b.json")
    pinned = json.loads(path.read_text())
    assert [*pinned["counts"]] == ["clean", "pgd-20", "strong", "square"]
    path.write_text(json.dumps(pinned | {"counts": dict(reversed(pinned["counts"].items()))}))
    assert run(folder, baseline=path).passed


def test_verify_py_names_itself_as_the_command_that_pins_again(tmp_path):
    folder, path = write(tmp_path / "artifact", suite_arrays()), tmp_path / "b.json"
    pin(folder, path)
    write(folder, stronger(suite_arrays()))
    command = [sys.executable, "-I", str(folder / "verify.py"), "--baseline", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    program, *remedy = shlex.split(done.stderr.partition("pin again by ")[2])
    assert (program, remedy[:2]) == ("python", ["-I", str(folder / "verify.py")])
    assert subprocess.run([sys.executable, *remedy], capture_output=True, check=False).returncode == 0
    assert run(folder, baseline=path).passed


def test_a_report_counts_the_wrong_images_by_the_part_that_found_them(folder, tmp_path):
    assert run(folder).found_by == {}
    report = run(write(tmp_path / "two", stronger(suite_arrays())))
    wrong = 64 - round(64 * report.accuracy["strong"])
    assert sum(report.found_by["strong"].values()) == wrong > 5
    assert report.found_by["strong"]["clean"] == 4
    assert f"Wrong under strong, by what found them: margin-30 {wrong - 4}; clean 4" in runtime.format_report(report)


def test_an_artifact_of_0_1_0_is_checked_and_pinned(tmp_path):
    folder, path = FIXTURES / "run" / "qm-4" / "artifact", tmp_path / "b.json"
    report = run(folder)
    older = json.loads((FIXTURES / "baseline.json").read_text())
    assert report.passed
    assert report.images == older["images"]
    assert report.outcomes == older["outcomes"]
    assert runtime.conclude(report, {"baseline": path}, "again") == 0
    assert json.loads(path.read_text())["policy"]["statistics"]["test"] == "mcnemar-tolerated"


@pytest.mark.parametrize("options", [["--update-baseline"], ["--update-baseline", "--reason", " "], ["--reason", "so"]])
def test_an_update_needs_a_reason_and_a_reason_an_update(folder, tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    assert runtime.main([str(folder), *options]) == 2
    assert "--update-baseline and --reason TEXT" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


def test_a_broken_artifact_becomes_no_baseline(folder, tmp_path):
    remodel(folder, weight=-WEIGHT)
    path = tmp_path / "b.json"
    assert runtime.main([str(folder), "--update-baseline", "--reason", "so", "--baseline", str(path)]) == 1
    assert not path.exists()


@pytest.mark.parametrize(("name", "file"), [("digits-qm-4", "digits-qm-4"), ("../../up", "-..-up"), ("..", "baseline")])
def test_a_baseline_is_named_after_its_artifact_and_stays_in_its_folder(folder, tmp_path, monkeypatch, name, file):
    monkeypatch.chdir(tmp_path)
    put("name", name)(folder)
    assert runtime.main([str(folder), "--update-baseline", "--reason", "first"]) == 0
    assert [path.name for path in (tmp_path / "export" / "baselines").iterdir()] == [f"{file}.json"]


# Reports


def test_the_report_says_that_replay_overestimates_and_gives_intervals(folder):
    text = runtime.format_report(run(folder))
    assert "only overestimate" in text
    assert "93.8%   85.0% to 97.5%      93.8%" in text
    assert "drop 0.0% (-4.2% to 4.2%), lost 0, gained 0, tolerated 2.0%, p 1" in text
    assert "at alpha 0.05, with power 80% for a drop of 40.0%" in text
    assert text.splitlines()[-1] == "held"


@pytest.mark.parametrize("weight", [WEIGHT, -WEIGHT])
def test_reports_are_written_whole_in_every_format(folder, tmp_path, capsys, weight):
    remodel(folder, weight=weight)
    put("name", 'a "name" & <more> | `x`')(folder)
    paths = {kind: tmp_path / "out" / f"check.{kind}" for kind in ("json", "junit", "markdown")}
    code = runtime.main([str(folder), *(word for kind, path in paths.items() for word in (f"--{kind}", str(path)))])
    printed, result = capsys.readouterr().out, json.loads(paths["json"].read_text())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths.values())
    assert (code, result["passed"]) == ((0, True) if weight is WEIGHT else (1, False))
    assert printed.endswith("held\n" if code == 0 else "broken\n")
    suite = ElementTree.parse(paths["junit"]).getroot()
    broken = [verdict for verdict in result["verdicts"] if not verdict["passed"]]
    assert [case.get("name") for case in suite] == [verdict["name"] for verdict in result["verdicts"]]
    assert (int(suite.get("tests")), int(suite.get("failures"))) == (len(suite), len(broken))
    assert [case.get("name") for case in suite if case.find("failure") is not None] == [v["name"] for v in broken]
    assert {case.get("classname") for case in suite} == {'a "name" & <more> | `x`'}
    title, empty, *block = paths["markdown"].read_text().splitlines()
    assert (title, empty) == ("### qrobust check", "")
    assert [line[4:] for line in block] == printed.splitlines()
    assert {line[:4] for line in block} == {"    "}


def test_a_result_that_cannot_be_written_is_exit_code_2(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert runtime.main([str(folder), "--json", str(tmp_path / "file" / "x.json")]) == 2
    assert "expected a writable place" in capsys.readouterr().err


def test_an_output_may_be_standard_output(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)  # where a file could not be written
    assert runtime.main([str(folder), "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["artifact"] == "linear"
    assert printed.err.endswith("held\n")
    assert not Path("-").exists()


def test_links_and_pipes_are_written_through_and_no_name_is_foreseen(folder, tmp_path, capsys):
    real, link, pipe = tmp_path / "deep" / "real.json", tmp_path / "link.json", tmp_path / "pipe"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    trap = tmp_path / "victim"
    trap.write_text("mine")
    for name in (".link.json.partial", "deep/.real.json.partial"):
        (tmp_path / name).symlink_to(trap)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    source, sink = os.pipe()  # by its name below /dev: a device of the system might be lost if this failed
    paths = {"json": link, "markdown": pipe, "junit": f"/dev/fd/{sink}"}
    assert runtime.main([str(folder), *(f"--{kind}={path}" for kind, path in paths.items())]) == 0
    assert link.is_symlink()
    assert json.loads(real.read_text())["passed"]
    assert real.stat().st_mode & 0o777 == 0o640
    assert os.read(reader, 2**16).startswith(b"### qrobust check")
    os.close(reader)
    assert pipe.is_fifo()
    assert os.read(source, 2**16).startswith(b"<?xml")
    os.close(source)
    os.close(sink)
    assert trap.read_text() == "mine"
    assert sorted(path.name for path in real.parent.iterdir()) == [".real.json.partial", "real.json"]


WRONG_PLACES = {
    "the manifest": (["--json", "{artifact}/manifest.json"], "outside of the artifact"),
    "beside the manifest": (["--markdown", "{artifact}/new.md"], "outside of the artifact"),
    "the manifest by a link": (["--junit", "link/manifest.json"], "outside of the artifact"),
    "a baseline in the artifact": (["--baseline", "{artifact}/manifest.json"], "outside of the artifact"),
    "one file for two": (["--json", "x", "--junit", "./x"], "expected another file for each result, got x"),
    "two on standard output": (["--json", "-", "--markdown", "-"], "expected another file for each result, got -"),
    "over the baseline": (["--json", "b", "--baseline", "b"], "expected another file for each result, got b"),
    "a folder": (["--json", "."], "expected a file as --json, got ., a folder"),
    "a name of 300 letters": (["--json", "x" * 300], "give it a shorter name"),
    "a baseline on standard output": (["--baseline", "-"], "expected a file as --baseline"),
    "an unknown option": (["--basline", "b"], "unrecognized arguments: --basline"),
    "no number": (["--queries", "many"], "invalid int value: 'many'"),
    "no time": (["--timeout", "0"], "--timeout and --memory above 0"),
    **{f"empty {name}": ([f"--{name}", " "[:empty]], f"--{name}: an empty file name; name a file")
       for name in ("baseline", "json", "junit", "markdown") for empty in (0, 1)},
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_PLACES)
def test_a_wrong_place_for_a_result_is_told_before_the_work(folder, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(folder)
    before = sorted(tmp_path.rglob("*"))
    options, message = WRONG_PLACES[case]
    monkeypatch.setattr(Artifact, "load", lambda path: pytest.fail("it began"))
    assert runtime.main([str(folder), *(option.format(artifact=folder) for option in options)]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


def test_another_name_of_standard_output_takes_the_result_alone():
    assert runtime.arguments(["--json", "/dev/stdout"]).json == Path("-")


def test_a_suite_that_no_check_could_compare_is_not_pinned(folder, tmp_path, monkeypatch, capsys):
    edit(folder, lambda manifest: manifest["statistics"].update(detected_drop=0.1))
    monkeypatch.setattr(runtime, "check", lambda *_, **__: pytest.fail("it began"))
    told = [str(folder), "--update-baseline", "--reason", "first", "--baseline", str(tmp_path / "b")]
    assert runtime.main(told) == 2
    assert "images or more for a baseline of" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_path_on_the_screen_is_one_line_without_escapes(folder, tmp_path, capsys):
    path = pin(folder, tmp_path / "b\x1b[2J\nheld")
    capsys.readouterr()
    assert runtime.main([str(folder), "--baseline", str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    path.write_text("{}")
    assert runtime.main([str(folder), "--baseline", str(path)]) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), "\x1b" in error) == (1, False)


def test_an_empty_artifact_is_not_the_current_folder(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert runtime.main([""]) == 2
    assert "argument artifact: an empty file name" in capsys.readouterr().err


class Screen(io.StringIO):
    """A standard error that is a terminal, or none."""

    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_moves_on_a_terminal_and_is_a_line_a_minute_elsewhere(monkeypatch, terminal):
    clock, screen = iter(range(0, 10_000, 20)), Screen(terminal)
    monkeypatch.setattr(runtime.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", screen)
    step = runtime._meter()
    for done in range(1, 11):
        step(done, 10)
    text = screen.getvalue()
    if terminal:
        assert text.count("\r") == 10
        assert "check: 5 of 10 queries, 0.05/s, 100 s left" in text
        assert text.endswith("\r\x1b[K")  # nothing of it stays
    else:
        assert re.fullmatch(r"(\d\d:\d\d:\d\d check: \d of 10 queries, 0.05/s, \d+ s left\n){3}", text)


# `qrobust check`


@pytest.fixture
def verb(tmp_path, monkeypatch, capfd):
    """`qrobust check ARGUMENTS` in this process: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["qrobust", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capfd.readouterr()

    return call


def test_the_verb_is_the_same_check(folder, verb, capfd):
    code, out, _ = verb(
        folder, "--queries", "60", "--seed", "3", "--json", "a.json", "--timeout", "99", "--memory", "4"
    )
    assert runtime.main([str(folder), "--queries", "60", "--seed", "3", "--json", "b.json"]) == code == 0
    assert capfd.readouterr().out == out
    mine, other = (json.loads(Path(name).read_text()) | {"seconds": 0} for name in ("a.json", "b.json"))
    assert mine == other


def test_the_verb_pins_and_finds_a_baseline_by_path_and_by_name(folder, verb, tmp_path, monkeypatch):
    assert verb(folder, "--update-baseline", "--reason", "first")[0] == 0
    path = tmp_path / "export" / "baselines" / "linear.json"
    assert verb(folder, "--baseline", path)[0] == 0
    monkeypatch.setattr("qrobust.resources.folders", lambda kind: [tmp_path / "none", tmp_path / kind])
    code, out, _ = verb(folder, "--baseline", "linear")
    assert code == 0
    assert f"Tested against {path}" in out
    (tmp_path / "linear").write_text("{}")  # a path wins
    code, _, error = verb(folder, "--baseline", "linear")
    assert (code, error.count("\n")) == (2, 1)
    assert verb(folder, "--baseline", "other")[0] == 2
    code, out, error = verb(folder, "--baseline", "")
    assert (code, out, error.count("\n")) == (2, "", 1)


# The page


def examples(language):
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S)
    assert found
    return found


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with an artifact, its baseline and verify.py, committed; commands by the names of the page."""
    root, tools = tmp_path / "repository", tmp_path / "bin"
    write(root / "artifact", suite_arrays())
    pin(root / "artifact", root / "export" / "baselines" / "NAME.json")
    (root / "tools").mkdir()
    shutil.copy(runtime.__file__, root / "tools" / "verify.py")
    tools.mkdir()
    scripts = {"python": '"$@"', "qrobust": '-P -m qrobust "$@"', "pip": "-c pass"}  # pip: nothing is downloaded
    for name, words in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\nexec {sys.executable} {words}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    bash("git init -q . && git add -A && git commit -qm sound", root)
    return root


def bash(script, cwd, **environment):
    command = ["bash", "-e", "-o", "pipefail", "-c", script]  # as an action runs a step
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})


def test_the_hook_of_the_page_refuses_a_broken_artifact(repository):
    """pre-commit's own work, which is to run the entry where a staged file matches, is done by four lines of shell."""
    evidence("pyyaml")
    import yaml

    (hook,) = (hook for repo in yaml.safe_load(examples("yaml")[1])["repos"] for hook in repo["hooks"])
    assert (hook["language"], hook["pass_filenames"]) == ("system", False)
    script = repository / ".git" / "hooks" / "pre-commit"
    script.parent.mkdir(exist_ok=True)
    script.write_text(
        f"#!/bin/sh\ngit diff --cached --name-only | grep -qE '{hook['files']}' || exit 0\n{hook['entry']}\n"
    )
    script.chmod(0o755)
    commit = "git add -A && git commit -qm changed"
    put("data_fingerprint", "other")(repository / "artifact")  # nothing that is judged
    assert bash(commit, repository).returncode == 0
    remodel(repository / "artifact", weight=-WEIGHT)
    done = bash(commit, repository)
    assert done.returncode == 1, done.stderr
    assert "broken label_flips" in done.stdout + done.stderr
    patch("model.onnx", flip_bit)(repository / "artifact")
    assert "expected model.onnx as" in bash(commit, repository).stderr
    assert bash("git log --format=%s", repository).stdout.split() == ["changed", "sound"]


@pytest.mark.parametrize(("weight", "code", "end"), [(WEIGHT, 0, "held"), (-WEIGHT, 1, "broken")])
def test_the_action_of_the_page_fails_on_a_broken_artifact_and_says_why(repository, tmp_path, weight, code, end):
    evidence("pyyaml")
    import yaml

    (job,) = yaml.safe_load(examples("yaml")[0])["jobs"].values()
    assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    remodel(repository / "artifact", weight=weight)
    summary, codes = tmp_path / "summary.md", []
    for step in (step for step in job["steps"] if "run" in step):
        if not any(codes) or "always()" in step.get("if", ""):
            codes.append(bash(step["run"], repository, GITHUB_STEP_SUMMARY=str(summary)).returncode)
    assert codes == [0, code, 0]
    assert summary.read_text().splitlines()[-1] == f"    {end}"
    assert len(list(repository.glob("check.*"))) == 2


def test_every_option_of_the_page_is_one_of_the_verb_and_of_the_file(capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "COLUMNS", "200")
    used = {
        option
        for text in re.findall(r"(?:qrobust check|verify\.py) [^`#\n]*", PAGE.read_text())
        for option in re.findall(r"--[a-z-]+", text)
    }
    assert used >= {"--baseline", "--update-baseline", "--reason", "--json", "--junit", "--markdown"}
    with pytest.raises(SystemExit):
        runtime.main(["--help"])
    assert used <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    monkeypatch.setattr(sys, "argv", ["qrobust", "check", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert used <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
