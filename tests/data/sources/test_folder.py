"""A folder per class, as ImageFolder reads it."""

import shutil

import pytest
import torch
from PIL import Image

from qrobust.data import DataSettings
from qrobust.data.sources.folder import REMEDY, folder
from qrobust.errors import DataError
from qrobust.torchvision_cpu import import_torchvision


def read(root, **options):
    return folder(DataSettings("folder", root=str(root), **options))


def save(path, value, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


@pytest.fixture
def root(tmp_path):
    for value, name in enumerate(["cat/1.png", "cat/deep/0.PNG", "dog/a.png", "ant/z.bmp"]):
        save(tmp_path / "train" / name, value)
    save(tmp_path / "test" / "dog" / "b.png", 9)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_reads_what_imagefolder_reads(root):
    reference = import_torchvision().datasets.ImageFolder(root / "train")
    loaded = read(root)
    assert loaded.classes == tuple(reference.classes)
    assert sorted(loaded.train.y.tolist()) == sorted(reference.targets)
    pairs = sorted(zip(loaded.train.x[:, 0, 0, 0].tolist(), loaded.train.y.tolist(), strict=True))
    assert pairs == sorted((image.getpixel((0, 0))[0], label) for image, label in reference)
    assert (loaded.test.x.unique().tolist(), loaded.test.y.tolist()) == ([9], [2])


def test_val_stands_in_for_test_and_yields_to_it(root):
    save(root / "val" / "ant" / "v.png", 33)
    assert read(root).test.x.unique().tolist() == [9]
    shutil.rmtree(root / "test")
    assert read(root).test.x.unique().tolist() == [33]


def test_size_makes_all_sizes_one(root):
    save(root / "train" / "dog" / "wide.png", 77, size=(30, 9))
    loaded = read(root, size=4)
    assert loaded.train.x.shape == (5, 3, 4, 4)
    assert torch.all(loaded.train.x[-1] == 77)


def test_without_size_another_size_is_refused(root):
    save(root / "train" / "dog" / "wide.png", 77, size=(30, 9))
    with pytest.raises(DataError, match="expected images of 6x6 pixels, as the first, got 9x30 at"):
        read(root)


def test_missing_folders(root):
    shutil.rmtree(root / "test")
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(caught.value) == f"expected a folder of test images at {root / 'val'}, got none; {REMEDY}"
    with pytest.raises(DataError, match="expected a folder of training images at"):
        read(root / "nowhere")


def test_no_classes(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"expected a folder with images per class at .*train, got none"):
        read(tmp_path)


def test_what_is_empty_or_hidden_is_no_class(root, capfd):
    """As a notebook leaves it, and a Mac."""
    (root / "train" / "bee").mkdir()
    for name in [".ipynb_checkpoints/1.png", "cat/.ipynb_checkpoints/1-checkpoint.png", ".hidden/a/1.png"]:
        save(root / "train" / name, 99)
        save(root / "test" / name, 99)
    (root / "train" / "cat" / "._1.png").write_bytes(b"of a Mac")
    (root / "train" / "cat" / "folder.png").mkdir()
    loaded = read(root)
    assert loaded.classes == ("ant", "cat", "dog")
    assert (len(loaded.train), len(loaded.test)) == (4, 1)
    assert f"{root / 'train'}: no images, so no class: 'bee'" in capfd.readouterr().err


def test_a_training_class_that_the_test_lacks_is_said(root, capfd):
    assert read(root).test.y.tolist() == [2]
    assert f"{root / 'test'}: no images of classes of training: 'ant', 'cat'" in capfd.readouterr().err


def test_a_test_class_that_training_lacks(root):
    save(root / "test" / "dogs" / "b.png", 9)
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(caught.value) == (
        f"expected in {root / 'test'} only classes of training, got 'dogs'; did you mean 'dog'?"
    )


def test_no_test_images(root):
    (root / "test" / "dog" / "b.png").unlink()
    with pytest.raises(DataError, match=f"expected a folder with images per class at {root / 'test'}, got none"):
        read(root)
