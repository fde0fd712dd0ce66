"""Settings that make no sense are refused in words."""

from dataclasses import replace

import pytest

from qrobust.data.sources.registry import DataSettings, check_settings
from qrobust.errors import DataError

DIGITS = DataSettings("digits")
WRONG = [
    ({"validation": -0.1}, "expected validation in [0, 0.5], got -0.1; give the share set aside, as 0.1"),
    ({"validation": 10}, "expected validation in [0, 0.5], got 10; give the share set aside, as 0.1"),
    (
        {"validation": float("nan")},
        "expected validation in [0, 0.5], got nan; give the share set aside, as 0.1",
    ),
    ({"train_size": 0}, "expected train_size of at least 1, got 0; leave it out to take what is there"),
    ({"test_size": -5}, "expected test_size of at least 1, got -5; leave it out to take what is there"),
    ({"size": 32}, "expected no size for digits, whose images have one, got 32; remove it"),
    (
        {"cache": "there"},
        "expected no cache for digits, whose images are held in memory, got 'there'; remove it",
    ),
    ({"texture": 0.5}, "expected no texture for digits, whose images are not drawn, got 0.5; remove it"),
    (
        {"name": "spectral-shapes", "texture": 1.5},
        "expected texture in [0, 1], got 1.5; give a share of the images, as 0.8",
    ),
    ({"test_share": 0}, "expected test_share in (0, 0.5], got 0; give a share, as 0.2"),
    ({"name": "folder", "size": (8, 0)}, "expected size of at least 1, got (8, 0); leave it out to take what is there"),
    (
        {"skip_unreadable": True},
        "expected no skip_unreadable for digits, which is no folder of files; remove it",
    ),
    ({"options": {"n": 1}}, "expected no options for digits, which is no factory of yours, got 'n'; remove it"),
    ({"seed": -1}, "expected a seed in [0, 2^63), got -1; choose another"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_refused(change, message):
    with pytest.raises(DataError) as caught:
        check_settings(replace(DIGITS, **change))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "settings",
    [
        DIGITS,
        replace(DIGITS, validation=0.5),
        DataSettings("folder", size=64),
        DataSettings("folder", size=(12, 20), skip_unreadable=True),
        DataSettings("mine.py:make", size=8, options={"n": 1}, test_share=0.5),
        DataSettings("folder", cache="there"),
        DataSettings("spectral-shapes", texture=0.0),
    ],
)
def test_accepted(settings):
    check_settings(settings)
