"""The heat map against a loop written out, and on networks with a known weak frequency."""

import pytest
import torch
from torch import nn

from qrobust.errors import DataError, ModelError
from qrobust.spectrum import fourier_basis, half_plane, heat_map
from qrobust.spectrum.filters import partner


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=5, channels=3, size=(6, 7)):
    return torch.rand(n, channels, *size, generator=seeded()), torch.arange(n) % 3


def some_net(channels=3, size=(6, 7)):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], 3)).eval()


class Detector(nn.Module):
    """Says 1 where an image holds the wave at a position at all, else 0."""

    def __init__(self, position, side):
        super().__init__()
        self.wave = fourier_basis(torch.tensor([position]), side, side)

    def forward(self, x):
        found = (x * self.wave).sum((2, 3)).abs().amax(1)
        return torch.stack([torch.full_like(found, 0.1), found], dim=1)


@pytest.mark.parametrize(("channels", "size"), [(1, (6, 7)), (3, (6, 7)), (3, (8, 8))])
def test_the_map_is_the_loop_written_out(channels, size):
    (x, y), model, generator = images(channels=channels, size=size), some_net(channels, size), seeded(3)
    expected = torch.zeros(size)
    for place, u in zip(half_plane(*size), fourier_basis(half_plane(*size), *size), strict=True):
        r = 2 * torch.randint(2, (len(x), channels, 1, 1), generator=generator) - 1
        error = (model(x + r * 4.0 * u).argmax(1) != y).float().mean()
        mirror = partner(place[None], *size)[0]
        expected[place[0], place[1]] = expected[mirror[0], mirror[1]] = error
    found = heat_map(model, x, y, norm=4.0, generator=seeded(3))
    torch.testing.assert_close(found, expected)
    assert found.std() > 0.1  # else nothing was compared


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 64, 1000])
def test_the_batch_size_changes_nothing(batch_size):
    (x, y), model = images(), some_net()
    whole = heat_map(model, x, y, norm=4.0, generator=seeded(3))
    torch.testing.assert_close(heat_map(model, x, y, norm=4.0, generator=seeded(3), batch_size=batch_size), whole)


@pytest.mark.parametrize(("side", "position"), [(8, (4, 4)), (8, (5, 2)), (8, (0, 3)), (9, (4, 4)), (9, (6, 8))])
def test_only_the_frequency_that_a_network_looks_at_is_hot(side, position):
    x, y = torch.zeros(4, 2, side, side), torch.zeros(4, dtype=torch.long)
    found = heat_map(Detector(position, side).eval(), x, y, norm=1.0, generator=seeded())
    mirror = partner(torch.tensor([position]), side, side)[0]
    expected = torch.zeros(side, side)
    expected[position] = expected[mirror[0], mirror[1]] = 1
    assert torch.equal(found, expected)


def test_signs_are_drawn_for_each_image_and_channel_and_the_norm_holds():
    """Sums of signs of three channels at the zero frequency: all of -3, -1, 1, 3 appear."""
    x, seen = torch.zeros(64, 3, 4, 4), []

    def model(noisy):
        seen.append(noisy.clone())
        return torch.zeros(len(noisy), 2)

    heat_map(model, x, torch.zeros(64, dtype=torch.long), norm=0.5, generator=seeded())
    noisy = torch.cat(seen)
    torch.testing.assert_close(noisy.flatten(2).norm(dim=2), torch.full((len(noisy), 3), 0.5))
    flat = (half_plane(4, 4) == 2).all(1).nonzero().item()
    sums = noisy[64 * flat : 64 * (flat + 1)].sum((1, 2, 3)) / 2
    assert set(sums.round().int().tolist()) == {-3, -1, 1, 3}


def test_memory_and_progress_follow_the_batch_size():
    (x, y), sizes, steps = images(), [], []

    def model(noisy):
        sizes.append(len(noisy))
        return noisy.flatten(1)

    heat_map(model, x, y, norm=1.0, generator=seeded(), batch_size=8, on_step=steps.append)
    assert max(sizes) == 8
    assert steps == sizes
    assert sum(steps) == len(x) * len(half_plane(6, 7))


def test_the_images_are_left_as_they_were():
    x, y = images()
    before = x.clone()
    heat_map(some_net(), x, y, norm=4.0, generator=seeded())
    assert torch.equal(x, before)


def test_bad_input_is_refused():
    x, y = images()
    with pytest.raises(DataError, match=r"^expected images and one label for each, got 5 and 4; give both alike$"):
        heat_map(some_net(), x, y[:4], norm=1.0, generator=seeded())
    with pytest.raises(DataError, match=r"^expected a batch size of at least 1, got 0; choose a positive number$"):
        heat_map(some_net(), x, y, norm=1.0, generator=seeded(), batch_size=0)
    with pytest.raises(ModelError, match=r"^expected a network in eval mode"):
        heat_map(some_net().train(), x, y, norm=1.0, generator=seeded())
