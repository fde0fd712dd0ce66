"""Images are decoded once, wholly or not at all, and anew when they change."""

import os
import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from qrobust.data import DataSettings, Mapped, load
from qrobust.data.sources import files
from qrobust.data.sources.files import decoded, read_images
from qrobust.errors import DataError

OLD = 1_000_000_000  # a time of change, in seconds


def save(path, seed, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, (OLD, OLD))
    return path


@pytest.fixture
def root(tmp_path):
    for seed in range(20):
        save(tmp_path / "data" / "train" / "ab"[seed % 2] / f"{seed}.png", seed)
        save(tmp_path / "data" / "val" / "ab"[seed % 2] / f"{seed}.png", 50 + seed)
    return tmp_path / "data"


@pytest.fixture
def paths(root):
    return sorted((root / "train").rglob("*.png"))


@pytest.fixture
def decodings(monkeypatch):
    """The paths of all files that are decoded."""
    seen, read = [], files._read
    monkeypatch.setattr(files, "_read", lambda path, size: seen.append(path) or read(path, size))
    return seen


def settings(root, tmp_path, **options):
    return DataSettings("folder", root=str(root), cache=str(tmp_path / "cache"), **options)


@pytest.mark.parametrize("options", [{}, {"size": 4}, {"validation": 0.25, "train_size": 12, "test_size": 5}])
def test_a_data_set_with_a_cache_is_the_one_without(root, tmp_path, options):
    cached = load(settings(root, tmp_path, **options))
    plain = load(DataSettings("folder", root=str(root), **options))
    assert (cached.fingerprint, cached.classes, cached.shape) == (plain.fingerprint, plain.classes, plain.shape)
    for part in ("train", "validation", "test"):
        one, other = getattr(cached, part), getattr(plain, part)
        assert isinstance(one, Mapped)
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)


def test_a_second_use_decodes_nothing(root, tmp_path, decodings):
    first = load(settings(root, tmp_path))
    assert len(set(decodings)) == 40
    decodings.clear()
    assert load(settings(root, tmp_path)).fingerprint == first.fingerprint
    assert decodings == []


def flat(path):
    """Pixels of one colour take fewer bytes; the time of change stays."""
    Image.new("RGB", (6, 6)).save(path)
    os.utime(path, (OLD, OLD))


CHANGES = {
    "time": lambda paths: os.utime(paths[3], (OLD, OLD + 1)),
    "bytes": lambda paths: flat(paths[3]),
    "more": lambda paths: paths.append(save(paths[-1].with_name("x.png"), 5)),
    "fewer": lambda paths: paths.pop(0),
    "name": lambda paths: paths.append(paths.pop().rename(paths[-1].with_name("x.png"))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_files_are_decoded_anew(root, paths, tmp_path, change):
    before = decoded(paths, root / "train", None, tmp_path)
    change(paths)
    after = decoded(paths, root / "train", None, tmp_path)
    assert after != before
    assert torch.equal(torch.from_numpy(np.load(after)), read_images(paths))


def test_another_size_has_another_file(root, paths, tmp_path):
    found = [decoded(paths, root / "train", size, tmp_path) for size in (None, 6, 4)]
    assert len(set(found)) == 3
    assert np.load(found[2]).shape == (20, 3, 4, 4)


def test_images_decoded_by_older_rules_are_not_used(root, paths, tmp_path, monkeypatch):
    found = decoded(paths, root / "train", None, tmp_path)
    monkeypatch.setattr(files, "LAYOUT", files.LAYOUT - 1)
    assert decoded(paths, root / "train", None, tmp_path) != found


def test_a_folder_that_moved_keeps_its_file(root, paths, tmp_path, decodings):
    before = decoded(paths, root / "train", None, tmp_path)
    moved = root.rename(root.with_name("elsewhere"))
    decodings.clear()
    assert decoded(sorted((moved / "train").rglob("*.png")), moved / "train", None, tmp_path) == before
    assert decodings == []


def stopping(error):
    """`decode` that writes the first piece and stops at the second."""

    def put_until(put, start, pixels):
        if start:
            raise error
        put(start, pixels)

    decode = files.decode
    return lambda paths, size, put: decode(paths, size, partial(put_until, put))


@pytest.mark.parametrize(
    ("error", "seen", "message"),
    [
        (KeyboardInterrupt, KeyboardInterrupt, "^$"),
        (OSError("No space left on device"), DataError, r"cannot write .*: No space left on device; change data.cache"),
    ],
)
def test_a_stopped_decoding_leaves_nothing(paths, root, tmp_path, monkeypatch, error, seen, message):
    monkeypatch.setattr(files, "PIECE", 8)
    monkeypatch.setattr(files, "decode", stopping(error))
    with pytest.raises(seen, match=message):
        decoded(paths, root / "train", None, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_is_no_image_leaves_nothing(paths, root, tmp_path):
    paths[7].write_bytes(b"no image")
    with pytest.raises(DataError, match=f"expected an image at {paths[7]}, cannot read it"):
        decoded(paths, root / "train", None, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_killed_processes_left_is_swept_and_a_running_one_spared(paths, root, tmp_path):
    path = decoded(paths, root / "train", None, tmp_path)
    left, running = (path.with_name(f".{path.name}.{name}") for name in ("left", "running"))
    for unfinished in (left, running):
        unfinished.write_bytes(b"half")
    os.utime(left, (time.time() - files.STALE - 60,) * 2)
    path.unlink()
    assert decoded(paths, root / "train", None, tmp_path) == path
    assert (left.exists(), running.exists()) == (False, True)


def test_other_processes_wait_and_decode_nothing(paths, root, tmp_path, decodings, monkeypatch):
    path = decoded(paths, root / "train", None, tmp_path)
    hidden = path.rename(tmp_path / "hidden")
    decodings.clear()
    monkeypatch.setattr(files.distributed, "is_first", lambda: False)
    monkeypatch.setattr(files, "PAUSE", 0.01)
    timer = threading.Timer(0.2, hidden.rename, [path])
    timer.start()
    assert decoded(paths, root / "train", None, tmp_path) == path
    assert path.exists()
    assert decodings == []
    timer.join()


def test_a_file_that_never_comes(paths, root, tmp_path, monkeypatch):
    monkeypatch.setattr(files.distributed, "is_first", lambda: False)
    monkeypatch.setattr(files, "PAUSE", 0.01)
    monkeypatch.setattr(files.distributed, "PATIENCE", SimpleNamespace(total_seconds=lambda: 0.1))
    with pytest.raises(DataError, match=r"expected .* from the first process, got none; give a folder that all"):
        decoded(paths, root / "train", None, tmp_path)


def test_a_disk_too_small_is_refused_before_decoding(paths, root, tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=20 * 3 * 36 - 1))
    with pytest.raises(DataError, match=r"expected 0.0 GB free for decoded images in .*, got 0.0; choose another"):
        decoded(paths, root / "train", None, tmp_path / "cache")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=20 * 3 * 36))
    assert decoded(paths, root / "train", None, tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_made(paths, root, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"expected a writable place, cannot write .*; change data.cache"):
        decoded(paths, root / "train", None, tmp_path / "file")


def test_a_link_to_nowhere_is_named(paths, root, tmp_path):
    paths[2].unlink()
    paths[2].symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"expected an image at {paths[2]}, cannot read it"):
        decoded(paths, root / "train", None, tmp_path)
