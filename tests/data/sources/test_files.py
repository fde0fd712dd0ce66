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


# Pixels of every depth and kind


RAMP = np.linspace(0, 65535, 24).round().astype(np.uint16).reshape(4, 6)
BYTES = (RAMP / 257).round().astype(np.uint8)
DEEP = {
    "16 bits.png": RAMP,
    "16 bits.tiff": RAMP,
    "16 bits.pgm": RAMP,
    "big-endian.tiff": RAMP.astype(">u2"),
    "floats.tiff": (RAMP / 65535).astype(np.float32),
    "8 bits.pgm": BYTES,
    "black and white.png": RAMP > 30000,
}


@pytest.mark.parametrize("name", DEEP)
def test_pixels_of_any_depth_are_scaled_to_bytes(tmp_path, name):
    expected = np.where(RAMP > 30000, 255, 0).astype(np.uint8) if "black" in name else BYTES
    x = read_images([save(tmp_path / name, DEEP[name])])
    assert torch.equal(x, torch.from_numpy(expected).expand(1, 3, 4, 6))


def test_a_deep_image_is_resized_after_it_was_scaled(tmp_path):
    paths = [save(tmp_path / "deep.png", RAMP), save(tmp_path / "plain.png", BYTES)]
    deep, plain = read_images(paths, size=3)
    assert torch.equal(deep, plain)


RANGES = [
    (RAMP.astype(np.float32), "expected float pixels in [0, 1], got [0, 65535] at {}; scale them"),
    (np.full((2, 2), np.nan, np.float32), "expected float pixels in [0, 1], got [nan, nan] at {}; scale them"),
    (
        RAMP.astype(np.int32),
        "expected 8 or 16 bits a pixel, got 32-bit integers of no known range at {}; convert it to 16 bits",
    ),
]


@pytest.mark.parametrize(("pixels", "message"), RANGES)
def test_pixels_of_no_known_range_are_refused(tmp_path, pixels, message):
    path = save(tmp_path / "image.tiff", pixels)
    with pytest.raises(DataError) as caught:
        read_images([path])
    assert str(caught.value) == message.format(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(tmp_path, orientation):
    upright, exif = Image.fromarray(colour()), Image.Exif()
    exif[0x0112] = orientation
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    held = upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright
    held.save(tmp_path / "photo.png", exif=exif)
    assert torch.equal(read_images([tmp_path / "photo.png"])[0].permute(1, 2, 0), torch.from_numpy(colour()))


def of_mode(mode):
    """An image of one colour, what it is saved with, and the colour that is seen."""
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([1, 2, 3, 40, 50, 60])
    return {
        "palette": (palette, {}, (40, 50, 60)),
        "palette, transparent": (palette, {"transparency": 1}, (255, 255, 255)),
        "opaque": (Image.new("RGBA", (2, 2), (9, 8, 7, 255)), {}, (9, 8, 7)),
        "transparent": (Image.new("RGBA", (2, 2), (9, 8, 7, 0)), {}, (255, 255, 255)),
        "half": (Image.new("LA", (2, 2), (0, 51)), {}, (204, 204, 204)),
        "print": (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), {}, (255, 0, 0)),
    }[mode]


@pytest.mark.parametrize("mode", ["palette", "palette, transparent", "opaque", "transparent", "half", "print"])
def test_colours_are_those_that_are_seen(tmp_path, mode):
    image, options, seen = of_mode(mode)
    path = tmp_path / ("image.tiff" if mode == "print" else "image.png")
    image.save(path, **options)
    assert read_images([path])[0, :, 1, 1].tolist() == list(seen)


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
