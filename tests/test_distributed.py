"""Several processes get what one gets, but for the rounding of sums."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from qrobust import distributed
from qrobust.errors import ModelError
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
    command = [sys.executable, "-m", "tests.distributed_job", str(folder), str(request.param)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2/2") == len(distributed_job.CASES) + 2  # one process speaks
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


def test_all_processes_have_one_average_whatever_dropout_draws(together):
    first, *others = (found["dropout"] for found in together)
    assert all(torch.equal(other[name], value) for other in others for name, value in first.items())


def test_several_processes_judge_as_one(alone, together):
    assert 0 < alone["judged"].float().mean() < 1
    assert all(torch.equal(found["judged"], alone["judged"]) for found in together)
    assert torch.equal(together[0]["judged alone"], alone["judged"])  # as a run attacks its files


# One process that takes itself for one of two


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)


def norms():
    model = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm3d(3)))
    model.again = model[0]  # under two names
    return model


@pytest.mark.parametrize("on_gpu", [False, True])
def test_batch_norms_are_replaced_and_come_back(pretended, monkeypatch, on_gpu):
    """By torch's own on GPUs; parameters, buffers and their names are the same all along."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    model = norms()
    before, modules = model.state_dict(keep_vars=True), list(model.modules())
    with distributed.synchronised(model) as whole:
        inside = [type(module) for module in model.modules() if not isinstance(module, nn.Sequential)]
        names = ["SyncBatchNorm"] * 3 if on_gpu else ["SharedBatchNorm1d", "SharedBatchNorm", "SharedBatchNorm3d"]
        assert [kind.__name__ for kind in inside] == names
        assert whole is model
        assert model.again is model[0]
        assert all(value is before[name] for name, value in model.state_dict(keep_vars=True).items())
        model.eval()
    assert list(model.modules()) == modules
    assert not any(module.training for module in modules)


def test_a_batch_norm_that_cannot_be_shared_is_refused(pretended):
    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(3), Own(3))
    message = r"expected batch-norms of torch\.nn to train in several processes, got Own; use torch's, or train in one"
    with pytest.raises(ModelError, match=message), distributed.synchronised(model):
        pass
    assert type(model[0]) is nn.BatchNorm2d


def test_alone_nothing_happens():
    x = torch.arange(3.0)
    assert (distributed.world(), distributed.rank(), distributed.is_first()) == (1, 0, True)
    assert distributed.part(x) is x
    assert distributed.summed(x) is x
    assert distributed.gathered(x) is x
    assert distributed.averaged([x], [None]) == [None]
    assert distributed.own(Path("a.npz")) == Path("a.npz")


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    """Also a second time, when every stage is done."""
    for _ in range(2):
        done = torchrun(2, "qrobust", "run", "digits", *overrides(), "--out", str(tmp_path / "run"), cwd=tmp_path)
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout.count("report: ") == 1
    assert len(read_json(tmp_path / "run" / "report.json")["widths"]) == 3
