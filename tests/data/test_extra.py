"""A second source: its labels are the data set's, and every batch has its share of it."""

from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from qrobust import recipe
from qrobust.data import Dataset, Extra, Images, Mapped, epoch_batches, load_extra
from qrobust.errors import DataError

from .helpers import seeded

NAMES = ("cat", "dog", "owl")
X = torch.arange(6 * 3 * 5 * 5).reshape(6, 3, 5, 5).to(torch.uint8)
Y = torch.tensor([0, 1, 2, 2, 1, 0])
EMPTY = Images(X[:0], Y[:0])
DATASET = Dataset("fake", NAMES, Images(X, Y), EMPTY, EMPTY, "")
FACTORY = """
import numpy as np

class Named(list):
    classes = ("owl", "cat")

def numbered(n):
    return np.zeros((n, 3, 5, 5), np.uint8), np.arange(n) % 3

def named():
    return Named([np.zeros((2, 3, 5, 5), np.uint8), np.array([0, 1])]),
"""


def load(name, root=None, **more):
    return load_extra(
        recipe.Extra.model_validate({"name": name, "root": root and str(root), "share": 0.5, **more}), DATASET
    )


def written(folder, **arrays):
    np.savez(folder / "more.npz", **arrays)
    return folder / "more.npz"


@pytest.mark.parametrize(("x_name", "y_name"), [("x_train", "y_train"), ("x", "y"), ("image", "label")])
def test_arrays_by_the_names_of_their_pair(tmp_path, x_name, y_name):
    found = load("npz", written(tmp_path, **{x_name: X.numpy(), y_name: Y.numpy().astype(np.int32)}))
    assert torch.equal(found.x, X)
    assert torch.equal(found.y, Y)


def test_published_generated_images_have_their_channels_last(tmp_path):
    found = load("npz", written(tmp_path, image=X.permute(0, 2, 3, 1).numpy(), label=Y.numpy()))
    assert torch.equal(found.x, X)
    assert found.x.is_contiguous()


def test_names_decide_where_there_are_some(tmp_path):
    found = load("npz", written(tmp_path, x=X.numpy(), y=Y.numpy(), classes=np.array(["dog", "owl", "cat"])))
    assert found.y.tolist() == [1, 2, 0, 0, 2, 1]
    for name in ("owl", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (5, 5)).save(tmp_path / name / "0.png")
    assert load("folder", tmp_path).y.tolist() == [1, 2]
    mapped = load("folder", tmp_path, cache=str(tmp_path / "cache"))
    assert isinstance(mapped, Mapped)
    assert (mapped.y.tolist(), mapped.x.shape) == ([1, 2], (2, 3, 5, 5))


def test_a_function_of_the_user_s_own(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    assert load(f"{tmp_path}/mine.py:numbered", n=4).y.tolist() == [0, 1, 2, 0]
    with pytest.raises(DataError, match="got 3; relabel them"):
        load("npz", written(tmp_path, x=X.numpy(), y=Y.numpy() + 1))


WRONG = {
    "size": (
        {"x": X[..., :4].numpy(), "y": Y.numpy()},
        r"images of shape \(3, 5, 5\), the data set's, got \(3, 5, 4\)",
    ),
    "classes": ({"x": X.numpy(), "y": Y.numpy(), "classes": np.array(["cat", "dig", "owl"])}, "got 'dig'; .*'dog'"),
    "a label": ({"x": X.numpy(), "y": Y.numpy() - 1}, "expected labels of x in"),
    "no pair": (
        {"x": X.numpy(), "label": Y.numpy()},
        "x_train and y_train, x and y, image and label, got none; name them so",
    ),
}


@pytest.mark.parametrize(("arrays", "text"), WRONG.values(), ids=WRONG)
def test_what_does_not_go_with_the_data_set_is_refused_in_a_line(tmp_path, arrays, text):
    with pytest.raises(DataError, match=text) as caught:
        load("npz", written(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


def test_a_remedy_names_keys_of_its_own(tmp_path):
    with pytest.raises(DataError, match=r"^train\.extra: .*set -o train\.extra\.root=FILE"):
        load("npz", tmp_path / "none.npz")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(b"")
    Image.new("RGB", (5, 5)).save(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match=r"with -o train\.extra\.skip_unreadable=true"):
        load("folder", tmp_path)
    assert load("folder", tmp_path, skip_unreadable=True).y.tolist() == [0]
    with pytest.raises(
        DataError, match=r"train\.extra: expected no size for npz, whose images have one, got 5; remove"
    ):
        load("npz", written(tmp_path, x=X.numpy(), y=Y.numpy()), size=5)


def test_other_sources_are_refused():
    with pytest.raises(DataError, match=r"npz, folder or a function of yours, FILE\.py:NAME, got 'npzz'; did you"):
        load("npzz")


# Batches


def some(n, first, channels=3):
    """Images that tell which they are by their first pixel, of two sources by `first`."""
    x = torch.full((n, channels, 4, 4), 200, dtype=torch.uint8)
    x[:, 0, 0, 0] = first + torch.arange(n)
    return Images(x, torch.arange(n) % 3)


def permutation(number):
    return torch.randperm(7, generator=seeded(100 + number))


OWN, MORE = some(21, 0), some(7, 100)
EXTRA = Extra(MORE, 0.7, permutation)


def batches(epoch, extra=EXTRA, **options):
    extra = Extra(extra.images, extra.share, extra.order, epoch)
    return list(epoch_batches(OWN, 10, seeded(epoch), "cpu", extra=extra, **options))


def ids(x):
    return (x[:, 0, 0, 0] * 255).round().long()


@pytest.mark.parametrize("images", [MORE, Mapped(MORE.x.numpy(), MORE.y)], ids=["memory", "file"])
def test_every_batch_has_its_share_and_passes_go_on(images):
    """Three of a batch of ten are the data set's, each once an epoch; the others go through passes without a gap."""
    seen = []
    for epoch in range(3):
        found = batches(epoch, Extra(images, 0.7, permutation))
        own = [x[ids(x) < 100] for x, _ in found]
        beside = [x[ids(x) >= 100] for x, _ in found]
        assert [len(part) for part in own] == [3] * 7
        assert [len(part) for part in beside] == [7] * 7
        assert ids(torch.cat(own)).sort().values.tolist() == list(range(21))
        for x, y in found:
            assert torch.equal(y, (ids(x) % 100) % 3)
        seen += ids(torch.cat(beside)).tolist()
    expected = torch.cat([100 + permutation(number) for number in range(21)]).tolist()
    assert seen == expected


@pytest.mark.parametrize(("n", "share", "size", "counts"), [
    (21, 0.7, 10, [7] * 7), (20, 0.7, 10, [7] * 6 + [5]), (5, 0.5, 4, [2, 3]), (5, 0.25, 8, [2]),
    (4, 0.95, 20, [19] * 4), (8, 0.625, 8, [5, 5, 3]),
])  # fmt: skip
def test_a_smaller_batch_has_the_same_share(n, share, size, counts):
    extra = Extra(MORE, share, permutation)
    assert extra.counts(n, size) == counts
    assert len(extra.spans(n, size)) == len(counts)
    first = [extra._positions(start, 5).tolist() for start in range(0, 30, 5)]
    assert list(chain(*first)) == extra._positions(0, 30).tolist()


def test_both_are_augmented_alike():
    resting = Extra(some(7, 100), 0.5, permutation)
    (x, _), *_ = batches(0, resting, flip=True)
    moved = x[:, 0, 0, 3] * 255 != 200
    assert 0 < moved[:5].sum() < 5
    assert 0 < moved[5:].sum() < 5


def test_no_thread_is_left_behind():
    import threading

    before = threading.active_count()
    batches(0, Extra(Mapped(MORE.x.numpy(), MORE.y), 0.5, permutation))
    assert threading.active_count() == before
