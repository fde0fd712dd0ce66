"""Memory and load time come from a process of their own."""

import sys
from types import SimpleNamespace

import pytest

from qrobust.bench.memory import footprint
from qrobust.export.sessions import PROVIDERS
from qrobust.runtime import ArtifactError

CPU = PROVIDERS["cpu"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


@pytest.mark.slow
@linux
def test_more_images_take_more_memory(artifacts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not where the package lies
    one, many = (footprint(artifacts[32], CPU, threads=1, batch=batch) for batch in (1, 4096))
    assert 2**20 < one["memory_bytes"] < 2**27
    # 4096 images through 16 channels of 8 × 8 floats: 16 MiB for one activation
    assert many["memory_bytes"] > one["memory_bytes"] + 2**24
    assert 0 < one["load_ms"] < 10_000
    assert not list(tmp_path.iterdir())


def test_what_fails_there_is_told_here(artifacts, tmp_path):
    gone = SimpleNamespace(**vars(artifacts[4]) | {"path": tmp_path / "gone"})
    with pytest.raises(ArtifactError, match=r"expected a session of .*gone in a process of its own, got: .*manifest"):
        footprint(gone, CPU, threads=1, batch=1)
