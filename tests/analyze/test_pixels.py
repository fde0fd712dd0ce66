"""Images inside JSON."""

import json

import numpy as np

from qrobust.analyze.pixels import pack, unpack


def test_what_is_packed_comes_back_through_json():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 1)).astype(np.uint8).transpose(0, 2, 1, 3)
    assert np.array_equal(unpack(json.loads(json.dumps(pack(pixels)))), pixels)
