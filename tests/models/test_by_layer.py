"""ViT and ConvNeXt for small images: shapes, gradients, what is refused, and attention as torch's own layer has it."""

import pytest
import torch
from torch import nn

from qrobust.errors import ModelError
from qrobust.models import build
from qrobust.models.vit import Attention

NAMES = ("vit_small_images", "convnext_small_images")
SMALL = {NAMES[0]: {"width": 64, "depth": 1}, NAMES[1]: {"widths": [4, 8], "depths": [1, 2]}}


def small(name, **options):
    torch.manual_seed(0)
    return build(name, in_channels=1, classes=3, **SMALL[name], **options)


@pytest.mark.parametrize(("size", "side"), [(32, (32, 32)), ([16, 32], (16, 32))])
def test_shape_of_the_logits(size, side):
    x = torch.rand(2, 1, *side)
    assert small(NAMES[0], size=size)(x).shape == small(NAMES[1])(x).shape == (2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_pixel_and_every_parameter(name):
    network, x = small(name), torch.rand(2, 1, 32, 32, requires_grad=True)
    network(x)[:, 0].sum().backward()
    assert (x.grad != 0).all()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_judged_by_itself(name):
    network, x = small(name).eval(), torch.rand(5, 1, 32, 32)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_grey_image_begins_as_nothing(name):
    """Whatever the first weights: half of full brightness is the middle."""
    network = small(name)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    torch.testing.assert_close(
        first(torch.full((1, 1, 8, 8), 0.5)),
        torch.zeros(1, first.out_channels, *first(torch.zeros(1, 1, 8, 8)).shape[2:]),
        atol=1e-5,
        rtol=0,
    )


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    own, theirs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        for name, value in (("in_proj_", own.qkv), ("out_proj.", own.projection)):
            for part in ("weight", "bias"):
                theirs.get_parameter(name + part).copy_(value.get_parameter(part))
    x = torch.rand(2, 5, 12)
    torch.testing.assert_close(own(x), theirs(x, x, x)[0], rtol=1e-5, atol=1e-6)


def test_patches_are_cut_where_images_are():
    """With one token told from the others by its position alone, a change of its patch changes no other token."""
    network, x = small(NAMES[0], size=8, patch=4), torch.rand(1, 1, 8, 8)
    tokens, other = network.patches(x), x.clone()
    other[..., 4:, :4] += 0.1
    changed = (network.patches(other) != tokens).any(dim=1)[0]
    assert changed.tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        (NAMES[0], {"size": 30}, "expected a size that patches of 4 pixels divide, got 30x30; change one"),
        (NAMES[0], {"size": [8, 6]}, "expected a size that patches of 4 pixels divide, got 8x6; change one"),
        (NAMES[0], {"width": 48}, "expected a width that 32 divides, the channels of a head, got 48; change it"),
        (NAMES[1], {"kernel": 4}, "widths [32, 64, 128], depths [1, 1, 1], kernel 4; change one"),
        (NAMES[1], {"depths": [2]}, "widths [32, 64, 128], depths [2], kernel 5; change one"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, text):
    with pytest.raises(ModelError) as caught:
        build(name, in_channels=3, classes=10, **options)
    assert str(caught.value).endswith(text)


def test_images_of_another_size_are_refused():
    """A multiple of the patch too: no positions were learned of it."""
    with pytest.raises(ModelError, match=r"^expected images of 32x32 pixels, got 64x32; set model\.size to theirs$"):
        small(NAMES[0])(torch.rand(1, 1, 64, 32))
