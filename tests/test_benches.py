"""Scripts in benches/ that need what a machine may lack say so."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run for an hour here")
def test_without_a_gpu_the_job_for_one_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "benches" / "gpu" / "serve.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: expected a GPU with CUDA, got none; run this on a machine that has one\n"
    assert not list(tmp_path.iterdir())


def test_goals_are_judged_by_their_worst_case(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    import deploy

    results = [
        {"name": name, "batch": batch, "p50_ms": p50, "speedup": 8 / p50, "int8_gemm_share": share}
        for name, share in (("QM-32", None), ("QM-8", 0.6), ("QM-4", 0.7), ("QM-2", 0.5), (deploy.RIVAL, 0.4))
        for batch, p50 in ((1, 8.0 if name == "QM-32" else 2.0), (32, 3.0 if name == deploy.RIVAL else 4.0))
    ]
    sizes = {"QM-32": 100, "QM-8": 40, "QM-4": 20, "QM-2": 10}
    found = deploy.figures({"results": results, "artifacts": {k: {"size_bytes": v} for k, v in sizes.items()}})
    expected = {"speedup": 2.0, "size QM-4": 5, "size QM-2": 10, "int8 peak": 0.5, "against OpenVINO": 0.75}
    assert found == pytest.approx(expected)
