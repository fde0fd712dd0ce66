"""Every prefix of the order is stratified, and the order hangs on labels and seed alone."""

import pytest
import torch

from qrobust.data import Images, choose, stratified_order

IN_CLASS_ORDER = torch.arange(10).repeat_interleave(60)
UNEVEN = torch.arange(3).repeat_interleave(torch.tensor([7, 100, 13]))
LABELS = {
    "in class order": IN_CLASS_ORDER,
    "shuffled": IN_CLASS_ORDER[torch.randperm(600, generator=torch.Generator().manual_seed(0))],
    "uneven": UNEVEN,
    "gaps and one of a kind": torch.tensor([7, 7, 2, 9, 9, 9, 9]),
    "one class": torch.zeros(5, dtype=torch.long),
    "none": torch.zeros(0, dtype=torch.long),
}


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_every_image_once(y):
    order = stratified_order(y, seed=3)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(len(y)))


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_every_prefix_holds_each_class_in_its_share_within_one(y):
    one_hot = (y[stratified_order(y, seed=3)][:, None] == y.unique()).double()
    counts, n = one_hot.cumsum(0), torch.arange(1, len(y) + 1)[:, None]
    shares = n * one_hot.mean(0) if len(y) else counts
    assert ((counts - shares).abs() < 1).all()


def test_ten_images_of_data_in_class_order_are_of_ten_classes():
    assert IN_CLASS_ORDER[stratified_order(IN_CLASS_ORDER, 0)[:10]].sort().values.tolist() == list(range(10))


def test_the_seed_decides_which_images_and_which_class_first():
    first, again, other = (stratified_order(IN_CLASS_ORDER, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert len({stratified_order(IN_CLASS_ORDER, seed)[0].item() // 60 for seed in range(9)}) > 3
    assert set(first[:50].tolist()) != set(other[:50].tolist())


def test_the_order_is_the_same_for_ever():
    """Results of one seed are compared over versions: a change here would part them."""
    y = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    assert stratified_order(y, seed=0).tolist() == [0, 4, 7, 3, 2, 6, 5, 1]


def test_choosing_is_nested_and_all_stays_in_its_order():
    images = Images(torch.arange(120, dtype=torch.uint8).view(-1, 1, 1, 1), UNEVEN)
    many, which = choose(images, 60, seed=1)
    _, first = choose(images, 20, seed=1)
    assert torch.equal(many.x.flatten(), which.byte())
    assert torch.equal(many.y, UNEVEN[which])
    assert torch.equal(which[:20], first)
    for n in (None, 120, 500):
        assert choose(images, n, seed=1) == (images, None)
