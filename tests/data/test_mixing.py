"""Mixed images are mixed as their labels say, and the generator decides."""

import pytest
import torch
import torch.nn.functional as F

from qrobust.data.augment import MIXES, _shares, cutmix, cutout, mixup
from qrobust.errors import DataError

from .helpers import seeded

CLASSES = 12
ALL = pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
WITH_PARTNER = pytest.mark.parametrize("mix", [mixup, cutmix])


def some(n=12, h=8, w=6, seed=0):
    """Images in [0,1], no pixel 0, and a label for each image of its own (up to CLASSES images)."""
    x = torch.rand(n, 3, h, w, generator=seeded(seed)) * 0.9 + 0.1
    return x, torch.arange(n) % CLASSES


def mixed(mix, x, y, seed=1, alpha=1.0, classes=CLASSES):
    return mix(x, y, classes=classes, alpha=alpha, generator=seeded(seed))


def partners(y, targets):
    """For labels all different: each image's partner, -1 where the targets name none."""
    others = targets * (1 - F.one_hot(y, CLASSES))
    return torch.where(others.amax(1) > 0, others.argmax(1), -1)


def is_rectangle(mask):
    """Whether the True pixels of (h, w) are all of one span of rows times one span of columns."""
    rows, columns = mask.any(1), mask.any(0)
    ends = [int(F.pad(span.int(), (1, 1)).diff().abs().sum()) for span in (rows, columns)]
    return torch.equal(mask, rows[:, None] & columns) and max(ends) <= 2


@ALL
@pytest.mark.parametrize("seed", range(5))
def test_images_stay_images_and_targets_probabilities(mix, seed):
    x, y = some(n=40)
    x = (x > 0.5).float()  # only the ends of the range, where rounding could leave it
    out, targets = mixed(mix, x, y, seed)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert (targets.shape, targets.dtype) == ((40, CLASSES), torch.float32)
    assert out.min() >= 0
    assert out.max() <= 1
    assert targets.min() >= 0
    torch.testing.assert_close(targets.sum(1), torch.ones(40))


@ALL
def test_the_seed_decides_and_the_input_is_left_alone(mix):
    x, y = some()
    before = x.clone()
    first, again, other = (mixed(mix, x, y, seed) for seed in (1, 1, 2))
    assert torch.equal(x, before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@ALL
def test_a_generator_moves_on_to_other_shares(mix):
    x, y = some(h=64, w=64)
    generator = seeded()
    batches = [mix(x, y, classes=CLASSES, alpha=1.0, generator=generator) for _ in range(2)]
    first, second = ((out == 0).float().mean((1, 2, 3)) if mix is cutout else t.amax(1) for out, t in batches)
    assert not torch.allclose(first.sort()[0], second.sort()[0], atol=0.02)


@ALL
def test_the_result_is_on_the_device_of_the_batch(mix):
    """Tensors without storage refuse to be mixed with those on the CPU, as an accelerator's do."""
    x, y = (tensor.to("meta") for tensor in some())
    assert [result.device.type for result in mixed(mix, x, y)] == ["meta", "meta"]


def test_mixup_weighs_images_as_targets():
    x, y = some()
    out, targets = mixed(mixup, x, y)
    expected = (targets @ x.flatten(1)).view_as(x)  # labels are numbers of images here
    torch.testing.assert_close(out, expected)
    assert len(set(targets.amax(1).tolist())) > 6  # a share of its own for each image


@WITH_PARTNER
def test_every_image_is_once_a_partner(mix):
    """A large patch or share of every partner, so that each is seen in the targets."""
    x, y = some(h=64, w=64)
    found = partners(y, mixed(mix, x, y, alpha=10)[1])
    for image in (found == -1).nonzero()[:, 0]:  # no other label: its own partner
        found[image] = image
    assert sorted(found.tolist()) == list(range(12))
    assert not torch.equal(found, torch.arange(12))


def test_mixup_lies_between_an_image_and_its_partner():
    x, y = some()
    out, targets = mixed(mixup, x, y)
    partner = partners(y, targets)
    partner = torch.where(partner < 0, torch.arange(12), partner)
    assert torch.all(out >= torch.minimum(x, x[partner]) - 1e-6)
    assert torch.all(out <= torch.maximum(x, x[partner]) + 1e-6)


def test_mixing_equal_images_changes_nothing():
    x = some(n=1)[0].expand(9, -1, -1, -1)
    y = torch.full((9,), 3)
    for mix in (mixup, cutmix):
        out, targets = mixed(mix, x, y)
        assert torch.equal(out, x)
        torch.testing.assert_close(targets, F.one_hot(y, CLASSES).float())


@pytest.mark.parametrize("side", [(8, 6), (5, 9), (1, 1), (32, 32)])
def test_cutmix_replaces_one_rectangle_and_counts_it_exactly(side):
    x, y = some(h=side[0], w=side[1])
    out, targets = mixed(cutmix, x, y)
    changed = (out != x).any(1)
    replaced = changed.float().mean((1, 2))
    assert torch.equal(targets[torch.arange(12), y], 1 - replaced)
    for image, partner in enumerate(partners(y, targets).tolist()):
        assert is_rectangle(changed[image])
        assert torch.equal(out[image][:, changed[image]], x[partner][:, changed[image]])
        assert targets[image, partner] == pytest.approx(replaced[image].item()) or partner == -1
    assert replaced.max() > 0


@pytest.mark.parametrize("side", [(8, 6), (5, 9), (1, 1), (32, 32)])
def test_cutout_blanks_one_rectangle_in_all_channels(side):
    x, y = some(h=side[0], w=side[1])
    out, targets = mixed(cutout, x, y)
    blank = (out == 0).all(1)
    assert torch.equal(out, x * ~blank[:, None])
    assert all(is_rectangle(mask) for mask in blank)
    assert torch.equal(targets, F.one_hot(y, CLASSES).float())
    assert blank.any()


@pytest.mark.parametrize(("border", "mean"), [("clip", 0.32), ("inside", 0.5)])
def test_the_replaced_share_is_that_which_was_drawn_or_what_the_border_leaves_of_it(border, mean):
    """Uniform shares s: all of s inside, a mean of 1/2; clipped (√s - s/4)² of it, 23/72."""
    x, y = torch.rand(4000, 1, 32, 32, generator=seeded(3)), torch.arange(4000) % 2
    out, _ = cutmix(x, y, classes=2, alpha=1.0, generator=seeded(1), border=border)
    assert (out != x).float().mean().item() == pytest.approx(mean, abs=0.015)


@pytest.mark.parametrize("side", [(8, 6), (32, 32)])
def test_a_patch_inside_is_a_rectangle_of_all_of_its_share(side):
    x, y = some(h=side[0], w=side[1])
    out, targets = cutmix(x, y, classes=CLASSES, alpha=1.0, generator=seeded(1), border="inside")
    changed = (out != x).any(1)
    replaced = changed.float().mean((1, 2))
    assert torch.equal(targets[torch.arange(12), y], 1 - replaced)
    drawn = _shares(12, 1.0, seeded(1))
    other = partners(y, targets) >= 0
    assert all(is_rectangle(mask) for mask in changed)
    assert (replaced - drawn).abs()[other].max() <= 1 / min(side)  # both sides are rounded to pixels
    assert other.sum() > 6


@pytest.mark.parametrize(("alpha", "spread"), [(0.2, 0.4226), (1.0, 0.2887), (4.0, 0.1667)])
def test_the_blank_share_has_the_moments_of_beta(alpha, spread):
    """Mean 1/2 and standard deviation 1 / (2 √(2 alpha + 1)); the error of a mean over 4000 is below 0.007."""
    x, y = torch.ones(4000, 1, 32, 32), torch.zeros(4000, dtype=torch.long)
    share = (mixed(cutout, x, y, alpha=alpha)[0] == 0).float().mean((1, 2, 3))
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.std().item() == pytest.approx(spread, abs=0.02)


@pytest.mark.parametrize(("alpha", "spread"), [(0.2, 0.4226), (1.0, 0.2887), (4.0, 0.1667)])
def test_the_share_of_mixup_has_the_moments_of_beta(alpha, spread):
    x, y = torch.arange(4000).view(-1, 1, 1, 1) / 4000, torch.arange(4000)
    targets = mixed(mixup, x, y, alpha=alpha, classes=4000)[1]
    share = targets.diagonal()
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.std().item() == pytest.approx(spread, abs=0.02)


def test_the_replaced_share_of_cutmix_is_less_by_what_the_border_clips():
    """E (s - s²/4)² for s² uniform in [0, 1]: 1/2 - 1/5 + 1/48."""
    x, y = torch.rand(4000, 1, 64, 64, generator=seeded()), torch.arange(4000)
    kept = mixed(cutmix, x, y, classes=4000)[1].diagonal()
    assert 1 - kept.mean().item() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)


@pytest.mark.parametrize("mix", [cutout, cutmix])
def test_patches_favour_no_side(mix):
    x = torch.arange(1, 20001).view(-1, 1, 1, 1).expand(-1, 1, 16, 10) / 20000
    changed = (mixed(mix, x, torch.zeros(20000, dtype=torch.long))[0] != x).float().mean((0, 1))
    torch.testing.assert_close(changed, changed.flip(0), atol=0.025, rtol=0)
    torch.testing.assert_close(changed, changed.flip(1), atol=0.025, rtol=0)
    assert changed.min() > 0.02  # corners are reached too


@pytest.mark.parametrize("alpha", [1e-3, 1e-9])
def test_a_tiny_alpha_takes_all_or_nothing(alpha):
    x, y = some()
    out, targets = mixed(mixup, x, y, alpha=alpha)
    torch.testing.assert_close(targets.amax(1), torch.ones(12))
    torch.testing.assert_close(out, x[targets.argmax(1)])
    assert 2 < int((targets.argmax(1) == y).sum()) < 12
    blank = (mixed(cutout, x, y, alpha=alpha)[0] == 0).float().mean((1, 2, 3))
    assert set(blank.tolist()) == {0.0, 1.0}


def test_a_huge_alpha_halves():
    x, y = some(h=64, w=64)
    targets = mixed(mixup, x, y, alpha=1e9)[1]
    assert set(targets.amax(1).mul(1000).round().tolist()) <= {500, 1000}
    blank = (mixed(cutout, x, y, alpha=1e9)[0] == 0).float().mean((1, 2, 3))
    torch.testing.assert_close(blank, torch.full((12,), 0.5), atol=0.01, rtol=0)


@ALL
@pytest.mark.parametrize("channels", [1, 3])
def test_the_memory_format_is_kept(mix, channels):
    x, y = some()
    x = x[:, :channels]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        source = x.contiguous(memory_format=memory_format)
        out, _ = mixed(mix, source, y)
        assert out.is_contiguous(memory_format=memory_format)
        assert torch.equal(out, mixed(mix, x, y)[0])


@ALL
def test_a_batch_of_one_keeps_its_label(mix):
    x, y = some(n=1)
    out, targets = mixed(mix, x, y)
    assert torch.equal(targets, F.one_hot(y, CLASSES).float())
    assert torch.equal(out, x) or mix is cutout


@ALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(mix, dtype):
    x, y = some()
    out, targets = mixed(mix, x.to(dtype), y)
    assert (out.dtype, targets.dtype) == (dtype, torch.float32)


@ALL
@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_not_positive_is_refused(mix, alpha):
    with pytest.raises(DataError, match=f"expected a positive alpha, got {alpha}; use 1 for uniform shares"):
        mixed(mix, *some(), alpha=alpha)
