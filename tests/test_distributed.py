"""Several processes get what one gets, but for the rounding of sums."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qrobust import distributed
from qrobust.storage import read_json

from . import distributed_job
from .conftest import overrides

ROOT = Path(__file__).resolve().parent.parent
WORLDS = [2, pytest.param(4, marks=pytest.mark.slow)]


def torchrun(world: int, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "-m"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300, env=environment)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return distributed_job.everything(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=WORLDS)
def together(request, tmp_path_factory):
    """What each of several processes gets."""
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(request.param, "tests.distributed_job", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2/2") == len(distributed_job.CASES) + 1  # one process speaks
    return [torch.load(folder / f"result-{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("case", [*distributed_job.CASES, "quantised"])
def test_several_processes_train_as_one(alone, together, case):
    first, *others = (found[case] for found in together)
    assert alone[case].keys() == first.keys()
    for name, value in alone[case].items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-4)
        assert all(torch.equal(other[name], first[name]) for other in others)


@pytest.mark.parametrize("case", distributed_job.NORMS)
def test_batch_norm_sees_all_parts(alone, together, case):
    expected, got = alone[f"norm {case}"], together[0][f"norm {case}"]
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


def test_several_processes_judge_as_one(alone, together):
    assert 0 < alone["judged"].float().mean() < 1
    assert all(torch.equal(found["judged"], alone["judged"]) for found in together)


def test_alone_nothing_happens():
    x = torch.arange(3.0)
    assert (distributed.world(), distributed.rank(), distributed.is_first()) == (1, 0, True)
    assert distributed.part(x) is x
    assert distributed.summed(x) is x
    assert distributed.own(Path("a.npz")) == Path("a.npz")


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    """Also a second time, when every stage is done."""
    for _ in range(2):
        done = torchrun(2, "qrobust", "run", "digits", *overrides(), "--out", str(tmp_path / "run"), cwd=tmp_path)
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout.count("report: ") == 1
    assert len(read_json(tmp_path / "run" / "report.json")["widths"]) == 3
