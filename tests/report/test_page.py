"""The page as a browser's parser reads it."""

import itertools
import re
import shutil

import pytest

from qrobust.report import CARD, PAGE, write
from qrobust.report.collect import collect
from qrobust.storage import write_json

from .conftest import HEADINGS, Parsed, change, share

HOSTILE = '<script src="evil">alert(1)</script>"\' onload=x'


def page(run):
    return Parsed(write(run).read_text())


def test_verdict_first_then_numbers_as_in_the_files(run):
    text = page(run).text
    order = ("square_gap", "Accuracy", "Flags", "Accuracy against", "Training", "In frequencies", "Examples",
             "Layers", "Provenance")  # fmt: skip
    places = [text.index(f" {part} ") for part in order]
    assert places == sorted(places)
    for number in ("91.1", "61.1–98.5", "51.1", "25.4–74.6", "81.1 *", "41.1", "19.8–68.1",  # eval.json
                   "75.0", "62.3 §", "30.6–86.3 n = 8", "33.3", "4,321", "0.321", "1.50 (1.25–1.75)", "320.0",
                   "2 epochs in 60 s, best at epoch 2", "0.750–1.250", "0.062", "cd" * 32, "ab" * 32,
                   "l∞, eps 8/255"):  # fmt: skip
        assert number in text, number
    assert "can only overestimate robustness" in text
    assert "not attacked yet" in text


def test_an_attack_on_the_artifact_has_its_row(run):
    found = {"attacks": {"bpda-50": share(0.287, 0.1, 0.6)}, "worst_case": share(0.176, 0.1, 0.4)}
    for bits in (32, 4):
        write_json(run / f"qm-{bits}" / "attack.json", found)
    text = page(run).text
    assert "not attacked yet" not in text
    assert "bpda-50" in text
    assert text.count("28.7 10.0–60.0") == text.count("17.6 10.0–40.0") == 2


def test_headings_are_in_order(run):
    levels = [HEADINGS.index(tag) + 1 for tag, _ in page(run).tags if tag in HEADINGS]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_picture_has_words_and_ids_are_unique(run):
    found = page(run)
    shown = sum(len(width.examples) for width in collect(run).widths)
    assert len(found.every("img")) == 1 + 3 * shown
    assert [image for image in found.every("img") if not image.get("alt", "").strip()] == []
    assert len(found.every("svg")) == 5
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for drawing in found.every("svg"):
        assert drawing["role"] == "img"
        assert set(drawing["aria-labelledby"].split()) <= set(ids)
    assert len([head for head in found.every("th") if "scope" not in head]) == 0


def test_nothing_is_fetched_and_nothing_runs(run):
    text = write(run).read_text()
    found = Parsed(text)
    assert found.every("script") == []
    for _, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    assert not re.search(r"url\(|@import", style)
    policy = found.every("meta")[2]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert len(text.encode()) < 1_000_000


def rename(found):
    """Every attack and every label of a check's limits under a hostile name beside its own."""
    for key in ("attacks", "accuracy", "ci95", "counts"):
        if key in found:
            found[key][HOSTILE] = next(iter(found[key].values()))
    for verdict in found.get("verdicts", ()):
        verdict["reason"] = HOSTILE


def test_names_from_files_are_text(run):
    change(run / "qm-4" / "eval.json", rename)
    change(run / "qm-4" / "check.json", rename)
    change(run / "qm-4" / "artifact" / "manifest.json", lambda found: found.update(classes=[HOSTILE] * 10))
    change(run / "analysis" / "low-pass.json", lambda found: found.update(data=HOSTILE))
    change(run / "bench.json", lambda found: found["results"][0].update(name=HOSTILE))
    text = (run / "recipe.toml").read_text().replace('name = "digits"', f"name = '''{HOSTILE}'''", 1)
    (run / "recipe.toml").write_text(text)
    found = page(run)
    assert found.every("script") == []
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert found.text.count(HOSTILE) > 8
    body = (run / CARD).read_text().split("---\n", 2)[2]  # what stands before it is a quoted string
    assert not re.search(r"(?<!\\)<", body)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("bench.json", "Not timed yet"), ("analysis", "Not analysed yet"), ("qm-4/train.json", "QM-32: 2 epochs"),
     ("qm-4/check.json", "Not checked: QM-4"), ("qm-4/artifact", "no images to show; not exported yet"),
     ("qm-4/eval.json", "not evaluated yet"), ("qm-32/eval.json", "not evaluated yet"),
     ("qm-32/artifact/manifest.json", "QM-32: no images to show; expected an artifact in")],
)  # fmt: skip
def test_what_is_missing_is_said(run, missing, said):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert said in page(run).text


def test_a_run_without_metrics_says_so(run):
    for bits in (32, 4):
        (run / f"qm-{bits}" / "metrics.jsonl").unlink()
    assert "No metrics of training lie in this run" in page(run).text


def test_flags_say_what_to_do(run):
    assert "No doubt was confirmed" in page(run).text
    flag = {"name": "square-wins", "measured": 0.1, "limit": 0.01, "reason": "a way is hidden", "hint": "use queries"}
    change(run / "qm-4" / "eval.json", lambda found: found["flags"].append(flag))
    assert "QM-4: square-wins" in page(run).text
    assert "a way is hidden . What to do: use queries" in page(run).text.replace("hidden.", "hidden .")


def test_the_same_run_gives_the_same_bytes(run):
    first = [(write(run).parent / name).read_bytes() for name in (PAGE, CARD)]
    assert first == [(write(run).parent / name).read_bytes() for name in (PAGE, CARD)]
