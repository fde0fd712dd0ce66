"""torchvision's networks: nothing random by default, documented strides, other channels, its own weights."""

import pytest
import torch
from torch import nn

from qrobust.errors import ModelError
from qrobust.models import build
from qrobust.torchvision_cpu import import_torchvision

NAMES = ("mobilenet_v2", "efficientnet_b0")
CHANGED = {
    "mobilenet_v2": {"features.0.0", "features.2.conv.1.0"},
    "efficientnet_b0": {"features.0.0", "features.2.0.block.1.0"},
}


def network(name, in_channels=3, **options):
    torch.manual_seed(0)
    return build(name, in_channels=in_channels, classes=10, **options)


def shrinking(model):
    return {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)}


@pytest.mark.parametrize("name", NAMES)
def test_two_strides_change_for_small_images(name):
    small, large = shrinking(network(name)), shrinking(network(name, stem="imagenet"))
    assert large - small == CHANGED[name]
    assert len(small) == 3
    assert small < large


@pytest.mark.parametrize("name", NAMES)
def test_with_its_own_stem_it_is_torchvisions_network(name):
    theirs = getattr(import_torchvision().models, name)(weights=None, num_classes=10).eval()
    ours = network(name, stem="imagenet").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_channels_changes_the_first_convolution_only(name):
    three, one = network(name), network(name, in_channels=1)
    shapes = {key: value.shape for key, value in three.state_dict().items()}
    changed = {key: tuple(v.shape) for key, v in one.state_dict().items() if v.shape != shapes[key]}
    assert changed == {"features.0.0.weight": (32, 1, 3, 3)}
    assert float(one.features[0][0].weight.detach().var()) == pytest.approx(2 / (9 * 32), rel=0.3)


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_is_deterministic_by_default(name):
    model, x = network(name).train(), torch.rand(4, 3, 16, 16)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("name", "option"), [(NAMES[0], "dropout"), (NAMES[1], "dropout"), (NAMES[1], "stochastic_depth_prob")]
)
def test_random_parts_on_demand(name, option):
    model, x = network(name, **{option: 0.5}).train(), torch.rand(4, 3, 16, 16)
    assert not torch.equal(model(x), model(x))
    with pytest.raises(ModelError, match=rf"^expected {option} from 0 to below 1, got 1\.5$"):
        network(name, **{option: 1.5})
    with pytest.raises(ModelError, match=rf"^expected {option} from 0 to below 1, got 'much'$"):
        network(name, **{option: "much"})
