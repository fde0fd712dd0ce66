"""Artifacts that somebody means harm by: one line and exit code 2, or a verdict; no code run, no memory taken."""

import io
import os
import resource
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qrobust import runtime
from qrobust.runtime import Artifact, ArtifactError, check

from .test_runtime import edit, model_bytes, patch, put, suite_arrays, write

MEMORY = 2 * 2**30


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sound") / "artifact", suite_arrays())


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "artifact", suite_arrays())


def limited():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def verify(folder, *options, module=("-I", runtime.__file__)):
    """The command in a process that may take 2 GiB."""
    command = [sys.executable, *module, str(folder), "--queries", "50", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, preexec_fn=limited, timeout=120)


def says_one_line(done):
    assert done.returncode == 2, done.stdout + done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1), done.stdout + done.stderr
    assert done.stderr.startswith("error: expected ")
    assert done.stderr[:-1].isprintable()


# Graphs


def rewrite(change):
    """A change of the graph, with a manifest that agrees."""

    def damage(folder):
        proto = onnx.load_from_string(model_bytes())
        change(proto)
        (folder / "model.onnx").write_bytes(proto.SerializeToString())
        edit(folder)

    return damage


def keep_outside(location):
    """The weight in another file, which is there, and 64 bytes of anything."""

    def damage(folder):
        for place in (folder, folder.parent):
            (place / "weight.bin").write_bytes(np.ones((16, 2), np.float32).tobytes())

        def change(proto):
            tensor = proto.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", "0"), ("length", "128")):
                tensor.external_data.add(key=key, value=value)

        rewrite(change)(folder)

    return damage


def between(*nodes, **constants):
    """Nodes in front of the graph, from "images" to "harm"."""

    def change(proto):
        rest = list(proto.graph.node)
        rest[0].input[0] = "harm"
        del proto.graph.node[:]
        proto.graph.node.extend([*nodes, *rest])
        arrays = (numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
        proto.graph.initializer.extend(arrays)

    return rewrite(change)


def second_input(proto):
    proto.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch"]))
    proto.graph.node.append(helper.make_node("Identity", ["more"], ["unused"]))
    proto.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, ["batch"]))


def no_input(proto):
    del proto.graph.input[:]


def sequence_output(proto):
    proto.graph.node[-1].output[0] = "plain"
    proto.graph.node.append(helper.make_node("SequenceConstruct", ["plain"], ["logits"]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("logits", TensorProto.FLOAT, None))


def double_output(proto):
    proto.graph.node[-1].output[0] = "plain"
    proto.graph.node.append(helper.make_node("Cast", ["plain"], ["logits"], to=TensorProto.DOUBLE))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def large_weight(proto):
    proto.graph.initializer[0].dims[:] = [2**40, 2**40]


def ring(proto):
    proto.graph.node[0].input[0] = "logits"


def escape(proto):
    proto.graph.node[0].op_type = "Flat\x1b[2J\nheld\n"


GRAPHS = {
    "weights beside": keep_outside("weight.bin"),
    "weights above": keep_outside("../weight.bin"),
    "weights of the system": keep_outside("/etc/passwd"),
    "weights of memory": keep_outside("*/_ORT_MEM_ADDR_/*"),
    "custom operator": between(helper.make_node("Run", ["images"], ["harm"], domain="evil", command="touch harmed")),
    "python operator": between(helper.make_node("PyOp", ["images"], ["harm"], domain="ai.onnx.contrib", code="1")),
    "a terabyte": between(
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["images", "zero"], ["harm"]),
        size=np.array([2**38]),
    ),
    "a terabyte when it runs": between(
        helper.make_node("Tile", ["images", "times"], ["tiled"]),
        helper.make_node("Slice", ["tiled", "from", "to"], ["harm"]),
        times=np.array([1, 1, 2**17, 2**17]),
        **{"from": np.array([0, 0, 0, 0]), "to": np.array([10**9, 1, 4, 4])},
    ),
    "two inputs": rewrite(second_input),
    "no input": rewrite(no_input),
    "a sequence of logits": rewrite(sequence_output),
    "logits of doubles": rewrite(double_output),
    "huge dimensions": rewrite(large_weight),
    "a ring": rewrite(ring),
    "terminal codes": rewrite(escape),
    "empty": patch("model.onnx", lambda data: data.clear(), hashed=True),
    "truncated": patch("model.onnx", lambda data: data.__delitem__(slice(-60, None)), hashed=True),
}


# Suites


def repack(method, **arrays):
    """The suite by another compression, some arrays changed: bytes of .npy files, or arrays."""

    def damage(folder):
        with zipfile.ZipFile(folder / "suite.npz", "w", method) as archive:
            for name, value in {**suite_arrays(), **arrays}.items():
                buffer = io.BytesIO()
                np.save(buffer, value) if isinstance(value, np.ndarray) else buffer.write(value)
                archive.writestr(f"{name}.npy", buffer.getvalue())
        edit(folder)

    return damage


def npy(header, version=b"\x01\x00"):
    """The head of a .npy file that says what it likes."""
    text = header.encode() + b" " * (-len(header) - 11 % 64) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


def shaped(shape, kind="'<i8'"):
    return npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}")


class Harm:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def overlong(data):
    """Let the directory say that arrays are shorter than they unpack to."""
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (1).to_bytes(4, "little")


ZEROS = bytes(2**24)
SUITES = {
    "pickle": repack(zipfile.ZIP_STORED, y=np.array([Harm()] * 64, dtype=object)),
    "lzma bomb": repack(zipfile.ZIP_LZMA, y=shaped("(64,)") + ZEROS),
    "bzip2 bomb": repack(zipfile.ZIP_BZIP2, y=shaped("(64,)") + ZEROS),
    "a terabyte": repack(zipfile.ZIP_STORED, y=shaped(f"({2**37},)")),
    "more than can be counted": repack(zipfile.ZIP_STORED, y=shaped(f"({2**62}, {2**62})")),
    "negative shape": repack(zipfile.ZIP_STORED, y=shaped("(-1,)")),
    "code as header": repack(zipfile.ZIP_STORED, y=npy("__import__('pathlib').Path('harmed').touch()")),
    "deep header": repack(zipfile.ZIP_STORED, y=npy("(" * 5000)),
    "objects in fields": repack(zipfile.ZIP_STORED, y=shaped("(64,)", "[('a', '|O')]") + bytes(512)),
    "old header": repack(zipfile.ZIP_STORED, y=shaped("(64L,)", "'<i8'") + bytes(511)),
    "a scalar": repack(zipfile.ZIP_STORED, y=np.array(3)),
    "no images": repack(zipfile.ZIP_STORED, y=np.zeros(0, np.int64)),
    "lengths that lie": patch("suite.npz", overlong, hashed=True),
    "empty": patch("suite.npz", lambda data: data.clear(), hashed=True),
}


# Manifests


def raw(text):
    return lambda folder: (folder / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def one_more_file(name):
    return put("files", name, {"sha256": "0" * 64, "size_bytes": 1})


def linked(folder):
    """A pipe in place of a file would be waited for without end."""
    (folder / "suite.npz").unlink()
    os.mkfifo(folder / "suite.npz")


MANIFESTS = {
    "later version": put("schema_version", 3),
    "version of text": put("schema_version", "1"),
    "deep": raw("[" * 100_000),
    "no text": raw(b"\xff\xfe\x00"),
    "a huge number": raw('{"schema_version": ' + "9" * 10_000 + "}"),
    "20 MiB": raw('{"a": "' + "a" * (20 * 2**20) + '"}'),
    "path above": one_more_file("../weight.bin"),
    "path of the system": one_more_file("/etc/passwd"),
    "folder": one_more_file(".."),
    "no name": one_more_file(""),
    "long name": one_more_file("a" * 5000),
    "name with zero": one_more_file("a\0b"),
    "half a character": one_more_file("\ud800"),
    "files as a list": put("files", []),
    "a file as text": put("files", "verify.py", "verify.py"),
    "pipe": linked,
    "huge image": put("input", "shape", [10**9, 10**9, 10**9]),
    "image of text": put("input", "shape", ["1", "4", "4"]),
    "no class": put("classes", []),
    "unprintable class": put("classes", ["a", "b\x1b[2J"]),
    "a million threads": put("target", "session_options", {"intra_op_num_threads": 10**6}),
    "negative threads": put("target", "session_options", {"intra_op_num_threads": -5}),
    "option that writes": put("target", "session_options", {"optimized_model_filepath": "harmed"}),
    "level as a list": put("target", "session_options", {"graph_optimization_level": []}),
    "unprintable provider": put("target", "provider", "\x1b[2J\nheld"),
    "null": put("threat", None),
    "smallest gap": put("statistics", "detected_drop", 0.02 + 1e-9),
    "certain alpha": put("statistics", "alpha", 1e-300),
    "reference of text": put("reference", "pgd-20", "1"),
    "attack named square": put("reference", "square", 0.5),
}
HARMS = {
    f"{part}: {name}": damage
    for part, table in (("model", GRAPHS), ("suite", SUITES), ("manifest", MANIFESTS))
    for name, damage in table.items()
}
# In a process of their own even by default: what they show is that memory is not taken.
HEAVY = ("model: a terabyte", "model: a terabyte when it runs", "suite: a terabyte", "suite: lzma bomb")


@pytest.mark.parametrize("case", [case for case in HARMS if case not in HEAVY])
def test_harm_is_one_line(folder, capfd, case):
    HARMS[case](folder)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        code = runtime.main([str(folder), "--queries", "50"])
    out, error = capfd.readouterr()
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert not said
    assert error.startswith("error: expected ")
    assert error[:-1].isprintable()
    with pytest.raises(ArtifactError):
        check(Artifact.load(folder), queries=50)
    assert not list(folder.parent.rglob("harmed"))


@pytest.mark.parametrize("case", HEAVY)
def test_harm_takes_no_memory(folder, case):
    HARMS[case](folder)
    says_one_line(verify(folder))


@pytest.mark.slow
@pytest.mark.parametrize("case", HARMS)
def test_harm_is_one_line_of_both_commands(folder, case):
    HARMS[case](folder)
    says_one_line(verify(folder))
    says_one_line(verify(folder, module=("-m", "qrobust", "check")))
    assert not list(folder.parent.rglob("harmed"))


def test_two_gibibytes_are_enough_for_a_sound_artifact(sound):
    done = verify(sound)
    assert (done.returncode, done.stderr) == (0, "")


def test_large_images_are_attacked_in_parts(folder, monkeypatch):
    whole, steps = check(Artifact.load(folder), queries=50), []
    monkeypatch.setattr(runtime, "MAX_PIXELS", 16 * 7)  # seven images at once: five parts of 32
    parts = check(Artifact.load(folder), queries=50, on_step=lambda *at: steps.append(at))
    assert len(steps) == 5 * 50
    assert {**parts.accuracy, "square": 0} == {**whole.accuracy, "square": 0}
    assert parts.counts == whole.counts


# Baselines


HOSTILE = ("", "[]", "{}", "[" * 100_000, '{"schema_version": 1e999}', '"\\ud800"', "9" * 10_000)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_baseline_is_one_line(sound, tmp_path, capsys, text):
    (tmp_path / "b.json").write_text(text)
    assert runtime.main([str(sound), "--queries", "50", "--baseline", str(tmp_path / "b.json")]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error[:-1].isprintable()
