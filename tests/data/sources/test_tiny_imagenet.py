"""Tiny ImageNet: a real sample where there is one, a made-up archive everywhere."""

import numpy as np
import pytest
from PIL import Image

from qrobust.data import DataSettings
from qrobust.data.sources.published import tiny_imagenet
from qrobust.errors import DataError

from ..helpers import shared


def read(root):
    return tiny_imagenet(DataSettings("tiny-imagenet", root=str(root)))


def save(path, value, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (64, 64), value).save(path)


@pytest.fixture
def archive(tmp_path):
    """Two classes, listed out of order; one training image is grey, one validation image has no class n02."""
    root = tmp_path / "tiny-imagenet-200"
    save(root / "train" / "n01" / "images" / "n01_0.JPEG", (10, 10, 10))
    save(root / "train" / "n02" / "images" / "n02_0.JPEG", 200, mode="L")
    save(root / "train" / "n02" / "images" / "n02_1.JPEG", (100, 100, 100))
    (root / "train" / "n02" / "n02_boxes.txt").write_text("n02_0.JPEG\t0\t0\t63\t63\n")
    save(root / "val" / "images" / "val_0.JPEG", (50, 50, 50))
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t63\t63\n")
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n02\tgoldfish, Carassius auratus\nn99\tnothing\n")
    return root


def test_labels_names_and_pixels(archive):
    loaded = read(archive)
    assert loaded.classes == ("n01", "goldfish")
    assert loaded.train.y.tolist() == [0, 1, 1]
    assert loaded.train.x.float().mean((1, 2, 3)).tolist() == [10, 200, 100]
    assert loaded.test.y.tolist() == [1]
    assert loaded.test.x.shape == (1, 3, 64, 64)


def test_the_folder_above_will_do(archive):
    assert read(archive.parent).classes == read(archive).classes


def test_without_words_the_wnids_are_the_names(archive):
    (archive / "words.txt").unlink()
    assert read(archive).classes == ("n01", "n02")


@pytest.mark.parametrize(
    ("gone", "what"),
    [
        ("wnids.txt", "expected the Tiny ImageNet list of classes at {path}, got none"),
        ("val/val_annotations.txt", "expected the Tiny ImageNet validation labels at {path}, got none"),
        ("val/images/val_0.JPEG", "expected an image at {path}, cannot read it"),
    ],
)
def test_missing_files(archive, gone, what):
    (archive / gone).unlink()
    with pytest.raises(DataError, match=what.format(path=archive / gone)):
        read(archive)


def test_a_class_without_images(archive):
    (archive / "train" / "n01" / "images" / "n01_0.JPEG").unlink()
    with pytest.raises(DataError) as caught:
        read(archive)
    assert str(caught.value) == (
        "expected Tiny ImageNet training images (*.JPEG) of class n01 at "
        f"{archive / 'train' / 'n01' / 'images'}, got none; unpack "
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip and set -o data.root to the folder with wnids.txt"
    )


@pytest.mark.parametrize("line", ["val_0.JPEG\tn77", "val_0.JPEG"])
def test_an_annotation_of_no_class(archive, line):
    annotations = archive / "val" / "val_annotations.txt"
    annotations.write_text(f"val_0.JPEG\tn01\n{line}\n")
    with pytest.raises(DataError) as caught:
        read(archive)
    assert f"in line 2 of {annotations}, got {line!r}" in str(caught.value)


def test_the_real_sample():
    loaded = read(shared("tiny-imagenet-sample"))
    assert len(loaded.classes) == len(set(loaded.classes)) == 20
    assert loaded.classes[:2] == ("goldfish", "centipede")
    assert loaded.train.x.shape == (2000, 3, 64, 64)
    assert loaded.train.y.bincount().tolist() == [100] * 20
    assert loaded.test.y.bincount().tolist() == [50] * 20
    assert 0.3 < np.mean(loaded.test.x.numpy()) / 255 < 0.6
