"""Files become tensors, pixel for pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from qrobust.data.sources import files
from qrobust.data.sources.files import decode, read_images
from qrobust.errors import DataError
from qrobust.torchvision_cpu import import_torchvision


def save(path, array):
    Image.fromarray(array).save(path)
    return path


def colour(height=4, width=6, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def test_pixels_and_order_are_kept(tmp_path):
    arrays = [colour(seed=seed) for seed in range(20)]
    paths = [save(tmp_path / f"{i}.png", array) for i, array in enumerate(arrays)]
    expected = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    assert torch.equal(read_images(paths), expected)


def test_pieces_in_order_and_the_last_one_shorter(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 4)
    paths = [save(tmp_path / f"{i}.png", colour(seed=i)) for i in range(10)]
    pieces = {}
    decode(paths, None, lambda start, pixels: pieces.update({start: torch.from_numpy(pixels.copy())}))
    assert [(start, len(piece)) for start, piece in pieces.items()] == [(0, 4), (4, 4), (8, 2)]
    assert torch.equal(torch.cat(list(pieces.values())), read_images(paths))
    assert torch.equal(read_images(paths)[9], read_images(paths[9:])[0])


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = colour()[..., 0]
    x = read_images([save(tmp_path / "grey.png", grey)])
    assert torch.equal(x, torch.from_numpy(grey).expand(1, 3, 4, 6))


@pytest.mark.parametrize("shape", [(4, 8), (12, 8), (4, 4)])
def test_size_is_resize_and_centre_crop(tmp_path, shape):
    transforms = import_torchvision().transforms
    path = save(tmp_path / "image.png", colour(*shape))
    expected = transforms.CenterCrop(4)(transforms.Resize(4)(Image.open(path).convert("RGB")))
    assert torch.equal(read_images([path], size=4)[0].permute(1, 2, 0), torch.from_numpy(np.array(expected)))


def test_size_makes_all_sizes_one(tmp_path):
    paths = [save(tmp_path / f"{side}.png", colour(side, 9)) for side in (3, 9, 20)]
    assert read_images(paths, size=5).shape == (3, 3, 5, 5)


def test_size_of_the_image_changes_nothing(tmp_path):
    path = save(tmp_path / "square.png", colour(5, 5))
    assert torch.equal(read_images([path], size=5), read_images([path]))


def test_two_sizes_are_refused(tmp_path):
    paths = [save(tmp_path / "a.png", colour()), save(tmp_path / "b.png", colour(5, 5))]
    with pytest.raises(DataError) as caught:
        read_images(paths)
    assert str(caught.value) == (
        f"expected images of 4x6 pixels, as the first, got 5x5 at {paths[1]}; "
        "give all one size, or set one with -o data.size=PIXELS (folder only)"
    )


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_a_damaged_file_is_named(tmp_path, cut):
    good, bad = save(tmp_path / "good.png", colour()), tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:cut])
    with pytest.raises(DataError, match=f"expected an image at {bad}, cannot read it: .*; replace or remove it"):
        read_images([good, bad])
