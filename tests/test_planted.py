"""Faults planted in a deployed file by benches/faults.py: each ends a check with exit code 1 or 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qrobust.runs.run import Run
from qrobust.runtime import Artifact, check

from .test_runtime import suite_arrays, write

BENCHES = Path(__file__).resolve().parent.parent / "benches"
SHORT = (
    "train.epochs=10", "train.milestones=[7]", "train.batch_size=128", "train.attack.steps=4",
    "train.validation.every=5", "quant.epochs=3", "quant.milestones=[2]", "export.suite_attacks=['pgd-20']",
)  # fmt: skip
SEEDS = 3


@pytest.fixture(scope="session")
def bench() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHES))
        import planted

        yield planted


@pytest.fixture(scope="session")
def small(small_run: Path) -> tuple[Run, Path]:
    """The run of the other tests, and its artifact of 4 bits."""
    return Run.open(small_run), small_run / "qm-4" / "artifact"


@pytest.fixture(scope="session")
def good(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, Path]:
    """A robust network of short training, its artifact and its baseline."""
    folder = tmp_path_factory.mktemp("planted")
    run = bench.train(folder / "robust", bench.robust(SHORT))
    place = bench.export(run, folder / "good")
    return run, place, bench.pin(place)


def weights(path: Path) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Width and integers of every weight."""
    widths = {onnx.TensorProto.INT8: 8, onnx.TensorProto.INT4: 4}
    for tensor in onnx.load(path / "model.onnx").graph.initializer:
        if len(tensor.dims) > 1:
            yield widths[tensor.data_type], numpy_helper.to_array(tensor).astype(np.int64)


# On the network of the other tests


def test_the_artifact_as_it_is_holds(bench: Any, small: tuple[Run, Path]) -> None:
    assert bench.judge(small[1]).exit == 0


def test_half_a_percent_off_any_scale_moves_the_logits(bench: Any, small: tuple[Run, Path], tmp_path: Path) -> None:
    import faults

    run, good = small
    names = faults.scales(faults.graph(run))
    for name in names[:: max(1, len(names) // 4)]:
        place = tmp_path / name
        shutil.copytree(good, place)
        faults.stretch(name, 0.5)(place)
        broken = {verdict.name for verdict in check(Artifact.load(place), queries=50).verdicts if not verdict.passed}
        assert "logit_change" in broken, name


@pytest.mark.parametrize("name", ["scale off", "3-bit clip"])
def test_planted_edits_are_caught(bench: Any, small: tuple[Run, Path], name: str) -> None:
    run, place = small
    (fault,) = [fault for fault in bench.edits(run) if fault.name == name]
    row = bench.try_out(fault, place, alone=None)
    assert row["alone"]["exit"] == 1
    assert "label_flips" in row["alone"]["broken"]
    assert name in bench.line(row)


def test_flipped_weights_differ_by_one_bit(bench: Any, small: tuple[Run, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(small[1], tmp_path / "artifact")
    bench.faults.flip_weights(1e-3, 0)(folder)
    changed, total = [], 0
    for (bits, old), (_, new) in zip(weights(small[1]), weights(folder), strict=True):
        changed += [int(difference) for difference in ((old ^ new) & (2**bits - 1))[old != new]]
        total += old.size
    assert len(changed) == round(1e-3 * total)
    assert all(difference.bit_count() == 1 for difference in changed)
    Artifact.load(folder)  # its hashes agree


def test_a_relabelled_artifact_is_whole_and_agrees_with_its_file(
    bench: Any, small: tuple[Run, Path], tmp_path: Path
) -> None:
    run, place = small
    (fault,) = [fault for fault in bench.edits(run) if fault.name == "3-bit clip"]
    row = bench.try_out(bench.Fault(fault.name, fault.plant, suite_too=True), place, alone=None)
    assert not {"label_flips", "accuracy_drop"} & set(row["alone"]["broken"])


@pytest.mark.parametrize(("level", "code"), [("all", 0), ("basic", 2), ("disable", 2)])
def test_a_baseline_of_another_level_of_fusion_is_refused(bench: Any, tmp_path: Path, level: str, code: int) -> None:
    place = write(tmp_path / "good", suite_arrays())
    baseline = bench.pin(place)
    bench.faults.set_target(graph_optimization_level=level)(place)
    found = bench.judge(place, baseline)
    assert found.exit == code
    assert ("expected target.session_options.graph_optimization_level all, as" in found.reason) == (code == 2)


# On a network that was trained for it


@pytest.mark.slow
def test_every_planted_fault_is_caught(bench: Any, good: tuple[Run, Path, Path], tmp_path: Path) -> None:
    run, place, baseline = good
    bare = bench.train(tmp_path / "natural", bench.natural(SHORT))
    faults = [*bench.edits(run), *bench.networks(run, bare, tmp_path), *bench.sessions()]
    rows = [bench.try_out(fault, place, alone=None, baseline=baseline) for fault in faults]
    missed = [(row["fault"], row["how"]) for row in rows if not row["caught"]]
    # A network that is as robust is no regression: the quantiser rounds a robust network to 8 bits.
    assert set(missed) <= {("int8 after training", "suite too")}
    natural = next(row for row in rows if (row["fault"], row["how"]) == ("naturally trained", "suite too"))
    assert natural["baseline"]["drop"] > 0.1
    clean = json.loads(baseline.read_text())["accuracy"]["clean"]
    assert Artifact.load(tmp_path / "naturally-trained").manifest["reference"]["clean"] > clean - 0.02


@pytest.mark.slow
def test_swapped_channels_are_caught(bench: Any, tmp_path: Path) -> None:
    run = bench.train(tmp_path / "colour", bench.colour(tmp_path, (*SHORT, "train.epochs=8")))
    place = bench.export(run, tmp_path / "good")
    assert bench.judge(place).exit == 0
    row = bench.try_out(bench.Fault("BGR", bench.faults.swap_channels()), place, alone=None)
    assert row["alone"]["exit"] == 1
    assert row["alone"]["drop"] > 0.3


@pytest.mark.slow
def test_unchanged_exports_raise_no_alarm(bench: Any, good: tuple[Run, Path, Path], tmp_path: Path) -> None:
    found = bench.false_alarms(good[0], tmp_path, SEEDS)
    assert found["alarms"] == {"alone": 0, "baseline": 0}
    assert len(found["rows"]) == SEEDS
