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


def name_rows(names):
    """Names as a suite holds them."""
    return np.array([name.encode() for name in names]).view(np.uint8).reshape(len(names), -1)


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
    sets = [name.removeprefix("label.") for name in arrays if name.startswith("label.")]
    accuracy = {name: float((arrays[f"label.{name}"] == arrays["y"]).mean()) for name in sets}
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
    folder.mkdir(parents=True, exist_ok=True)
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


LENGTH = 0.5  # a radius in l2


def lengths(delta):
    return np.linalg.norm(delta.reshape(len(delta), -1), axis=1)


@pytest.mark.parametrize("shape", [SHAPE, (3, 9, 7), (2, 32, 32), (1, 1, 1), (1, 2, 5)])
@pytest.mark.parametrize("whole", [False, True])
def test_square_in_l2_proposes_inside_the_ball_and_in_range(shape, whole):
    x = floats(np.random.default_rng(3).integers(0, 256, (5, *shape), dtype=np.uint8))
    tried = []

    def logits(images):
        tried.append(images)
        return np.random.default_rng(len(tried)).normal(size=(len(images), 2)).astype(np.float32) * [0, 1] + [9, 0]

    best, broken, used = square_attack(logits, x, np.zeros(5, int), LENGTH, 40, 0, norm="l2", whole=whole)
    assert not broken.any()
    assert (used == 40).all()
    for images in (*tried, best):
        assert images.dtype == np.float32
        assert lengths(images - x).max() <= LENGTH * (1 + 1e-5)
        assert 0 <= images.min() <= images.max() <= 1
        steps = images * 255
        assert not whole or np.abs(steps - np.rint(steps)).max() < 1e-3
    if not whole and min(shape[1:]) > 1:  # only the range of pixels keeps a change shorter than the ball allows
        inside = np.full_like(x, 0.5)
        assert (
            lengths(square_attack(logits, inside, np.zeros(5, int), LENGTH, 9, 0, norm="l2")[0] - inside).min() > 0.499
        )


def test_square_in_l2_comes_near_the_exact_worst_case_and_beats_noise():
    """On a linear classifier the margin falls by 2 eps |w| at most; noise of that length reaches a part of it."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=64).astype(np.float32)
    x = (0.5 + 0.05 * rng.normal(size=(64, 1, 8, 8))).astype(np.float32)  # away from the ends of the range
    y = linear(weight)(x).argmax(1)
    noise = rng.normal(size=x.shape).astype(np.float32)
    noisy = x + LENGTH * noise / lengths(noise)[:, None, None, None]

    def score(images):
        return np.abs((images.reshape(64, -1) - 0.5) @ weight) * np.where(linear(weight)(images).argmax(1) == y, 1, -1)

    x_adv, broken, _ = square_attack(linear(weight), x, y, LENGTH, 300, 0, norm="l2")
    exact = score(x) <= LENGTH * np.linalg.norm(weight)
    assert not (broken & ~exact).any()
    assert broken.sum() >= 0.9 * exact.sum() > 20
    assert broken.sum() > 2 * (linear(weight)(noisy).argmax(1) != y).sum()
    again = square_attack(linear(weight), x, y, LENGTH, 300, 0, norm="l2")[0]
    np.testing.assert_array_equal(x_adv, again)


def suite_l2():
    """The worst case of every image in l2, in whole bytes: the shortest way is along the weights."""
    arrays = suite_arrays()
    away = np.where(arrays["y"] == 1, -1, 1)[:, None] * WEIGHT / np.linalg.norm(WEIGHT) * LENGTH * 255
    moved = arrays["x.clean"] + np.trunc(away).reshape(-1, *SHAPE)
    arrays["x.pgd-20"] = moved.clip(0, 255).astype(np.uint8)
    arrays["label.pgd-20"] = LOGITS(floats(arrays["x.pgd-20"])).argmax(1).astype(np.int64)
    return arrays


def test_a_threat_in_l2_is_checked_and_attacked_in_l2(tmp_path):
    threat = put("threat", {"norm": "l2", "eps": LENGTH})
    folder = write(tmp_path / "artifact", suite_l2())
    threat(folder)
    report = check(Artifact.load(folder), queries=200)
    assert report.passed
    assert report.accuracy["square"] < report.accuracy["clean"]
    assert (report.eps, report.policy["threat"]) == (LENGTH, {"norm": "l2", "eps": LENGTH})
    weak = suite_l2()
    weak["x.pgd-20"] = weak["x.clean"] ^ 1  # a step a pixel: stored by an attack that found nothing
    weak["label.pgd-20"] = LOGITS(floats(weak["x.pgd-20"])).argmax(1).astype(np.int64)
    threat(write(folder, weak))
    assert "square_gap" in [v.name for v in check(Artifact.load(folder), queries=200).verdicts if not v.passed]


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


def test_the_bytes_that_were_hashed_are_judged(folder):
    """Another file that is put there behind the hash is never opened."""
    artifact, x = Artifact.load(folder), images()
    (folder / "model.onnx").write_bytes(model_bytes(-WEIGHT))
    np.savez(folder / "suite.npz", **{**suite_arrays(), "y": 1 - suite_arrays()["y"]})
    assert check(artifact).passed
    np.testing.assert_allclose(artifact.logits(x), LOGITS(floats(x)), atol=1e-5)


def test_products_of_8_bits_do_not_saturate_on_any_processor(folder):
    """Without the option, x64 processors that lack VNNI add pairs of products in 16 bits."""
    product = {"x": np.full((1, 64), 255, np.uint8)}
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> sums (uint8[n, 64] x) => (int32[n, 64] y)
        <int8[64, 64] w, int8 zero, uint8 origin = {0}> { y = MatMulInteger (x, w, origin, zero) }"""
    )
    weights = {"w": np.full((64, 64), 127, np.int8), "zero": np.array(0, np.int8)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    data, path = model.SerializeToString(), folder.parent / "sums.onnx"
    path.write_bytes(data)
    for source in (path, str(path), data):
        exact = runtime.load_session(source, "CPUExecutionProvider", 1, {"x64quantprecision": 1})
        (sums,) = exact.run(None, product)
        assert (sums == 64 * 255 * 127).all()


def test_session_refuses_providers_and_options_that_it_does_not_know(folder):
    artifact = Artifact.load(folder)
    with pytest.raises(ArtifactError, match=r"got 'NoProvider'; install a build of onnxruntime"):
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


def raw(old, new):
    """Another text of the manifest."""

    def change(folder):
        text = (folder / "manifest.json").read_text()
        assert old in text
        (folder / "manifest.json").write_text(text.replace(old, new, 1))

    return change


def add(name, content=b""):
    return lambda folder: (folder / name).write_bytes(content)


def attacked(change):
    """Other images as "pgd-20", all labels and digests as they say."""

    def damage(folder):
        arrays = suite_arrays()
        arrays["x.pgd-20"] = change(arrays["x.clean"], arrays["x.pgd-20"])
        arrays["label.pgd-20"] = LOGITS(floats(arrays["x.pgd-20"])).argmax(1).astype(np.int64)
        write(folder, arrays)

    return damage


def one_step_too_far(clean, x_adv):
    x_adv = clean.copy()
    x_adv[0, 0, 0, 0] = clean[0, 0, 0, 0] + 17 if clean[0, 0, 0, 0] < 128 else clean[0, 0, 0, 0] - 17
    return x_adv


LABELS = suite_arrays()["y"]
PARTS = name_rows(["margin-30"] * 64)
UNUSABLE = {
    "changed model": (patch("model.onnx", flip_bit), "model.onnx as .*sha256"),
    "missing file": (remove("suite.npz"), "suite.npz .* got no such file"),
    "truncated suite": (patch("suite.npz", truncate), "suite.npz as .*size_bytes"),
    "truncated suite, hashed": (patch("suite.npz", truncate, hashed=True), "plain arrays .* BadZipFile"),
    "pickle": (replace("suite.npz", y=np.array([{}] * 64)), "plain arrays .* Object arrays"),
    "wrong shape": (replace("suite.npz", **{"x.clean": images()[:, :, :3]}), r"got \(64, 1, 3, 4\)"),
    "wrong dtype": (replace("suite.npz", y=LABELS.astype(np.int32)), "y as .*int64.* got .*int32"),
    "extra array": (replace("suite.npz", more=LABELS), "got .*'more'"),
    "parts of clean images": (replace("suite.npz", **{"found_by.clean": PARTS}), "got .*'found_by.clean'"),
    "parts of a few": (
        replace("suite.npz", **{"found_by.pgd-20": PARTS[1:]}),
        r"as \(\(64, 9\), 'uint8'\), got \(63, 9\)",
    ),
    "one part": (replace("suite.npz", **{"found_by.pgd-20": PARTS[:, 0]}), r"got \(64,\), uint8"),
    "parts as text": (
        replace("suite.npz", **{"found_by.pgd-20": np.array(["a"] * 64)}),
        r"found_by.pgd-20 as \(\(64, 64\), 'uint8'\), got",
    ),
    "parts that beep": (replace("suite.npz", **{"found_by.pgd-20": PARTS % 32}), "printable ASCII in found_by.pgd-20"),
    "label out of range": (replace("suite.npz", y=LABELS + 1), r"labels y in \[0, 2\), got \[1, 2\]"),
    "negative label": (replace("suite.npz", y=LABELS - 1), r"got \[-1, 0\]"),
    "zip bomb": (patch("suite.npz", bomb, hashed=True), "at most 536870912 bytes"),
    "newer manifest": (put("schema_version", 99), "schema_version 1 or 2.*, got 99; upgrade qrobust"),
    "limit of text": (put("limits", "square_gap", "0"), "valid float as 'limits square_gap'"),
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
    "size of infinity": (put("limits", "size_bytes", math.inf), "expected JSON .* not finite, Infinity"),
    "size of 1e999": (raw('"alpha": 0.05', '"alpha": 1e999'), "expected JSON .* not finite, 1e999"),
    "limits twice": (raw('"limits":', '"limits": {"robust_drop": 0.9}, "limits":'), "key 'limits' twice"),
    "a limit twice": (
        raw('"robust_drop": 0.02', '"robust_drop": 0.02, "robust_drop": 0.05'),
        "key 'robust_drop' twice",
    ),
    **{
        f"a loose {name}": (put("limits", name, 0.11), f"a limit of {name} up to 0.1, got 0.11; tolerate less")
        for name in LIMITS
    },
    "hardly an alpha": (put("statistics", "alpha", 1e-4), "expected 0.001 <= alpha < 0.5"),
    "all detected": (put("statistics", "detected_drop", 0.6), "above the tolerated 0.02, up to 0.5"),
    "a later test": (put("statistics", "test", "wald"), "statistical test out of .*, got 'wald'; upgrade qrobust"),
    "a test of no name": (put("statistics", "test", ["wald"]), "statistical test out of .*; upgrade qrobust"),
    "one query": (put("square", "queries", 1), "50 to 1000000 queries of Square, got 1"),
    "one image": (put("square", "n", 1), "Square on 32 images or more, or on the whole suite, got 1"),
    "no eps": (put("threat", "eps", 0), r"eps in \[1/255, 1\] .*, got 0"),
    "eps below a step": (put("threat", "eps", 1e-3), r"eps in \[1/255, 1\]"),
    "no attack": (lambda folder: edit(folder, lambda m: m["reference"].pop("pgd-20")), "a stored attack"),
    "inverted images": (attacked(lambda clean, _: 255 - clean), "images of pgd-20 within eps 0.06275 in linf, got 1.0"),
    "one step too far": (attacked(one_step_too_far), "images of pgd-20 within eps 0.06275 in linf, got 0.0666"),
    "clean as attacked": (attacked(lambda clean, _: clean), "images of pgd-20 that differ from the clean ones"),
    "module beside": (add("numpy.py"), "that manifest.json does not list, got 'numpy.py'; remove it"),
    "folder beside": (lambda folder: (folder / "__pycache__").mkdir(), "does not list, got '__pycache__'"),
    "file of a desktop": (add(".DS_Store"), "got '.DS_Store'"),
    "signed folder": (lambda folder: (folder / "signature.d").mkdir(), "got 'signature.d'"),
    "other reference": (put("reference", "clean", 0.5), "labels of clean that are right in 0.5"),
    "wrong type": (put("square", "queries", True), "valid int as 'square queries'"),
    "eps of pixels": (put("threat", "eps", 16), r"eps in \[1/255, 1\] .* as 'threat eps', got 16"),
    "eps of l2": (put("threat", {"norm": "l2", "eps": 4.1}), r"eps in \[1/255, 4\]"),
    "l1": (put("threat", "norm", "l1"), "norm out of .*, got 'l1'; upgrade"),
    "outside in l2": (put("threat", "norm", "l2"), "images of pgd-20 within eps 0.06275 in l2, got 0.2509"),
    "bad shape": (put("input", "shape", [1, 4]), "shape of three sizes"),
    "control characters": (put("name", "a\r\x1b[2Kheld"), "printable names"),
    "limit of NaN": (put("limits", "square_gap", float("nan")), "expected JSON .* not finite, NaN"),
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
    done = python("-I", "-S", "verify.py", cwd=folder)  # a check's process gets the same flags
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected numpy" in done.stderr
