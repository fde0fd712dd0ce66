"""Two processes get what one gets, but for the rounding of sums."""

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
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*TORCHRUN, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, env=environment)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of one process, and of each of two."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    done = torchrun("tests.distributed_job", str(together))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2/2") == len(distributed_job.CASES) + 1  # one process speaks
    both = [torch.load(together / f"result-{rank}.pt") for rank in (0, 1)]
    return distributed_job.everything(alone), both


@pytest.mark.parametrize("case", [*distributed_job.CASES, "quantised"])
def test_two_processes_train_as_one(results, case):
    one, (first, second) = results
    assert one[case].keys() == first[case].keys()
    for name, value in one[case].items():  # a sign that flips in an attack moves a weight by some 1e-5
        torch.testing.assert_close(first[case][name], value, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(second[case][name], first[case][name], rtol=0, atol=0)


def test_two_processes_judge_as_one(results):
    one, both = results
    assert 0 < one["judged"].float().mean() < 1
    assert all(torch.equal(found["judged"], one["judged"]) for found in both)


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
        done = torchrun("qrobust", "run", "digits", *overrides(), "--out", str(tmp_path / "run"), cwd=tmp_path)
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout.count("report: ") == 1
    assert len(read_json(tmp_path / "run" / "report.json")["widths"]) == 3
