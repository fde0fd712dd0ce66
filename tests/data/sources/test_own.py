"""Images from a user's own function: what it may return, and one line for what it may not."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from qrobust.data import DataSettings, load, make_images
from qrobust.data.sources.own import own
from qrobust.errors import DataError, RecipeError

X = torch.randint(256, (12, 3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
UNIT = X.float() / 255


class Pictures(Dataset):
    """Items as torchvision's data sets give them, of several sizes and modes."""

    classes = ("ant", "bee")

    def __init__(self, sizes=((8, 6),), modes=("RGB",)):
        self.sizes, self.modes = sizes, modes

    def __len__(self):
        return 4

    def __getitem__(self, position):
        size, mode = self.sizes[position % len(self.sizes)], self.modes[position % len(self.modes)]
        return Image.new(mode, size, 50 * position if mode == "L" else (50 * position,) * 3), position % 2


def named(classes, *tensors):
    found = TensorDataset(*tensors)
    found.classes = classes
    return found


@pytest.fixture
def read(tmp_path, monkeypatch):
    """What comes of a function that returns this value."""

    def run(value, **settings):
        module = tmp_path / "mine.py"
        module.write_text("import shelf\ndef make(**options): return shelf.value\n")
        monkeypatch.setitem(sys.modules, "shelf", type(sys)("shelf"))
        sys.modules["shelf"].value = value
        monkeypatch.chdir(tmp_path)
        for name in [name for name in sys.modules if name.startswith("_own_mine")]:
            del sys.modules[name]  # its code is run anew
        return own(DataSettings("mine.py:make", **settings))

    return run


GIVEN = {
    "pair": (X, Y),
    "floats": (UNIT, Y),
    "arrays": (X.numpy(), Y.numpy().astype(np.int32)),
    "list": [X, Y.tolist()],
    "data set": TensorDataset(UNIT, Y),
    "loader": DataLoader(TensorDataset(UNIT, Y), batch_size=5),
    "images": make_images(X, Y, classes=3),
    "one part": ((X, Y),),
}


@pytest.mark.parametrize("value", GIVEN.values(), ids=GIVEN)
def test_training_images_alone(read, value):
    found = read(value)
    assert torch.equal(found.train.x, X)
    assert torch.equal(found.train.y, Y)
    assert (found.test, found.validation, found.classes) == (None, None, ("0", "1", "2"))


@pytest.mark.parametrize("count", [2, 3])
def test_parts_in_their_order(read, count):
    found = read([(X[:6], Y[:6]), *[(X[6 + i : 9 + i], Y[6 + i : 9 + i]) for i in range(count - 1)]])
    assert torch.equal(found.test.x, X[5 + count - 1 : 8 + count - 1])
    assert (found.validation is None) == (count == 2)
    if count == 3:
        assert torch.equal(found.validation.x, X[6:9])


def test_two_data_sets_are_no_pair(read):
    found = read((TensorDataset(X, Y), DataLoader(TensorDataset(X[:4], Y[:4]))))
    assert (len(found.train), len(found.test)) == (12, 4)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: Subset(s, range(12)), DataLoader])
def test_names_of_classes_are_found_through_what_wraps_them(read, wrap):
    assert read(wrap(named(["a", "b", "c", "d"], X, Y))).classes == ("a", "b", "c", "d")


def test_pictures_become_colour(read):
    found = read(Pictures(modes=("RGB", "L")))
    assert found.classes == ("ant", "bee")
    assert found.train.shape == (4, 3, 6, 8)
    assert found.train.x[:, :, 0, 0].tolist() == [[value] * 3 for value in (0, 50, 100, 150)]


def test_grey_tensors_beside_colour_become_colour(read, capfd):
    items = [(X[0], 0), (X[1, :1], 1)]
    found = read(_Listed(items))
    assert torch.equal(found.train.x[1], X[1, :1].expand(3, -1, -1))
    assert "1 of 2 are grey and become colour" in capfd.readouterr().err
    assert read(_Listed([(x[:1], y) for x, y in items])).train.shape[1] == 1


class _Listed(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        return self.items[position]


@pytest.mark.parametrize("size", [4, (4, 6), (3, 12)])
def test_size_makes_all_sizes_one(read, size):
    height, width = size if isinstance(size, tuple) else (size, size)
    found = read(Pictures(sizes=((8, 6), (30, 9))), size=size)
    assert found.train.shape == (4, 3, height, width)
    assert found.train.x[:, 0].flatten(1).float().std(dim=1).max() == 0
    assert read((X, Y), size=size).train.shape == (12, 3, height, width)


def test_resizing_keeps_the_centre(read):
    x = torch.zeros(1, 1, 4, 12, dtype=torch.uint8)
    x[..., 4:8] = 200
    assert torch.equal(read((x, [0]), size=4).train.x, torch.full((1, 1, 4, 4), 200, dtype=torch.uint8))
    assert torch.equal(read((x, [0]), size=(4, 12)).train.x, x)


WRONG = [
    (None, "expected training images of mine.py:make, got <class 'NoneType'>; return (train, test), each a pair"),
    (X, "expected training images of mine.py:make, got <class 'torch.Tensor'>; return (train, test)"),
    ((), "expected one to three parts of mine.py:make, got 0; return (train, test)"),
    ((X, Y[:5]), "expected labels of training images of mine.py:make of shape (12,), got (5,); give one label"),
    (
        (X, Y.float()),
        "expected labels of training images of mine.py:make as whole numbers, got torch.float32",
    ),
    ((X, Y - 1), "expected labels of training images of mine.py:make in [0, 1], got -1; number the classes from 0"),
    (((X, Y), (X, Y + 1)), "expected labels of test images of mine.py:make in [0, 2], got 3; number the classes"),
    (named(["a", "b"], X, Y), "expected labels of training images of mine.py:make in [0, 1], got 2; number the"),
    (named("ab", X, Y), "expected classes as a list of names, got 'ab'; give one name a class"),
    (TensorDataset(X), "expected pairs (x, y) from training images of mine.py:make, got <class 'tuple'>; return both"),
    (_Listed([]), "expected at least one image in training images of mine.py:make, got none; give some"),
    ((UNIT * 3 - 1, Y), "expected training images of mine.py:make in [0, 1] or as uint8, got [-1, 2]; pass unnormal"),
    (
        Pictures(sizes=((8, 6), (5, 5))),
        "expected training images of mine.py:make of one shape (c, h, w), got (3, 5,",
    ),
]


@pytest.mark.parametrize(("value", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_what_it_may_not_return_is_one_line(read, value, message):
    with pytest.raises(DataError) as caught:
        read(value)
    assert str(caught.value).startswith(message)


FILE = """
import torch
def make(n=6, size_of=4):
    if n < 1:
        raise ValueError("too few")
    return (torch.rand(n, 3, size_of, size_of), torch.arange(n) % 2)
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_further_keys_are_its_options(mine):
    assert own(DataSettings(f"{mine}:make", options={"n": 9, "size_of": 5})).train.shape == (9, 3, 5, 5)


def test_what_torch_draws_in_it_hangs_on_the_seed_alone(mine):
    one, same, other = (own(DataSettings(f"{mine}:make", seed=seed)).train.x for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"n": 0},
            "expected images of {0}:make with n, it raised ValueError, line 5: too few; mend it, or its",
        ),
        (
            {"m": 0},
            "expected images of {0}:make with m, it raised TypeError: make() got an unexpected keyword",
        ),
    ],
)
def test_what_it_raises_is_one_line(mine, options, message):
    with pytest.raises(DataError) as caught:
        own(DataSettings(f"{mine}:make", options=options))
    assert str(caught.value).startswith(message.format(mine))


def test_an_error_of_a_data_set_names_it(read):
    class Broken(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, position):
            raise KeyError("pixels")

    with pytest.raises(DataError, match=r"expected training images of mine\.py:make, reading them raised KeyError"):
        read(Broken())


def test_test_images_are_drawn_from_training_by_class_and_for_every_seed(mine, capfd):
    settings = {"options": {"n": 40}, "validation": 0.25}
    found = load(DataSettings(f"{mine}:make", **settings))
    assert (len(found.train), len(found.validation), len(found.test)) == (24, 8, 8)
    assert found.test.y.bincount().tolist() == [4, 4]
    assert "no images for testing, so 8 of 40 training images are set aside" in capfd.readouterr().err
    assert load(DataSettings(f"{mine}:make", **settings)).fingerprint == found.fingerprint
    fewer = load(DataSettings(f"{mine}:make", train_size=10, **settings))
    assert torch.equal(fewer.test.x, found.test.x)
    assert len(load(DataSettings(f"{mine}:make", test_share=0.5, **settings)).test) == 20


def test_test_images_are_the_same_for_every_seed(tmp_path):
    (tmp_path / "fixed.py").write_text("import numpy\ndef make():\n  return numpy.arange(40).reshape(40, 1, 1, 1)"
                                       ".astype('uint8'), [0, 1] * 20\n")  # fmt: skip
    one, other = (load(DataSettings(f"{tmp_path / 'fixed.py'}:make", seed=seed, validation=0.1)) for seed in (0, 7))
    assert torch.equal(one.test.x, other.test.x)
    assert not torch.equal(one.validation.x, other.validation.x)
    parts = torch.cat([part.x.flatten() for part in (one.train, one.validation, one.test)])
    assert sorted(parts.tolist()) == list(range(40))


def test_validation_images_of_its_own_are_taken(tmp_path):
    (tmp_path / "three.py").write_text("import numpy\ndef make():\n  part = (numpy.zeros((6, 1, 2, 2), 'uint8'), "
                                       "[0, 1] * 3)\n  return part, (part[0] + 9, part[1]), part\n")  # fmt: skip
    found = load(DataSettings(f"{tmp_path / 'three.py'}:make", validation=0.5))
    assert (len(found.train), found.validation.x.unique().tolist(), len(found.test)) == (6, [9], 6)


def test_a_share_that_nothing_asks_for_is_refused():
    with pytest.raises(DataError, match=r"expected no test_share where there are test images, got 0.3; remove it"):
        load(DataSettings("digits", test_share=0.3))


def test_a_name_that_is_none(mine):
    with pytest.raises(RecipeError, match=r"expected a function 'mke' in .*, got none; did you mean 'make'\?"):
        own(DataSettings(f"{mine}:mke"))
