"""The page as a browser's parser reads it, and `qrobust report RUN` as a user calls it."""

import configparser
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qrobust.report
from qrobust import recipe
from qrobust.errors import RunError
from qrobust.headline import headlines
from qrobust.report import CARD, PAGE, pictures, write
from qrobust.report.collect import collect
from qrobust.storage import write_json

from ..test_runtime import edit
from .conftest import HEADINGS, Parsed, change, evaluation, share

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
                   "linf, eps 8/255"):  # fmt: skip
        assert number in text, number
    assert "can only overestimate robustness" in text
    assert "not attacked yet" in text


def test_the_column_of_the_worst_case_stands_out(lean):
    text = write(lean).read_text()
    assert re.findall(r'<th scope="col" class="worst">([^<]+)<', text) == ["worst case"]
    assert re.findall(r'<td class="worst">([\d.]+)<', text) == ["33.3", "33.3", "41.1", "33.3", "41.1", "33.3"]


def test_what_papers_report_is_marked(lean):
    """And what a cascade's parts found is shown."""
    part = {"part": "margin-30", "tried": 10, "broken": 4, "forward_passes": 4310, "gradient_passes": 300, "seconds": 1}
    change(lean / "qm-4" / "eval.json", lambda found: found["attacks"]["pgd-20"].update(parts=[part]))
    text = page(lean).text
    assert "worst case fgsm square pgd-20 last step gn" in text
    assert "QM-4 pgd-20, in torch margin-30 10 4 4,310 300 1.0" in text
    assert "| worst case | fgsm | square | pgd-20 (last step) | gn |" in (lean / CARD).read_text()


def test_one_epoch_is_no_epochs(run):
    change(run / "qm-4" / "train.json", lambda found: found.update(epochs=1))
    assert "QM-4: 1 epoch in 60 s" in page(run).text


@pytest.mark.parametrize(
    ("settings", "start"),
    [(["quant.start_from=previous"], "the one before it"), (["quant.start_from=float"], "the float network"),
     (["quant.start_from=initial"], "the initial weights"),
     (["quant.epochs=0", "quant.fat=none", "quant.ptq.adaround=0"], "the float network")],
)  # fmt: skip
def test_what_a_width_started_from_is_the_recipe_s(run, settings, start):
    (run / "recipe.toml").write_text(recipe.dump(recipe.load("digits", ["bits=[32,4]", *settings])))
    assert f"A quantised network starts from {start}." in page(run).text


def test_an_attack_on_the_artifact_has_its_row(lean):
    found = {"attacks": {"bpda-50": share(0.287, 0.1, 0.6)}, "worst_case": share(0.176, 0.1, 0.4)}
    for bits in (32, 4):
        write_json(lean / f"qm-{bits}" / "attack.json", found)
    text = page(lean).text
    assert "not attacked yet" not in text
    assert "bpda-50" in text
    assert text.count("28.7 10.0–60.0") == text.count("17.6 10.0–40.0") == 2


def test_an_example_names_the_part_that_found_it(lean, monkeypatch):
    monkeypatch.setattr(pictures, "_part", lambda *_: "margin-30")
    assert "✗ , found by margin-30" in page(lean).text


def test_headings_are_in_order(run):
    levels = [HEADINGS.index(tag) + 1 for tag, _ in page(run).tags if tag in HEADINGS]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_picture_has_words_and_ids_are_unique(run):
    found = page(run)
    shown = sum(len(width.examples) for width in collect(run).widths)
    assert len(found.every("img")) == 3 * shown
    assert [image for image in found.every("img") if not image.get("alt", "").strip()] == []
    assert len(found.every("svg")) == 5 + 2 + 1  # two widths by place, a figure
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


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("missing", "message"),
    [("bench.json", "Not timed yet"), ("analysis", "Not analysed yet"), ("qm-4/train.json", "QM-32: 2 epochs")],
)  # fmt: skip
def test_a_missing_stage_is_named(run, missing, message):
    remove(run / missing)
    assert message in page(run).text


@pytest.mark.parametrize(
    ("missing", "message"),
    [("qm-4/check.json", "Export not checked: QM-4"), ("qm-4/artifact", "no images to show; not exported yet"),
     ("qm-4/eval.json", "not evaluated yet"), ("qm-32/eval.json", "not evaluated yet"),
     ("qm-32/artifact/manifest.json", "QM-32: no images to show; expected an artifact in")],
)  # fmt: skip
def test_a_missing_result_of_a_network_is_named(lean, missing, message):
    remove(lean / missing)
    assert message in page(lean).text


def test_a_run_without_metrics_says_so(run):
    for bits in (32, 4):
        (run / f"qm-{bits}" / "metrics.jsonl").unlink()
    assert "No metrics of training lie in this run" in page(run).text


def test_classes_by_name_the_least_robust_first(lean):
    assert "By class" not in page(lean).text  # of an older evaluation
    per_class = {"n": [5, 0, 7], "clean": [1.0, None, 0.857], "worst_case": [0.6, None, 0.143]}
    change(lean / "qm-4" / "eval.json", lambda found: found.update(per_class=per_class))
    change(
        lean / "qm-4" / "artifact" / "manifest.json",
        lambda found: found.update(classes=["<ant>", "bee", "cat", *"defghij"]),
    )
    assert "QM-4 cat 7 85.7 14.3 QM-4 <ant> 5 100.0 60.0" in page(lean).text
    shutil.rmtree(lean / "qm-4" / "artifact")
    assert "QM-4 2 7 85.7 14.3 QM-4 0 5 100.0 60.0" in page(lean).text


def test_classes_that_do_not_agree_are_refused(lean):
    per_class = {"n": [5, 1], "clean": [1.0, None], "worst_case": [0.6, 1.0]}
    change(lean / "qm-4" / "eval.json", lambda found: found.update(per_class=per_class))
    with pytest.raises(RunError, match="got per_class: expected a share for every class with images, got others"):
        write(lean)


def test_code_is_named_without_its_folder(lean):
    """A card is published."""
    text = (lean / "recipe.toml").read_text().replace('name = "digits"\n', 'name = "/home/me/mine.py:make"\n', 2)
    (lean / "recipe.toml").write_text(text.replace("/home/me/mine.py:make", "tiny", 1))
    assert "resnet8 on mine.py:make, attacked in" in page(lean).text
    card = (lean / CARD).read_text()
    assert "mine.py:make" in card
    assert "/home/me" not in card


def test_flags_say_what_to_do(lean):
    assert "No sanity check raised a flag" in page(lean).text
    flag = {"name": "square-wins", "measured": 0.1, "limit": 0.01, "reason": "a way is hidden", "hint": "use queries"}
    change(lean / "qm-4" / "eval.json", lambda found: found["flags"].append(flag))
    assert "QM-4: square-wins" in page(lean).text
    assert "a way is hidden . What to do: use queries" in page(lean).text.replace("hidden.", "hidden .")


def test_the_same_run_gives_the_same_bytes(run):
    first = [(write(run).parent / name).read_bytes() for name in (PAGE, CARD)]
    assert first == [(write(run).parent / name).read_bytes() for name in (PAGE, CARD)]


ROOT = Path(qrobust.report.__file__).resolve().parent.parent.parent
FINISHED = ROOT / "tests" / "fixtures" / "0.1.0" / "run"


def test_both_files_lie_where_they_should(report, lean, tmp_path):
    assert report(lean) == (0, f"report: {lean / 'report.html'}\n", "")
    assert (lean / "model-card.md").is_file()
    code, out, _ = report(lean, "--out", tmp_path / "deep" / "page.html")
    assert (code, out) == (0, f"report: {tmp_path}/deep/page.html\n")
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"page.html", "model-card.md"}


def test_a_finished_run_is_shown_with_the_numbers_of_its_tables(tmp_path):
    folder = shutil.copytree(FINISHED, tmp_path / "run")
    found = json.loads((folder / "report.json").read_text())
    text = Parsed(write(folder).read_text()).text
    for width in found["widths"]:
        for cell in (width["before"]["worst_case"], width["before"]["attacks"]["pgd-10"]):
            low, high = cell["ci95"]
            assert f"{100 * cell['accuracy']:.1f} {100 * low:.1f}–{100 * high:.1f}" in text
    for one in headlines(found["widths"]):
        assert f"{one.network} export held; " in text
        assert f"{100 * one.number.accuracy:.1f} % (n = {one.number.n}" in text


@pytest.mark.parametrize(
    ("break_it", "message"),
    [(lambda run: (run / "recipe.toml").unlink(), "expected a run folder with recipe.toml, got "),
     (lambda run: [(run / f"qm-{bits}" / "eval.json").unlink() for bits in (32, 4)], "without one; continue it"),
     (lambda run: (run / "bench.json").write_text("nonsense"), "expected a JSON file at "),
     (lambda run: change(run / "qm-4" / "eval.json", lambda found: {"n": 3}), "got clean: Field required"),
     (lambda run: change(run / "bench.json", lambda found: {"results": [{}]}), "got reference: Field required")],
)  # fmt: skip
def test_bad_input_is_one_line(run, break_it, message):
    before = sorted(run.rglob("*"))
    break_it(run)
    with pytest.raises(RunError, match=message) as caught:
        write(run)
    assert "\n" not in str(caught.value)
    assert not [path for path in run.rglob("*") if path not in before]  # nothing was begun


@pytest.mark.parametrize("name", ["bench", "qm-4/eval", "qm-4/check", "qm-4/train", "qm-4/attack"])
def test_a_damaged_result_can_be_removed_as_the_message_says(lean, name):
    path = lean / f"{name}.json"
    path.write_text('{"n": 1}')
    with pytest.raises(RunError, match=rf"{name}.json, got .*; remove it, and qrobust run makes it anew"):
        write(lean)
    path.unlink()
    write(lean)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [("check", "passed", True, "passed if all of its limits"), ("check", "passed", "x", "a valid boolean, got 'x'"),
     ("check", "worst_case", 1.5, "less than or equal to 1, got 1.5"), ("eval", "n", True, "a valid integer, got True"),
     ("eval", "clean", {"accuracy": 0.9, "ci95": [0.1, 0.2]}, "inside its interval"),
     ("check", "ci95", {}, "an interval and a count for each accuracy")],
)  # fmt: skip
def test_a_forged_result_is_refused(run, name, key, value, message):
    path = run / "qm-4" / f"{name}.json"
    change(path, lambda found: found.update({key: value}))
    with pytest.raises(RunError, match=message) as caught:
        write(run)
    assert str(caught.value).startswith(f"expected a whole result in {path}, got ")


def test_an_output_that_is_no_page_is_refused(report, run, tmp_path):
    code, _, errors = report(run, "--out", run / "bench.json")
    assert code == 2
    assert errors == f"error: expected a file that ends in .html for --out, got {run / 'bench.json'}\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="expected a writable place"):
        write(run, tmp_path / "file" / "page.html")


def test_neither_torch_nor_a_runtime_is_loaded(run):
    program = "import sys; from pathlib import Path; from qrobust.report import write; write(Path(sys.argv[1]))\n"
    program += "print({'torch', 'onnx', 'onnxruntime'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program, str(run)], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_templates_are_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folder = ROOT / "qrobust" / "report"
    patterns = setup["options.package_data"]["qrobust.report"].split(", ")
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    assert packed == {path for path in folder.iterdir() if path.suffix not in (".py", "") and path.is_file()}


def test_an_artifact_of_a_run_is_shown_with_what_lies_beside_it(lean, tmp_path):
    place = lean / "qm-4" / "artifact"
    assert "not evaluated" not in write(place, tmp_path / "a.html").read_text()  # of a manifest without an evaluation
    edit(place, lambda manifest: manifest["metrics"].update(before=evaluation(4)))
    text = Parsed(write(place, tmp_path / "a.html").read_text()).text
    assert "square_gap ✗ broken 0.0766 0.02" in text
    assert "41.1 19.8–68.1" in text  # of the worst case in torch
    assert not (tmp_path / "model-card.md").exists()
    assert not (lean / "qm-4" / "artifact" / "report.html").exists()
