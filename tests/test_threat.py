"""A threat is a ball within the range of pixels; everything an attack does to an image goes through it."""

import math

import pytest
import torch

from qrobust.errors import RecipeError
from qrobust.threat import Threat

LINF, L2 = Threat("linf", 8 / 255), Threat("l2", 0.5)
THREATS = pytest.mark.parametrize("threat", [LINF, L2, Threat("linf", 0.0), Threat("l2", 0.0)], ids=str)
ROUNDING = 1e-6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=8, shape=(3, 4, 4), seed=0):
    """Random images, with some pixels at the ends of the range."""
    x = torch.rand(n, *shape, generator=seeded(seed)) * 1.4 - 0.2
    return x.clamp(0, 1)


def far_points(x, seed=1):
    return x + torch.randn(x.shape, generator=seeded(seed))


def is_inside(threat, x_adv, x):
    near = bool((threat.distance(x_adv, x) <= threat.eps + ROUNDING).all())
    return near and float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1


@THREATS
def test_projection_is_inside_ball_and_range(threat):
    x = images()
    assert is_inside(threat, threat.project(far_points(x), x), x)


@THREATS
def test_projection_is_idempotent(threat):
    x = images()
    once = threat.project(far_points(x), x)
    torch.testing.assert_close(threat.project(once, x), once, rtol=0, atol=ROUNDING)


@THREATS
def test_projection_leaves_inner_points_alone(threat):
    x = images()
    inner = x + (0.5 - x) * threat.eps / 8  # towards grey, shorter than eps in both norms
    torch.testing.assert_close(threat.project(inner, x), inner, rtol=0, atol=ROUNDING)


def test_linf_projection_is_the_nearest_point_pixel_by_pixel():
    x = images(n=2)
    x_adv = far_points(x)
    found = LINF.project(x_adv, x)
    for pixel, wanted, got in zip(x.flatten(), x_adv.flatten(), found.flatten(), strict=True):
        low, high = max(0.0, pixel.item() - LINF.eps), min(1.0, pixel.item() + LINF.eps)
        assert got.item() == pytest.approx(min(max(wanted.item(), low), high), abs=ROUNDING)


def test_l2_projection_is_the_nearest_point_in_closed_form():
    x = torch.full((6, 3, 4, 4), 0.5)
    x_adv = far_points(x) * torch.tensor([0.01, 0.1, 0.2, 1, 3, 9]).view(-1, 1, 1, 1)
    for point, centre, found in zip(x_adv.double(), x.double(), L2.project(x_adv, x).double(), strict=True):
        length = math.sqrt(sum(value.item() ** 2 for value in (point - centre).flatten()))
        nearest = centre + (point - centre) * min(1.0, L2.eps / length)
        torch.testing.assert_close(found, nearest.clamp(0, 1), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_no_point_of_the_ball_is_nearer(threat):
    x = torch.full((1, 1, 2, 2), 0.5)
    x_adv = far_points(x)
    nearest = (threat.project(x_adv, x) - x_adv).norm()
    others = threat.random_start(x.expand(20_000, -1, -1, -1), seeded())
    assert (others - x_adv).flatten(1).norm(dim=1).min() >= nearest - ROUNDING


@THREATS
def test_random_start_is_inside(threat):
    x = images(n=50)
    assert is_inside(threat, threat.random_start(x, seeded()), x)
    assert is_inside(threat, threat.random_start(x), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@THREATS
def test_points_are_of_the_images_type(threat, dtype):
    x = images().to(dtype)
    start = threat.random_start(x, seeded())
    assert (start.dtype, threat.direction(start).dtype, threat.project(start, x).dtype) == (dtype,) * 3


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_random_start_is_decided_by_the_seed(threat):
    x = images()
    first, again, other = (threat.random_start(x, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_linf_random_start_is_uniform_in_every_pixel():
    x = torch.full((4000, 1, 2, 2), 0.5)
    share = (LINF.random_start(x, seeded()) - x).flatten(1) / LINF.eps
    for column in share.T:
        quantiles = column.quantile(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))
        torch.testing.assert_close(quantiles, torch.tensor([-0.8, -0.5, 0.0, 0.5, 0.8]), rtol=0, atol=0.08)
    assert torch.corrcoef(share.T).fill_diagonal_(0).abs().max() < 0.08


def test_l2_random_start_is_uniform_in_volume():
    x = torch.full((4000, 1, 2, 2), 0.5)
    delta = (L2.random_start(x, seeded()) - x).flatten(1) / L2.eps
    volume = delta.norm(dim=1) ** 4  # of the ball inside, in four dimensions
    wanted = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    torch.testing.assert_close(volume.quantile(wanted), wanted, rtol=0, atol=0.04)
    assert delta.mean(dim=0).abs().max() < 0.04


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_a_cpu_generator_serves_every_device(threat):
    assert threat.random_start(images().to("meta"), seeded()).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_a_device_draws_the_same_start(threat):
    here, there = (threat.random_start(images().to(device), seeded()) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_direction_has_unit_norm_and_ascends_fastest(threat):
    gradient = torch.randn(5, 3, 4, 4, generator=seeded())
    step = threat.direction(gradient)
    torch.testing.assert_close(threat.distance(step, torch.zeros_like(step)), torch.ones(5))
    flat = gradient.flatten(1)
    fastest = flat.abs().sum(1) if threat.norm == "linf" else flat.norm(dim=1)
    torch.testing.assert_close((step * gradient).flatten(1).sum(1), fastest)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_no_gradient_gives_no_step(threat):
    assert torch.equal(threat.direction(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_distance_is_per_sample():
    x = torch.zeros(2, 1, 1, 2)
    x_adv = torch.tensor([[3.0, -4.0], [0.0, 0.5]]).view(2, 1, 1, 2)
    assert LINF.distance(x_adv, x).tolist() == [4.0, 0.5]
    assert L2.distance(x_adv, x).tolist() == [5.0, 0.5]


def test_bounds_can_be_others():
    threat = Threat("linf", 0.5, bounds=(-1, 1))
    x = torch.tensor([[-0.9, 0.0, 0.9]])
    torch.testing.assert_close(threat.project(x + 2 * x.sign(), x), torch.tensor([[-1.0, 0.0, 1.0]]))


@pytest.mark.parametrize("eps", [8, 1.001, -0.1, math.nan])
def test_eps_beyond_the_range_is_refused(eps):
    with pytest.raises(RecipeError) as caught:
        Threat("linf", eps)
    text = f"expected eps in [0, 1], the range of a pixel, got {eps:g}; write 8/255, not 8"
    assert str(caught.value) == text


def test_an_l2_ball_may_be_wider_than_a_pixel():
    assert Threat("l2", 3.0).eps == 3.0
    with pytest.raises(RecipeError, match="got -1"):
        Threat("l2", -1)


def test_an_unknown_norm_is_refused():
    with pytest.raises(RecipeError, match=r"^expected a norm, got 'l_inf'; did you mean 'linf'\?$"):
        Threat("l_inf", 0.1)


@pytest.mark.parametrize("length", [1e-6, 1e-12, 1e-14, 1e-23, 1e-42, 1e19, 1e38])
def test_a_step_has_its_length_whatever_the_gradients(length):
    gradient = torch.zeros(2, 1, 2, 2)
    gradient[0, 0, 0] = length
    assert L2.direction(gradient).flatten(1).norm(dim=1).tolist() == pytest.approx([1.0, 0.0])
