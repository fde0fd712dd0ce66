"""CIFAR-10 as published, and clear words where it is not there."""

from pathlib import Path

import pytest
import torch

from qrobust.data import DataSettings
from qrobust.data.sources import published
from qrobust.data.sources.published import cifar10, cifar100
from qrobust.errors import DataError

from ..helpers import shared


def test_cifar10_is_the_published_one():
    root = shared("cifar-10-batches-py").parent
    loaded = cifar10(DataSettings("cifar10", root=str(root)))
    assert loaded.classes[:3] == ("airplane", "automobile", "bird")
    assert loaded.train.y.bincount().tolist() == [5000] * 10
    assert loaded.test.y.bincount().tolist() == [1000] * 10
    assert loaded.train.y[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    mean = loaded.train.x.double().mean((0, 2, 3)) / 255
    # The channel means that the field normalises with.
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.double), atol=1e-4)


@pytest.mark.parametrize(
    ("load", "kind", "folder"),
    [(cifar10, "CIFAR10", "cifar-10-batches-py"), (cifar100, "CIFAR100", "cifar-100-python")],
)
def test_missing(tmp_path, load, kind, folder):
    with pytest.raises(DataError) as caught:
        load(DataSettings("any", root=str(tmp_path)))
    assert str(caught.value) == (
        f"expected the {kind} files at {tmp_path / folder}, got none; fetch them with -o data.download=true, "
        f"or put the official {kind} files into {tmp_path / folder}"
    )


def test_altered(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"not a pickle")
    with pytest.raises(DataError) as caught:
        cifar10(DataSettings("cifar10", root=str(tmp_path)))
    start = f"expected the official CIFAR10 files in {folder}, got some missing or altered; fetch them with"
    assert str(caught.value).startswith(start)


def test_a_download_that_fails():
    class Reader:
        base_folder = "there"

        def __init__(self, root, train, download):
            assert download
            raise OSError("no route to host")

    with pytest.raises(DataError) as caught:
        published._read(Reader, Path("data"), train=True, download=True)
    assert str(caught.value) == (
        "expected to read or fetch Reader in data, got: no route to host; "
        "put the official files into data/there by hand"
    )
