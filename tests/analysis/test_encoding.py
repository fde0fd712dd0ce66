"""Numbers and images inside JSON."""

import json

import numpy as np
import torch

from qrobust.analysis.encoding import numbers, pack, unpack


def test_images_come_back_through_json_as_bytes_channels_last():
    pixels = torch.randint(256, (2, 3, 5, 4), generator=torch.Generator().manual_seed(0))
    found = unpack(json.loads(json.dumps(pack(pixels / 255))))
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels.permute(0, 2, 3, 1))
    assert unpack(pack(torch.tensor([[[[-0.5, 1.5]]]]))).ravel().tolist() == [0, 255]


def test_numbers_keep_five_digits():
    assert numbers(torch.tensor([[1 / 3, 20000.4], [1e-9, 0]])) == [[0.33333, 20000.0], [1e-9, 0.0]]
