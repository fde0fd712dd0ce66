"""The model card as a hub reads it."""

from qrobust.report import CARD, write
from qrobust.report.page import plain

from ..conftest import evidence
from .conftest import change

evidence("pyyaml")
import yaml  # noqa: E402

VERDICT = "- **QM-4: export broken (square\\_gap); under weak attacks 33.3 % (n = 12, float model 33.3 %).** Lowest of"


def card(run):
    write(run)
    _, front, text = (run / CARD).read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_matter_holds_every_number(lean):
    front, _ = card(lean)
    assert "license" not in front  # the user's to choose
    assert (front["datasets"], front["metrics"], front["pipeline_tag"]) == (
        ["digits"],
        ["accuracy"],
        "image-classification",
    )
    first, second = front["model-index"]
    assert (first["name"], second["name"]) == ("digits-qm-32", "digits-qm-4")
    (result,) = second["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"]["type"] == "digits"
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values["pgd-20, in torch"] == 0.511
    assert values["square, replayed on the runtime"] == 0.623
    assert values["worst case, in torch"] == 0.411
    assert values["under attack, lowest of any place (square, replayed), n = 12"] == 1 / 3


def test_the_text_says_what_the_numbers_are_worth(lean):
    _, text = card(lean)
    for part in ("## Intended use", "## How it was trained", "linf, eps 8/255", "95 % Wilson", "only overestimate",
                 "Nothing is certified", "not attacked yet", VERDICT):  # fmt: skip
        assert part in text, part
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 * 3
    assert len({line.count("|") - line.count("\\|") for line in table}) == 1
    numbers = "91.1 (61.1–98.5) | 41.1 (19.8–68.1) | – | – | 51.1 (25.4–74.6) | 81.1\\* (55.2–95.3)"
    assert f"| QM-4 | in torch | 12 | {numbers} |" in text


def test_names_stay_in_their_place(lean):
    name = 'a | b\n# c <b> [d](http://e) "f"'
    change(lean / "qm-4" / "eval.json", lambda found: found["attacks"].update({name: found["attacks"]["gn"]}))
    front, text = card(lean)
    assert f"{name}, in torch" in [metric["name"] for metric in front["model-index"][1]["results"][0]["metrics"]]
    assert 'a \\| b \\# c \\<b\\> \\[d\\](http://e) "f"' in text
    assert plain("x_y*\n z\x1b") == "x\\_y\\* z?"


def test_what_a_training_left_is_text(lean):
    change(lean / "qm-4" / "train.json", lambda found: found.update(data_fingerprint="<script>\n# x [y](z) 😀"))
    change(lean / "qm-4" / "eval.json", lambda found: found["attacks"].update({"😀\x1b": found["attacks"]["gn"]}))
    front, text = card(lean)
    assert "data \\<script\\> \\# x \\[y\\](z) 😀." in text
    assert any(metric["name"] == "😀\x1b, in torch" for metric in front["model-index"][1]["results"][0]["metrics"])
