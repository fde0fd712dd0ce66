"""One pass shows every image once."""

import pytest
import torch

from qrobust.data import Mapped, epoch_batches, to_unit
from qrobust.data.images import learning_batches
from qrobust.errors import DataError

from .helpers import seeded, some_images

IMAGES = some_images(n=50)


def everything(**options):
    pairs = list(epoch_batches(IMAGES, 16, seeded(options.pop("seed", 0)), "cpu", **options))
    return [len(y) for _, y in pairs], *(torch.cat(column) for column in zip(*pairs, strict=True))


def order_of(x):
    """The position in IMAGES of each image of x."""
    return [(to_unit(IMAGES.x, "cpu") == image).flatten(1).all(1).nonzero().item() for image in x]


def test_every_image_once_shuffled_with_its_label():
    sizes, x, y = everything()
    order = order_of(x)
    assert sizes == [16, 16, 16, 2]
    assert sorted(order) == list(range(50))
    assert order != sorted(order)
    assert torch.equal(y, IMAGES.y[order])


def test_types_and_range():
    _, x, y = everything(padding=2, flip=True)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert 0 <= x.min() <= x.max() <= 1


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(5, 2, [2, 3]), (6, 2, [2, 2, 2]), (4, 3, [4]), (3, 1, [1, 1, 1]), (1, 4, [1]), (2, 4, [2]), (0, 4, [])],
)
def test_a_last_image_on_its_own_joins_the_batch_before(count, size, sizes):
    spans = learning_batches(count, size)
    assert [span.stop - span.start for span in spans] == sizes
    assert [position for span in spans for position in range(count)[span]] == list(range(count))


def test_the_seed_decides():
    first, again, other = (everything(padding=2, flip=True, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_augmentation_is_asked_for():
    _, plain, _ = everything()
    _, moved, _ = everything(padding=2)
    assert not torch.equal(plain, moved)


def test_a_second_epoch_has_another_order():
    generator = seeded()
    first, second = (torch.cat([y for _, y in epoch_batches(IMAGES, 16, generator, "cpu")]) for _ in range(2))
    assert not torch.equal(first, second)


def test_wrong_batch_sizes_are_refused_at_once():
    with pytest.raises(DataError, match="expected a batch size of at least 1, got 0"):
        epoch_batches(IMAGES, 0, seeded(), "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("images", [IMAGES, Mapped(IMAGES.x.numpy(), IMAGES.y)], ids=["memory", "file"])
@pytest.mark.parametrize("resting", ["cpu", "cuda"])
def test_a_device_changes_no_bit(resting, images):
    _, x, y = everything(padding=2, flip=True)
    pairs = list(epoch_batches(images.to(resting), 16, seeded(), "cuda", padding=2, flip=True))
    assert torch.equal(torch.cat([x for x, _ in pairs]).cpu(), x)
    assert torch.equal(torch.cat([y for _, y in pairs]).cpu(), y)
