"""A folder per class, as ImageFolder reads it."""

import shutil

import pytest
import torch
from PIL import Image

from qrobust.data import DataSettings, load
from qrobust.data.sources import files
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


@pytest.mark.parametrize("size", [(4, 6), (6, 4)])
def test_a_size_may_have_two_sides(root, size):
    """Of each image the largest centred part of these proportions."""
    height, width = size
    image = Image.new("RGB", (6 * width + 60, 6 * height), (200, 0, 0))
    image.paste((0, 100, 0), (30, 0, 6 * width + 30, 6 * height))
    image.save(root / "train" / "dog" / "wide.png")
    loaded = read(root, size=size)
    assert loaded.train.x.shape == (5, 3, *size)
    assert loaded.train.x[-1, :, :, 1:-1].flatten(1).unique(dim=1).tolist() == [[0], [100], [0]]


def test_missing_folders(root):
    shutil.rmtree(root / "train")
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(caught.value) == f"expected a folder of training images at {root / 'train'}, got none; {REMEDY}"
    with pytest.raises(DataError, match="expected a folder of training images at"):
        read(root / "nowhere")


def test_without_a_folder_for_it_test_images_are_drawn(root, capfd):
    shutil.rmtree(root / "test")
    assert read(root).test is None
    for value in range(20):
        save(root / "train" / "dog" / f"{value}.png", value)
    found = load(DataSettings("folder", root=str(root), validation=0))
    assert (len(found.train), len(found.test)) == (19, 5)
    assert "folder: no images for testing, so 5 of 24 training images are set aside" in capfd.readouterr().err
    plain = read(root / "train")  # classes in ROOT itself
    assert plain.classes == ("ant", "cat", "dog")
    assert torch.equal(plain.train.x, read(root).train.x)


@pytest.fixture
def broken(root):
    """A picture that was cut, and one that is none."""
    whole = root / "train" / "dog" / "whole.png"
    Image.effect_noise((6, 6), 90).convert("RGB").save(whole)
    (root / "train" / "dog" / "cut.png").write_bytes(whole.read_bytes()[:-60])
    (root / "train" / "bee").mkdir()
    (root / "train" / "bee" / "none.jpg").write_bytes(b"no picture")
    return root


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_files_are_left_out_where_this_is_asked_for(broken, cached, tmp_path, monkeypatch, capfd):
    options = {"skip_unreadable": True, "cache": str(tmp_path / "cache") if cached else None}
    loaded = read(broken, **options)
    train = broken / "train"
    assert loaded.skipped == (str(train / "bee" / "none.jpg"), str(train / "dog" / "cut.png"))
    assert loaded.classes == ("ant", "cat", "dog")
    assert len(loaded.train) == 5
    said = f"{train}: 2 of 7 files cannot be read and are left out: 'bee/none.jpg', 'dog/cut.png'"
    assert said in capfd.readouterr().err
    assert load(DataSettings("folder", root=str(broken), **options)).skipped == loaded.skipped
    if cached:  # looked for once
        monkeypatch.setattr(files, "unreadable", None)
        assert torch.equal(read(broken, **options).train.x, loaded.train.x)


def test_unreadable_files_are_refused_otherwise(broken):
    shutil.rmtree(broken / "train" / "bee")
    with pytest.raises(DataError, match=r"cut.png, cannot read it: .* with -o data.skip_unreadable=true"):
        read(broken)


def test_skipping_leaves_other_errors(root):
    save(root / "train" / "dog" / "wide.png", 77, size=(30, 9))
    with pytest.raises(DataError, match="expected images of 6x6 pixels, as the first, got 9x30 at"):
        read(root, skip_unreadable=True)
    for file in (root / "test" / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=f"expected a folder with images per class at {root / 'test'}, got none"):
        read(root, skip_unreadable=True)


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
