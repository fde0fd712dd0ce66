"""Images in a file are the same images, and no more of them is read than is asked for."""

import hashlib
import mmap
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from qrobust.attacks import named
from qrobust.data import Images, Mapped, epoch_batches
from qrobust.data.images import PIECE, fingerprint, map_images
from qrobust.data.loading import split, subset
from qrobust.errors import DataError
from qrobust.evaluation import evaluate
from qrobust.threat import Threat

from .helpers import seeded, some_images

N = 700  # some pieces of a fingerprint


class Counting:
    """An array that notes how many rows each reading takes."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.reads = pixels, pixels.shape, []

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, positions):
        self.reads.append(len(positions))
        return self.pixels[positions]


@pytest.fixture
def resting():
    return some_images(n=N)


@pytest.fixture
def counted(resting):
    """The same images behind an array that counts, and that array."""
    array = Counting(resting.x.numpy())
    return Mapped(array, resting.y), array


def write(path, images):
    np.save(path, images.x.numpy())
    return path


def same(first, second):
    return torch.equal(first.x, second.x) and torch.equal(first.y, second.y) and first.shape == second.shape


def test_takes_of_takes_are_those_of_memory(resting, counted):
    mapped, array = counted
    mask = torch.rand(N, generator=seeded()) < 0.5
    order = torch.randperm(int(mask.sum()), generator=seeded())
    for first, second in ((mask, order), (slice(5, 90), slice(3, 20)), (order, [4, 2, 2]), (slice(0, 0), slice(0, 9))):
        taken = mapped.take(first).take(second)
        assert isinstance(taken, Mapped)
        assert array.reads == []
        assert same(taken, resting.take(first).take(second))
        assert array.reads.pop() == len(taken)
        array.reads.clear()


def test_split_and_subset_read_nothing(resting, counted):
    mapped, array = counted
    parts = split(subset(mapped, 500, seeded(1), key="train_size"), 0.2, seeded(2))
    assert (array.reads, mapped.shape, len(mapped)) == ([], (N, 3, 6, 6), N)
    assert mapped.to("cpu") is mapped
    assert repr(mapped) == f"Mapped({N}, 3, 6, 6)"
    expected = split(subset(resting, 500, seeded(1), key="train_size"), 0.2, seeded(2))
    assert array.reads == []
    assert all(same(one, other) for one, other in zip(parts, expected, strict=True))


def test_an_epoch_is_that_of_memory_batch_by_batch(resting, counted):
    mapped, array = counted
    options = {"padding": 2, "flip": True}
    generators = [seeded(), seeded()]
    epochs = [
        list(epoch_batches(images, 64, generator, "cpu", **options))
        for images, generator in zip((resting, mapped), generators, strict=True)
    ]
    for (x, y), (other_x, other_y) in zip(*epochs, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    assert torch.equal(*(generator.get_state() for generator in generators))
    assert array.reads == [64] * 10 + [60]


def test_one_batch_is_read_ahead_and_no_more(counted):
    mapped, array = counted
    before = threading.active_count()
    batches = mapped.batches(64)
    assert array.reads == []
    next(batches)
    assert 1 <= len(array.reads) <= 2
    next(batches)
    assert 2 <= len(array.reads) <= 3
    batches.close()
    assert threading.active_count() == before


def test_what_cannot_be_read_is_an_error_where_it_is_asked_for(counted):
    mapped, array = counted
    array.pixels = array.pixels[:100]
    batches = mapped.batches(64)
    next(batches)
    with pytest.raises(IndexError):
        next(batches)


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_batches_are_those_of_memory(size):
    resting = some_images()
    batches = list(Mapped(resting.x.numpy(), resting.y).batches(size))
    assert all(same(one, other) for one, other in zip(batches, resting.batches(size), strict=True))
    assert list(Mapped(resting.x.numpy(), resting.y).take([]).batches(size)) == []


def test_a_batch_of_none_is_refused_at_once(counted):
    with pytest.raises(DataError, match="expected a batch size of at least 1, got 0"):
        counted[0].batches(0)


def test_the_fingerprint_is_that_of_memory_and_read_in_pieces(resting, counted):
    mapped, array = counted
    order = torch.randperm(N, generator=seeded())
    assert fingerprint(mapped, mapped.take(order)) == fingerprint(resting, resting.take(order))
    assert max(array.reads) == PIECE
    assert sum(array.reads) == 2 * N


def test_an_evaluation_is_that_of_memory(resting, counted):
    torch.manual_seed(0)
    model, threat = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), Threat("linf", 8 / 255)
    options = {"attacks": [named("pgd-2", threat)], "threat": threat, "batch_size": 100}
    mapped, expected = (evaluate(model, images, **options) for images in (counted[0], resting))
    assert mapped.to_dict()["worst_case"] == expected.to_dict()["worst_case"]
    whole = resting.x.numpy().tobytes() + resting.y.numpy().tobytes()
    assert mapped.images == expected.images == hashlib.sha256(whole).hexdigest()


def test_a_whole_epoch_allocates_batches_only(tmp_path):
    path, y = tmp_path / "large.npy", torch.arange(4000) % 10
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(4000, 3, 64, 64)).flush()
    tracemalloc.start()
    try:
        train, validation = split(map_images(path, y, classes=10), 0.1, seeded())
        fingerprint(train, validation)
        batches = sum(1 for _ in epoch_batches(train, 100, seeded(), "cpu"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert batches == 36
    assert peak < 4000 * 3 * 64 * 64 / 3  # pieces of 256 images, twice and ahead


def test_a_file_is_mapped_as_it_is(tmp_path):
    resting = some_images()
    mapped = map_images(write(tmp_path / "a.npy", resting), resting.y, classes=3)
    assert same(mapped, resting)
    mapped.x.zero_()  # a copy
    assert same(mapped, resting)


@pytest.mark.skipif(sys.platform == "win32", reason="no advice about pages there")
def test_rows_are_asked_for_in_whole_pages_and_no_others(tmp_path, monkeypatch):
    asked = []

    class Recording(mmap.mmap):
        def madvise(self, option, start, length):
            asked.append((start, length))
            return super().madvise(option, start, length)

    resting = some_images(n=40, side=50)
    path = write(tmp_path / "a.npy", resting)
    monkeypatch.setattr(mmap, "mmap", Recording)
    taken = map_images(path, resting.y, classes=3).take([39, 0, 7])
    assert asked == []
    assert torch.equal(taken.x, resting.take([39, 0, 7]).x)
    header, row = path.stat().st_size - 40 * 7500, 7500
    for (start, length), position in zip(asked, (39, 0, 7), strict=True):
        first = header + position * row
        assert start % mmap.PAGESIZE == 0
        assert first - mmap.PAGESIZE < start <= first
        assert start + length == first + row


LABELS = some_images().y
WRONG = [
    (LABELS[:5], "expected labels of mine of shape (12,), got (5,); give one label per image"),
    (LABELS + 1, "expected labels of mine in [0, 2], got 3; number the classes from 0"),
    (LABELS.int(), "expected labels of mine as torch.int64, got torch.int32; convert them by y.long()"),
]


@pytest.mark.parametrize(("y", "message"), WRONG)
def test_wrong_labels_are_named(tmp_path, y, message):
    path = write(tmp_path / "a.npy", some_images())
    with pytest.raises(DataError) as caught:
        map_images(path, y, classes=3, name="mine")
    assert str(caught.value) == message


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = write(tmp_path / "a.npy", some_images())
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)  # None: cut short
    with pytest.raises(DataError, match=rf"expected decoded images in {path}, cannot read it: .*; remove it"):
        map_images(path, LABELS, classes=3)


def test_an_array_of_something_else_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((12, 3, 6, 6), dtype=np.float32))
    with pytest.raises(DataError) as caught:
        map_images(path, LABELS, classes=3)
    assert str(caught.value) == f"expected uint8 (n, c, h, w) in {path}, got float32 (12, 3, 6, 6); remove it"


def test_images_of_memory_stream_as_they_take(resting):
    parts = (torch.tensor([3, 1]), slice(4, 9))
    assert all(
        isinstance(found, Images) and same(found, resting.take(part))
        for found, part in zip(resting.stream(parts), parts, strict=True)
    )
