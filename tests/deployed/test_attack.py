"""`attack` on files whose worst case is known, on what others made, and from the command line."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from qrobust.__main__ import main
from qrobust.attacks import named, plan
from qrobust.deployed import attack as module
from qrobust.deployed.attack import Settings, SurrogateAttack, attack_deployed, threat_of, with_surrogates
from qrobust.deployed.model import find_images, find_sources, open_deployed
from qrobust.errors import RecipeError
from qrobust.evaluation import journal, read_outcomes
from qrobust.evaluation.sanity import SanityReport
from qrobust.onnx_module import load_onnx

from ..onnx_module.helpers import text_model
from ..test_runtime import EPS, WEIGHT, edit, floats, linear, model_bytes, suite_arrays, worst_case
from .linear import PLAIN, artifact, camera, masked, takes_bytes

SUITE = suite_arrays()
CLEAN = 60 / 64


def exact(eps=EPS):
    """The accuracy that no attack in the ball can go below, and a straight one reaches."""
    x_adv = worst_case(floats(SUITE["x.clean"]), SUITE["y"], WEIGHT, eps)
    return float((linear(WEIGHT)(x_adv).argmax(1) == SUITE["y"]).mean())


def attacked(folder, *names, path=None, **more):
    deployed = open_deployed(folder)
    return attack_deployed(deployed, find_images(deployed), Settings(attacks=names, **more), path)


def flags(result):
    return {flag["name"] for flag in result["flags"]}


def test_the_exact_worst_case_is_reached_on_the_session(tmp_path):
    result = attacked(artifact(tmp_path / "one"), "pgd-10", "cw-inf-10", "square-50")
    shares = {name: found["accuracy"] for name, found in result["attacks"].items()}
    assert result["clean"]["accuracy"] == CLEAN
    assert shares["pgd-10"] == shares["cw-inf-10"] == result["worst_case"]["accuracy"] == exact()
    assert exact() <= shares["square-50"] < CLEAN
    assert flags(result) <= {"one-place"}  # of 16 pixels in a line, four do decide
    assert result["artifact"]["sha256"] == open_deployed(tmp_path / "one").sha256


def test_the_gap_has_three_places_and_the_same_images_in_each(tmp_path):
    folder = artifact(tmp_path / "one")
    first = attacked(folder, "pgd-20", n=32)
    found = first["gap"]
    assert found["in_torch"] == found["replayed"]  # the suite's labels and the session's
    assert set(found["replayed"]) == {"n", "clean", "pgd-20", "worst_case"}
    assert [found[place]["n"] for place in ("in_torch", "replayed", "attacked")] == [32] * 3
    assert found["attacked"]["worst_case"] <= found["replayed"]["worst_case"]

    def before(manifest):
        cells = {"fgsm": {"accuracy": 0.7}, "pgd-20": {"accuracy": 0.1}, "gn": {"accuracy": 0.9}}
        manifest["metrics"]["before"] = {"images": first["images"], "attacks": cells, "worst_case": {"accuracy": 0.1}}

    edit(folder, before)
    assert attacked(folder, "pgd-20", "fgsm", n=32)["gap"]["in_torch"] == {"fgsm": 0.7, **found["in_torch"]}
    assert "fgsm" not in attacked(folder, "fgsm", n=16)["gap"]["in_torch"]  # which was measured on others


@pytest.mark.parametrize("before", [{}, {"clean": 3, "attacks": [1], "worst_case": {"accuracy": "high"}}])
def test_of_a_manifest_without_numbers_no_number_is_taken(tmp_path, before):
    folder = artifact(tmp_path / "one")
    first = attacked(folder, "pgd-2")
    edit(folder, lambda manifest: manifest["metrics"].update(before={**before, "images": first["images"]}))
    assert attacked(folder, "pgd-2")["gap"] == first["gap"]


def test_a_gradient_that_misleads_in_one_form_is_passed_by_in_another(tmp_path):
    folder = artifact(tmp_path / "one", masked())
    blind = attacked(folder, "pgd-10", forms=("identity",))
    seeing = attacked(folder, "pgd-10")
    assert blind["worst_case"]["accuracy"] == CLEAN
    assert seeing["worst_case"]["accuracy"] == exact()
    assert seeing["attacks"]["pgd-10"]["settings"]["backward"] == ["identity", "clipped", "soft"]


def test_the_cascade_takes_backward_forms_in_turns_and_the_session_judges(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "check_file_sanity", lambda _: SanityReport({}, []))
    folder = artifact(tmp_path / "one", masked())
    result = attacked(folder, "strong:budget=100")["attacks"]["strong:budget=100"]
    assert result["accuracy"] == exact()
    assert result["settings"]["backward"] == ["clipped", "soft", "identity"]
    assert [part["part"] for part in result["parts"]] == ["margin-30"]
    # Led astray by gradients, Square alone gets somewhere.
    blind = attacked(folder, "strong:quick", forms=("identity",))["attacks"]["strong:quick"]
    by_gradient, _, by_square = (part["broken"] for part in blind["parts"])
    assert by_gradient < by_square
    plain = attacked(artifact(tmp_path / "two"), "strong:budget=100")["attacks"]["strong:budget=100"]
    assert (plain["accuracy"], plain["settings"]["backward"]) == (exact(), ["identity"])


def test_square_through_the_session_beats_a_blind_attack_and_says_so(tmp_path):
    result = attacked(artifact(tmp_path / "one", masked()), "pgd-10", "square-50", forms=("identity",))
    assert "square-wins" in flags(result)
    assert result["worst_case"]["accuracy"] == result["attacks"]["square-50"]["accuracy"]


def test_a_module_that_lies_is_not_believed(tmp_path):
    deployed = open_deployed(artifact(tmp_path / "one"))
    liar = replace(deployed, module=load_onnx(model_bytes(-WEIGHT), output="logits"))
    result = attack_deployed(liar, find_images(liar), Settings(attacks=("pgd-10",)))
    assert result["attacks"]["pgd-10"]["accuracy"] == CLEAN  # its gradients lead away from every other class
    assert "module-differs" in flags(result)


def test_transfer_beats_a_blind_attack_and_says_so(tmp_path):
    source = artifact(tmp_path / "run" / "qm-32" / "artifact")
    blind = artifact(tmp_path / "run" / "qm-4" / "artifact", masked())
    deployed = open_deployed(blind)
    settings = Settings(attacks=("pgd-10", "transfer-10"), forms=("identity",), sources=find_sources(deployed))
    result = attack_deployed(deployed, find_images(deployed), settings)
    assert result["attacks"]["transfer-10"]["accuracy"] == exact()
    assert {"transfer-wins", "last-step"} <= flags(result)
    assert list(result["attacks"]["transfer-10"]["settings"]["sources"].values()) == [open_deployed(source).sha256]


@pytest.mark.parametrize("steps", [16, 16.7])
def test_bytes_stay_inside_the_ball_after_rounding(tmp_path, steps):
    folder = artifact(tmp_path / "one", camera(), takes_bytes)
    deployed = open_deployed(folder)
    assert threat_of(deployed, steps / 255).eps == pytest.approx(16 / 255)
    found = attacked(folder, "pgd-10", eps=steps / 255)
    assert found["attacks"]["pgd-10"]["accuracy"] == exact(16 / 255)


def test_autoattack_takes_its_gradients_from_each_form_and_square_from_the_session(tmp_path):
    deployed = open_deployed(artifact(tmp_path / "one", masked()))
    served = deployed.served()
    found = with_surrogates(
        named("autoattack", threat_of(deployed)), deployed, served, forms=("identity", "soft"), sources=()
    )
    assert found.parts == ("identity apgd-ce", "identity apgd-t", "identity fab-t",
                           "soft apgd-ce", "soft apgd-t", "soft fab-t", "session square")  # fmt: skip
    assert found.surrogates["session square"].network is served
    with pytest.raises(RecipeError, match="expected a file to transfer transfer-10 from, got none"):
        with_surrogates(named("transfer-10", threat_of(deployed)), deployed, served, forms=("soft",), sources=())


def test_the_default_is_strong_with_the_suites_attacks_and_what_must_not_beat_them(tmp_path):
    deployed = open_deployed(artifact(tmp_path / "one"))
    assert module.default_attacks(deployed) == ("strong", "pgd-20", "square-500")
    assert module.default_attacks(deployed, (deployed,)) == ("strong", "pgd-20", "square-500", "transfer-20:keep=best")
    assert module.default_attacks(replace(deployed, artifact=None)) == ("strong", "square-500")


class Stopped(Exception):
    pass


def test_a_stopped_attack_goes_on_where_it_was(tmp_path, monkeypatch):
    folder, names = artifact(tmp_path / "one", masked()), ("pgd-3", "square-20")
    monkeypatch.setattr(module, "MAX_VALUES", 16 * 16)
    monkeypatch.setattr(journal, "SAVE_EVERY", 0)
    whole, part = tmp_path / "whole.json", tmp_path / "part.json"
    calls = []

    def counted(real, most):
        def run(self, *arguments):
            calls.append(self.name)
            if len(calls) > most:
                raise Stopped
            return real(self, *arguments)

        return run

    real = SurrogateAttack.run
    monkeypatch.setattr(module.SurrogateAttack, "run", counted(real, 10**6))
    attacked(folder, *names, path=whole)
    total = len(calls)
    calls.clear()
    monkeypatch.setattr(module.SurrogateAttack, "run", counted(real, 7))
    with pytest.raises(Stopped):
        attacked(folder, *names, path=part)
    assert part.with_suffix(".partial.npz").exists()
    calls.clear()
    monkeypatch.setattr(module.SurrogateAttack, "run", counted(real, 10**6))
    attacked(folder, *names, path=part)
    assert len(calls) == total - 7
    (_, first), (_, second) = read_outcomes(whole), read_outcomes(part)
    assert all(np.array_equal(first[name], second[name]) for name in ("clean", *names))
    assert not list(tmp_path.glob("*.partial.npz"))


# The command line


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["qrobust", "attack", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_the_verb_prints_the_gap_and_writes_the_result(here, tmp_path):
    folder = artifact(tmp_path / "one", masked())
    code, out, errors = here(folder, "--attacks", "pgd-10, square-20", "-n", "40", "--json", "a.json")
    assert (code, errors) == (0, "")
    assert all(word in out for word in ("in torch", "replayed, n=40", "attacked, n=40", "worst case", "pgd-10"))
    result, masks = read_outcomes(tmp_path / "a.json")
    assert result["n"] == len(masks["pgd-10"]) == 40
    assert {"gap", "flags", "sanity_checks", "artifact", "versions", "worst_case", "threat"} <= set(result)


def test_by_default_strong_says_beforehand_what_it_takes_and_comes_first(here, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "FLOAT", plan.FLOAT[:2])
    folder = artifact(tmp_path / "one")
    code, out, errors = here(folder, "-n", "20", "--json", "a.json")
    assert code == 0
    assert re.match(
        r"strong: \d+ forward and \d+ gradient passes an image that holds, 0:00:0\d if all \d+ do\n", errors
    )
    result, masks = read_outcomes(tmp_path / "a.json")
    assert [*masks] == ["clean", "strong", "pgd-20", "square-500"]
    assert result["worst_case"]["accuracy"] == masks["strong"].mean()
    assert [row.split()[1] for row in out.splitlines() if row.startswith("│")][:3] == ["clean", "worst", "strong"]


def test_flags_are_printed(here, tmp_path):
    folder = artifact(tmp_path / "one", model_bytes(np.roll(WEIGHT, 3)))
    code, out, _ = here(folder, "--attacks", "pgd-2")
    assert code == 0
    assert "linear flag replay-differs:" in out


def test_a_bare_file_with_images_of_its_own(here, tmp_path):
    (tmp_path / "bare.onnx").write_bytes(PLAIN)
    np.savez(tmp_path / "images.npz", x=SUITE["x.clean"], y=SUITE["y"])
    arguments = ("bare.onnx", "--data", "images.npz", "--eps", "16/255", "--attacks", "pgd-10", "--json", "a.json")
    code, out, _ = here(*arguments)
    assert (code, "bare: linf, eps 16/255" in out) == (0, True)
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["attacks"]["pgd-10"]["accuracy"] == exact(16 / 255)
    assert result["gap"]["in_torch"] == result["gap"]["replayed"] == {}


BAD = {
    "no artifact": (["nowhere"], "expected an artifact"),
    "no images": (["bare.onnx"], "expected images for bare.onnx, got none"),
    "no such images": (["bare.onnx", "--data", "none.npz"], "expected arrays x and y in none.npz"),
    "no such set": (["bare.onnx", "--data", "digit"], "did you mean 'digits'?"),
    "labels of another task": (["bare.onnx", "--data", "digits"], "expected labels in [0, 1], got 9"),
    "no eps": (["one", "--eps", "eight"], "expected --eps as 8/255, got 'eight'"),
    "eps of bytes": (["one", "--eps", "8"], "write 8/255, not 8"),
    "unknown attack": (["one", "--attacks", "pdg-3"], "did you mean"),
    "nothing to transfer from": (["one", "--attacks", "transfer-3"], "name one by --transfer"),
    "a source that is none": (["one", "--transfer", "empty"], "expected an artifact or a run with artifacts"),
    "too many images": (["one", "-n", "65", "--attacks", "pgd-2"], "expected n in [1, 64]"),
    "masks over the result": (["one", "--json", "a.npz"], "expected a file that ends in .json"),
    "an operator that is not covered": (["odd.onnx", "--data", "x.npz"], "expected operators that OnnxModule computes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_and_exit_code_2(name, here, tmp_path):
    arguments, expected = BAD[name]
    (tmp_path / "bare.onnx").write_bytes(PLAIN)
    (tmp_path / "odd.onnx").write_bytes(text_model("a = Det (x)").SerializeToString())
    (tmp_path / "empty").mkdir()
    artifact(tmp_path / "one")
    code, out, errors = here(*arguments)
    assert (code, out) == (2, "")
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: ")
    assert expected in line


def test_a_run_of_the_toolkit(small_run, here, tmp_path):
    folder = small_run / "qm-2" / "artifact"
    code, *_ = here(folder, "--attacks", "pgd-5,cw-inf-5,transfer-5,square-20", "-n", "40", "--json", "a.json")
    assert code == 0
    result = json.loads((tmp_path / "a.json").read_text())
    found = result["gap"]
    assert [found[place]["n"] for place in ("in_torch", "replayed", "attacked")] == [40] * 3
    assert abs(found["in_torch"]["pgd-5"] - found["replayed"]["pgd-5"]) <= 1 / 40  # the same images in both
    assert found["attacked"]["worst_case"] <= found["replayed"]["worst_case"] + 0.05
    assert result["sanity_checks"]["module-differs"] <= 0.01
    assert result["sanity_checks"]["level-differs"] <= 0.01
    assert "digits-qm-32" in str(result["attacks"]["transfer-5"]["settings"]["sources"])
