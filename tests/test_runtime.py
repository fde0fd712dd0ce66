"""runtime.py: Square, loading an artifact, timing and the travelling copy."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qrobust import runtime
from qrobust.runtime import Artifact, ArtifactError, check, square_attack

EPS = 16 / 255
SHAPE = (1, 4, 4)
LIMITS = {"label_flips": 0.005, "accuracy_drop": 0.01, "robust_drop": 0.02, "square_gap": 0.02}
STATISTICS = {"alpha": 0.05, "power": 0.8, "detected_drop": 0.4}  # 32 images are enough for that


def linear(weight):
    """Logits (n, 2) of the classifier sign(weight · (x - 0.5)); its exact worst case is known."""

    def logits(x):
        score = (x.reshape(len(x), -1) - np.float32(0.5)) @ weight
        return np.stack([-score, score], axis=1)

    return logits


def worst_case(x, y, weight, eps=EPS):
    """The strongest L-inf attack on `linear(weight)`: every pixel moves against the true class."""
    sign = np.where(y == 1, -1, 1)[:, None] * np.sign(weight)
    return np.clip(x + np.float32(eps) * sign.reshape(x.shape), 0, 1).astype(np.float32)


def images(n=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8)


WEIGHT = np.random.default_rng(1).normal(size=16).astype(np.float32)
LOGITS = linear(WEIGHT)


def floats(x):
    return x.astype(np.float32) / np.float32(255)


def model_bytes(weight=WEIGHT, scale=1.0, batch="batch"):
    matrix = np.stack([-weight, weight], axis=1) * np.float32(scale)
    bias = -0.5 * matrix.sum(axis=0)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    values = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *SHAPE]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2]),
    ]
    constants = [numpy_helper.from_array(matrix, "weight"), numpy_helper.from_array(bias, "bias")]
    graph = helper.make_graph(nodes, "linear", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.ModelProto.SerializeToString(model)


def suite_arrays(attacked=True):
    x = images()
    y = LOGITS(floats(x)).argmax(1).astype(np.int64)
    y[:4] = 1 - y[:4]  # a few that the network gets wrong
    adversarial = worst_case(floats(x), y, WEIGHT) if attacked else floats(x)
    arrays = {"y": y, "x.clean": x, "x.pgd-20": np.round(adversarial * 255).astype(np.uint8)}
    for name in ("clean", "pgd-20"):
        arrays[f"label.{name}"] = LOGITS(floats(arrays[f"x.{name}"])).argmax(1).astype(np.int64)
    arrays["logits.clean"] = LOGITS(floats(x)).astype(np.float32)
    return arrays


def manifest_of(arrays):
    accuracy = {name: float((arrays[f"label.{name}"] == arrays["y"]).mean()) for name in ("clean", "pgd-20")}
    options = {"graph_optimization_level": "all", "intra_op_num_threads": 1}
    manifest = {"schema_version": 1, "producer": "qrobust 0.1.0", "name": "linear", "files": {}, "bits": 4}
    manifest |= {
        "input": {"name": "images", "shape": [*SHAPE], "layout": "NCHW"},
        "output": {"name": "logits"},
    }
    manifest["input"] |= {"range": [0, 1], "dtype": "float32"}
    manifest |= {"classes": ["a", "b"], "bits_per_layer": {}, "opset": 20, "seed": 0, "recipe": {}}
    manifest |= {"target": {"name": "cpu", "provider": "CPUExecutionProvider", "session_options": options}}
    manifest |= {"threat": {"norm": "linf", "eps": EPS}, "data_fingerprint": "none", "versions": {}}
    manifest |= {"metrics": {"before": {}, "after": {}}, "reference": accuracy, "limits": LIMITS}
    manifest |= {"statistics": STATISTICS}
    return manifest | {"square": {"queries": 50, "n": 32}}


def edit(folder, change=lambda manifest: None):
    """Change the manifest, and hash the files anew."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("model.onnx", "suite.npz", "verify.py"):
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    change(manifest)
    path.write_text(json.dumps(manifest))


def write(folder, arrays, model=None):
    folder.mkdir(exist_ok=True)
    np.savez(folder / "suite.npz", **arrays)
    (folder / "model.onnx").write_bytes(model or model_bytes())
    shutil.copy(runtime.__file__, folder / "verify.py")
    (folder / "manifest.json").write_text(json.dumps(manifest_of(arrays)))
    edit(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "artifact", suite_arrays())


# Square


def attack(weight=WEIGHT, queries=60, seed=0, eps=EPS, **more):
    x = images()
    y = LOGITS(floats(x)).argmax(1)
    return floats(x), y, square_attack(linear(weight), x, y, eps, queries, seed, **more)


@pytest.mark.parametrize("eps", [0.0, 2 / 255, EPS, 0.5, 1.0])
def test_square_stays_in_the_ball_and_in_range(eps):
    x, _, (x_adv, _, used) = attack(eps=eps)
    assert x_adv.dtype == np.float32
    assert x_adv.shape == x.shape
    assert np.abs(x_adv - x).max() <= eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert 0 <= used.min() <= used.max() <= 60


def test_square_says_broken_exactly_where_the_label_is_wrong():
    _, y, (x_adv, broken, used) = attack()
    np.testing.assert_array_equal(broken, LOGITS(x_adv).argmax(1) != y)
    assert (used[~broken] == 60).all()


def test_square_same_seed_same_result_other_seed_another():
    first, again, other = attack()[2], attack()[2], attack(seed=1)[2]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])


def test_square_never_beats_the_exact_worst_case_and_comes_near_it():
    x, y, (x_adv, broken, _) = attack(queries=300)
    exact = LOGITS(worst_case(x, y, WEIGHT)).argmax(1) != y
    assert not (broken & ~exact).any()
    assert exact.sum() > 5
    assert broken.sum() >= 0.8 * exact.sum()
    gaps = [(rows[np.arange(len(y)), y] - rows[np.arange(len(y)), 1 - y]) for rows in map(LOGITS, (x, x_adv))]
    assert (gaps[1] <= gaps[0]).mean() > 0.95


def test_square_breaks_a_fragile_model_and_not_a_constant_one():
    x = np.full((8, 3, 5, 7), 0.5, np.float32)  # not square, three channels
    y = np.zeros(8, np.int64)

    def fragile(x):
        return np.stack([np.full(len(x), 0.01), x[:, 0].mean((1, 2)) - 0.5], axis=1).astype(np.float32)

    def constant(x):
        return np.tile(np.float32([1, 0]), (len(x), 1))

    assert square_attack(fragile, x, y, EPS, 100, 0)[1].all()
    assert not square_attack(constant, x, y, EPS, 20, 0)[1].any()
    stripes = square_attack(constant, x, y, EPS, 1, 0)[0] - x  # the start counts even where it gains nothing
    np.testing.assert_allclose(np.abs(stripes), EPS, atol=1e-6)
    assert (stripes == stripes[:, :, :1]).all()


def test_square_leaves_wrong_images_alone_and_reports_steps():
    x, steps = images(), []
    y = 1 - LOGITS(floats(x)).argmax(1)
    y[0] = 1 - y[0]
    x_adv, broken, used = square_attack(LOGITS, x, y, 1e-9, 5, 0, lambda *at: steps.append(at))
    assert broken[1:].all()
    assert used.tolist() == [5] + [0] * 63
    np.testing.assert_array_equal(x_adv[1:], floats(x)[1:])
    assert steps == [(at, 5) for at in range(1, 6)]


def test_square_refuses_normalised_images():
    with pytest.raises(ArtifactError, match=r"expected images in \[0, 1\], got \[-2.12, 2.64\]"):
        square_attack(LOGITS, np.float32([[[[-2.12, 2.64]]]]), np.zeros(1, int), EPS, 5, 0)


# Loading and logits


def test_artifact_says_what_it_is_and_runs(folder):
    artifact = Artifact.load(folder)
    assert (artifact.name, artifact.classes, artifact.sets) == ("linear", ("a", "b"), ("clean", "pgd-20"))
    assert artifact.eps == EPS
    x = images(300)  # more than one batch
    np.testing.assert_allclose(artifact.logits(x), LOGITS(floats(x)), atol=1e-5)
    np.testing.assert_array_equal(artifact.logits(x), artifact.logits(floats(x)))
    for session in (artifact.session(threads=1), artifact.session(allow_spinning=0)):
        np.testing.assert_array_equal(artifact.logits(x, session), artifact.logits(x))


def test_products_of_8_bits_do_not_saturate_on_any_processor(folder):
    """Without the option, x64 processors that lack VNNI add pairs of products in 16 bits."""
    product = {"x": np.full((1, 64), 255, np.uint8)}
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> sums (uint8[n, 64] x) => (int32[n, 64] y)
        <int8[64, 64] w, int8 zero, uint8 origin = {0}> { y = MatMulInteger (x, w, origin, zero) }"""
    )
    weights = {"w": np.full((64, 64), 127, np.int8), "zero": np.array(0, np.int8)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    (folder / "sums.onnx").write_bytes(model.SerializeToString())
    exact = runtime.load_session(folder / "sums.onnx", "CPUExecutionProvider", 1, {"x64quantprecision": 1})
    (sums,) = exact.run(None, product)
    assert (sums == 64 * 255 * 127).all()


def test_session_refuses_providers_and_options_that_it_does_not_know(folder):
    artifact = Artifact.load(folder)
    with pytest.raises(ArtifactError, match=r"expected a provider out of .*, got 'NoProvider'"):
        artifact.session("NoProvider")
    with pytest.raises(ArtifactError, match="got 'optimized_model_filepath'; mend the target"):
        artifact.session(optimized_model_filepath="/tmp/elsewhere.onnx")
    for wrong in ({"graph_optimization_level": "most"}, {"allow_spinning": "no"}, {"intra_op_num_threads": 10**6}):
        with pytest.raises(ArtifactError, match=r"mend the target|expected 0 to 1024 as \w+, got"):
            artifact.session(**wrong)


def replace(name, **arrays):
    return lambda folder: (np.savez(folder / name, **{**suite_arrays(), **arrays}), edit(folder))


def patch(name, change, *, hashed=False):
    """Change the bytes of a file, and hash them anew or not."""

    def damage(folder):
        data = bytearray((folder / name).read_bytes())
        change(data)
        (folder / name).write_bytes(data)
        if hashed:
            edit(folder)

    return damage


def truncate(data):
    del data[-100:]


def flip_bit(data):
    data[len(data) // 2] ^= 1


def bomb(data):
    """Let the zip directory claim 2 GiB for its first array."""
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (2**31 - 1).to_bytes(4, "little")


def remove(name):
    return lambda folder: (folder / name).unlink()


def put(*path):
    """A change of the manifest: put("threat", "eps", 2) sets manifest["threat"]["eps"] = 2."""

    def change(folder):
        def set_value(manifest):
            for key in path[:-2]:
                manifest = manifest[key]
            manifest[path[-2]] = path[-1]

        edit(folder, set_value)

    return change


def model(data):
    return lambda folder: ((folder / "model.onnx").write_bytes(data), edit(folder))


LABELS = suite_arrays()["y"]
UNUSABLE = {
    "changed model": (patch("model.onnx", flip_bit), "model.onnx as .*sha256"),
    "missing file": (remove("suite.npz"), "suite.npz .* got no such file"),
    "truncated suite": (patch("suite.npz", truncate), "suite.npz as .*size_bytes"),
    "truncated suite, hashed": (patch("suite.npz", truncate, hashed=True), "plain arrays .* BadZipFile"),
    "pickle": (replace("suite.npz", y=np.array([{}] * 64)), "plain arrays .* Object arrays"),
    "wrong shape": (replace("suite.npz", **{"x.clean": images()[:, :, :3]}), r"got \(64, 1, 3, 4\)"),
    "wrong dtype": (replace("suite.npz", y=LABELS.astype(np.int32)), "y as .*int64.* got .*int32"),
    "extra array": (replace("suite.npz", more=LABELS), "got .*'more'"),
    "label out of range": (replace("suite.npz", y=LABELS + 1), r"labels y in \[0, 2\), got \[1, 2\]"),
    "negative label": (replace("suite.npz", y=LABELS - 1), r"got \[-1, 0\]"),
    "zip bomb": (patch("suite.npz", bomb, hashed=True), "at most 536870912 bytes"),
    "newer manifest": (put("schema_version", 99), "schema_version 1.*, got 99; upgrade qrobust"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "expected JSON"),
    "no object": (lambda folder: (folder / "manifest.json").write_text("[]"), "expected JSON"),
    "no manifest": (remove("manifest.json"), "no manifest.json; pass"),
    "traversal": (put("files", "../x", {"size_bytes": 1, "sha256": ""}), "plain file names .* '../x'"),
    "missing key": (put("limits", {}), "'limits .*KeyError"),
    "no alpha": (put("statistics", {}), "'statistics alpha.*KeyError"),
    "alpha of a half": (put("statistics", "alpha", 0.5), "alpha < 0.5 <= power"),
    "certain power": (put("statistics", "power", 1), "power < 1"),
    "tolerated as detected": (put("statistics", "detected_drop", 0.02), "detected_drop above the tolerated 0.02"),
    "latency of text": (put("limits", "latency_ms", "fast"), "logit_change, latency_ms and size_bytes, got 'fast'"),
    "size of infinity": (put("limits", "size_bytes", math.inf), "null or a number above 0"),
    "other reference": (put("reference", "clean", 0.5), "labels of clean that are right in 0.5"),
    "wrong type": (put("square", "queries", True), "valid int as 'square queries'"),
    "eps of pixels": (put("threat", "eps", 16), "valid float as 'threat eps' in manifest.json, got 16"),
    "l2": (put("threat", "norm", "l2"), "norm linf, got .*'l2'"),
    "bad shape": (put("input", "shape", [1, 4]), "shape of three sizes"),
    "control characters": (put("name", "a\r\x1b[2Kheld"), "printable names"),
    "limit of NaN": (put("limits", "square_gap", float("nan")), "valid float as 'limits square_gap'"),
    "not a model": (model(b"nothing"), "a model and options for CPUExecutionProvider"),
    "fixed batch": (model(model_bytes(batch=1)), "expected any batch"),
    "NaN weights": (model(model_bytes(scale=np.nan)), "finite logits, got NaN"),
    "other input": (put("input", "name", "pixels"), "expected any batch and .*'pixels'"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_artifacts_end_with_code_2_and_one_line(folder, capsys, case):
    damage, message = UNUSABLE[case]
    damage(folder)
    assert runtime.main([str(folder)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    with pytest.raises(ArtifactError, match=message) as caught:
        check(Artifact.load(folder))
    assert error == f"error: {caught.value}\n"
    assert caught.value.exit_code == 2


# Timing, the copy


class Counter:
    """A session that does nothing but note its turn."""

    def __init__(self, name, turns):
        self.name, self.turns = name, turns

    def get_inputs(self):
        return [self]

    def run(self, outputs, feeds):
        assert list(feeds) == [self.name]
        self.turns.append(self.name)


def test_time_sessions_takes_turns_and_leaves_out_the_warm_up():
    turns = []
    sessions = {name: Counter(name, turns) for name in "abc"}
    times = runtime.time_sessions(sessions, floats(images(1)), min_seconds=0, min_runs=7, warmup=2)
    assert {name: len(values) for name, values in times.items()} == {"a": 7, "b": 7, "c": 7}
    assert "".join(turns[:9]) == "abcbcacab"
    assert len(turns) == 27
    assert len(runtime.time_sessions(sessions, images(1), min_seconds=0.02, min_runs=1)["a"]) > 1


def python(*arguments, cwd):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


def test_the_copy_runs_alone_with_and_without_an_argument(folder, tmp_path):
    assert (folder / "verify.py").read_bytes() == Path(runtime.__file__).read_bytes()
    shutil.copy(runtime.__file__, tmp_path / "copy.py")
    named = python("-I", "copy.py", "artifact", cwd=tmp_path)
    own = python("-I", "verify.py", cwd=folder)
    assert (named.returncode, own.returncode, named.stderr) == (0, 0, "")
    assert named.stdout == own.stdout
    missing = python("-I", "copy.py", "nowhere", cwd=tmp_path)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("module", ["alone", "qrobust.runtime"])
def test_importing_loads_neither_torch_nor_onnxruntime(tmp_path, module):
    shutil.copy(runtime.__file__, tmp_path / "alone.py")
    paths = [str(tmp_path), str(Path(runtime.__file__).parents[1])]
    found = "print({'torch', 'onnxruntime'} & {*sys.modules})"
    code = f"import sys; sys.path[:0] = {paths}; import {module}; {found}"
    assert python("-c", code, cwd=tmp_path).stdout == "set()\n"


def test_without_numpy_it_ends_with_code_2(folder):
    done = python("-I", "-S", "verify.py", cwd=folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected numpy" in done.stderr
