"""What is kept of an evaluation, and that it comes back whole."""

import json
from pathlib import Path

import numpy as np
import pytest

from qrobust.errors import RunError
from qrobust.evaluation import compare, read_outcomes
from qrobust.evaluation.outcomes import accuracy, by_class
from qrobust.runtime import wilson

from .helpers import mask, outcomes

OLD = Path(__file__).resolve().parents[1] / "fixtures" / "0.1.0" / "eval.json"


def some():
    return outcomes(clean="1111", gn="0000", fgsm="1101", pgd_20="1011")


def test_worst_case_leaves_out_what_has_no_bound():
    found = some()
    assert found.worst_case().tolist() == [True, False, False, True]
    found.correct["clean"][0] = False
    assert found.worst_case().tolist() == [False, False, False, True]


def test_accuracy_comes_with_its_interval():
    assert accuracy(mask("1" * 30 + "0" * 10)) == {"accuracy": 0.75, "ci95": list(wilson(30, 40))}


def test_the_shape_of_the_json():
    table = json.loads(json.dumps(some().to_dict(), allow_nan=False))
    assert (table["n"], table["seed"], table["threat"]) == (4, 5, {"norm": "linf", "eps": 8 / 255})
    assert table["images"] == "sha"
    assert table["clean"]["accuracy"] == 1.0
    assert list(table["attacks"]) == ["gn", "fgsm", "pgd-20"]
    assert table["attacks"]["pgd-20"] == {
        "accuracy": 0.75,
        "ci95": list(wilson(3, 4)),
        "settings": {"loss": "ce", "keep": "last", "steps": 20, "step_size": 2 / 255, "restarts": 1},
        "bounded": True,
        "seconds": 0.123,
    }
    assert table["attacks"]["gn"]["bounded"] is False
    assert table["worst_case"]["accuracy"] == 0.5
    assert {"versions", "hardware"} <= set(table)


@pytest.mark.parametrize("n", [1, 8, 29])
def test_a_round_trip_over_the_disk(tmp_path, n):
    """Masks are packed to bits, also where n is no multiple of eight."""
    rng = np.random.default_rng(n)
    bits = {name: "".join(rng.choice(["0", "1"], n)) for name in ("clean", "gn", "cw_20", "pgd_20")}
    found, path = outcomes(**bits), tmp_path / "deep" / "eval.qm-4.json"
    found.save(path, bits=4)
    table, masks = read_outcomes(path)
    assert table == json.loads(json.dumps(found.to_dict() | {"bits": 4}))
    assert masks.keys() == found.correct.keys()
    assert all(np.array_equal(masks[name], found.correct[name]) for name in masks)
    assert {file.name for file in path.parent.iterdir()} == {"eval.qm-4.json", "eval.qm-4.npz"}


def test_settings_behind_colons_are_names_too(tmp_path):
    name = "pgd-20:step_size=1/255"
    outcomes(**{"clean": "110", name: "100"}).save(tmp_path / "a.json")
    assert read_outcomes(tmp_path / "a.json")[1][name].tolist() == [True, False, False]


def _change(path, text):
    path.write_bytes(text(path.read_bytes()))


SPOILED = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no archive"),
    "truncated": lambda path: _change(path, lambda data: data[:-30]),
    "half": lambda path: _change(path, lambda data: data[: len(data) // 2]),
    "changed": lambda path: _change(path, lambda data: data[:70] + bytes([data[70] ^ 255]) + data[71:]),
    "without an attack": lambda path: np.savez(path, clean=np.packbits(mask("1111"))),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_result_without_its_masks_is_refused(tmp_path, spoil):
    path = tmp_path / "eval.json"
    some().save(path)
    spoil(path.with_suffix(".npz"))
    with pytest.raises(RunError) as caught:
        read_outcomes(path)
    text = str(caught.value)
    assert text.startswith(f"expected an evaluation at {path} with its .npz beside it, got: ")
    assert text.endswith("; write one by qrobust eval --json, or a run's own by qrobust run")


def test_no_changed_byte_changes_a_mask(tmp_path):
    """Each byte in turn: masks come back as they were, or the file is refused."""
    path, refused = tmp_path / "eval.json", 0
    found = outcomes(clean="11111111" * 9, fgsm="1100101011110101" * 4 + "10101010")
    found.save(path)
    data = path.with_suffix(".npz").read_bytes()
    for k in range(len(data)):
        path.with_suffix(".npz").write_bytes(data[:k] + bytes([data[k] ^ 255]) + data[k + 1 :])
        try:
            _, masks = read_outcomes(path)
        except RunError:
            refused += 1
        else:
            assert all(np.array_equal(masks[name], found.correct[name]) for name in masks), k
    assert len(data) / 2 < refused < len(data)


@pytest.mark.parametrize("content", ["[1, 2]", '{"n": 4}', '{"qm-4": {"attacks": {}}}', "3"])
def test_another_json_is_refused(tmp_path, content):
    path = tmp_path / "eval.json"
    some().save(path)
    path.write_text(content)
    with pytest.raises(RunError, match=r"expected an evaluation at .*eval\.json"):
        read_outcomes(path)


def test_no_json_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"expected a JSON file .*; write one by qrobust eval --json"):
        read_outcomes(tmp_path / "eval.json")


def test_the_chosen_images_are_in_the_results(tmp_path):
    found = some()
    found.indices = [7, 0, 3, 2]
    found.save(tmp_path / "a.json")
    assert read_outcomes(tmp_path / "a.json")[0]["indices"] == [7, 0, 3, 2]


def test_a_result_of_version_0_1_is_read_and_compared():
    """It took the first n images, and says nothing of indices."""
    table, masks = read_outcomes(OLD)
    assert "indices" not in table
    assert all(len(mask) == table["n"] for mask in masks.values())
    assert table["clean"] == accuracy(masks["clean"])
    result = compare(OLD, OLD)
    assert result["n"] == table["n"]
    assert result["sets"]["worst_case"]["difference"] == 0


# By class


def test_shares_by_class_add_up_to_the_whole():
    found = some()
    assert "per_class" not in found.to_dict()
    found.labels, found.classes = np.array([0, 2, 2, 0]), 4
    table = json.loads(json.dumps(found.to_dict()))
    assert table["per_class"] == {
        "n": [2, 0, 2, 0],
        "clean": [1.0, None, 1.0, None],
        "worst_case": [1.0, None, 0.0, None],
    }
    for name in ("clean", "worst_case"):
        shares = table["per_class"]
        right = sum(n * share for n, share in zip(shares["n"], shares[name], strict=True) if n)
        assert right / found.n == table[name]["accuracy"]


def test_by_class_against_its_definition():
    generator = np.random.default_rng(0)
    labels, right = generator.integers(5, size=200), generator.random(200) < 0.5
    found = by_class(labels, 6, {"some": right})
    assert found["n"] == [int((labels == k).sum()) for k in range(6)]
    assert found["some"] == [float(right[labels == k].mean()) for k in range(5)] + [None]
