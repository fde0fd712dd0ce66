"""A split loses nothing, doubles nothing, and is fair to every class."""

import pytest
import torch

from qrobust.data.images import Images
from qrobust.data.loading import split, subset
from qrobust.errors import DataError

from .helpers import seeded


def numbered(counts):
    """One 1×1 image per position, its number in four channels of a byte, classes of these sizes, shuffled."""
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=seeded(7))]
    number = torch.arange(len(y))
    x = torch.stack([number // 256, number % 256], dim=1).to(torch.uint8)
    return Images(x.view(-1, 2, 1, 1), y)


def numbers(images):
    high, low = images.x.long().view(-1, 2).unbind(1)
    return (high * 256 + low).tolist()


CASES = [
    ([100, 100, 100], 0.1),
    ([7, 13, 29, 1], 0.25),
    ([500] * 4, 0.5),
    ([3, 0, 5], 0.29),
    ([2, 1], 0.5),
    ([11] * 10, 0.1),
]


@pytest.mark.parametrize(("counts", "share"), CASES)
def test_disjoint_complete_and_stratified(counts, share):
    images = numbered(counts)
    train, validation = split(images, share, seeded())
    assert sorted(numbers(train) + numbers(validation)) == numbers(images)
    given = torch.bincount(validation.y, minlength=len(counts))
    assert all(abs(int(g) - n * share) < 1 for g, n in zip(given, counts, strict=True))
    assert all(n == 0 or n > g for g, n in zip(given.tolist(), counts, strict=True))


@pytest.mark.parametrize(("counts", "share"), [([100, 100, 100], 0.1), ([11] * 10, 0.1), ([100], 0.29)])
def test_the_total_is_the_share(counts, share):
    _, validation = split(numbered(counts), share, seeded())
    assert len(validation) == round(sum(counts) * share)


def test_labels_stay_with_their_images():
    images = numbered([20, 30])
    for part in split(images, 0.3, seeded()):
        assert torch.equal(part.y, images.y[numbers(part)])


def test_the_seed_decides():
    images = numbered([50, 50])
    first, again, other = (numbers(split(images, 0.2, seeded(seed))[1]) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_share_of_zero_keeps_all():
    images = numbered([5, 5])
    train, validation = split(images, 0, seeded())
    assert (train, len(validation)) == (images, 0)


def test_a_share_too_small_is_refused():
    message = "expected a validation share that gives an image, got 0.001 of 10; raise it"
    with pytest.raises(DataError, match=message):
        split(numbered([5, 5]), 0.001, seeded())


def test_subsets_are_random_distinct_and_nested():
    images = numbered([300])
    small, large = (numbers(subset(images, size, seeded(), key="test_size")) for size in (20, 50))
    assert large[:20] == small
    assert len(set(large)) == 50
    assert sorted(large) != list(range(50))


def test_subset_of_none_is_everything_in_order():
    images = numbered([10])
    assert subset(images, None, seeded(), key="test_size") is images


def test_subset_of_too_many():
    message = "expected test_size of at most 10, all images there are, got 11; lower it"
    with pytest.raises(DataError, match=message):
        subset(numbered([10]), 11, seeded(), key="test_size")
