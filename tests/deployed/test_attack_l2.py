"""`attack` on an artifact of an l2 threat: its ball, its judge, and the attacks that there are in it."""

import numpy as np
import pytest
import torch

from qrobust.deployed import attack as module
from qrobust.deployed.attack import Settings, attack_deployed, threat_of
from qrobust.deployed.model import Served, find_images, open_deployed
from qrobust.evaluation.sanity import SanityReport
from qrobust.runs.evaluation import Request
from qrobust.runs.run import evaluate_folder
from qrobust.threat import Threat

from ..test_runtime import LOGITS, WEIGHT, floats, suite_arrays
from .linear import PLAIN, artifact, camera, takes_bytes

SUITE = suite_arrays()
FORMS = {"floats": (PLAIN, lambda manifest: None), "bytes": (camera(), takes_bytes)}


def deployed(folder, form, eps):
    opened = open_deployed(artifact(folder / "one", *FORMS[form]))
    opened.artifact.manifest["threat"] = {"norm": "l2", "eps": eps}
    opened.artifact.eps = eps
    return opened


def exact(eps):
    """The accuracy that no l2 attack can go below: the logits' lead shrinks by 2 eps ‖w‖ at most."""
    logits, rows = LOGITS(floats(SUITE["x.clean"])), np.arange(64)
    return float((logits[rows, SUITE["y"]] - logits[rows, 1 - SUITE["y"]] > 2 * eps * np.linalg.norm(WEIGHT)).mean())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("eps", [0.1, 0.3])
def test_the_exact_worst_case_is_reached(tmp_path, form, eps):
    opened = deployed(tmp_path, form, eps)
    result = attack_deployed(opened, find_images(opened), Settings(attacks=("pgd-20", "cw-inf-20")))
    assert result["threat"] == {"norm": "l2", "eps": eps}
    one = 1 / 64 if form == "bytes" else 0  # whole steps end a little inside the ball
    assert exact(eps) <= result["worst_case"]["accuracy"] <= exact(eps) + one < exact(0)


@pytest.mark.parametrize("form", FORMS)
def test_the_cascade_reaches_it_too(tmp_path, form, monkeypatch):
    """Where bytes are rounded inside the ball, it believes no point that is not: parts break what the verdicts have."""
    monkeypatch.setattr(module, "check_file_sanity", lambda _: SanityReport({}, []))
    opened = deployed(tmp_path, form, 0.3)
    result = attack_deployed(opened, find_images(opened), Settings(attacks=("strong:quick",)))
    found, one = result["attacks"]["strong:quick"], 1 / 64 if form == "bytes" else 0
    assert exact(0.3) <= found["accuracy"] <= exact(0.3) + one < exact(0)
    assert sum(part["broken"] for part in found["parts"]) == 64 * (result["clean"]["accuracy"] - found["accuracy"])


def test_a_session_of_bytes_is_judged_inside_the_ball(tmp_path, monkeypatch):
    eps, judged = 0.1, []
    opened = deployed(tmp_path, "bytes", eps)
    images, forward = find_images(opened), Served.forward

    def watched(self, x):
        judged.append((x * 255).round())
        return forward(self, x)

    monkeypatch.setattr(Served, "forward", watched)
    monkeypatch.setattr(module, "check_file_sanity", lambda _: SanityReport({}, []))
    monkeypatch.setattr(module, "gap", lambda _: {})
    attack_deployed(opened, images, Settings(attacks=("pgd-1:step_size=0.1",), forms=("identity",)))
    right = LOGITS(floats(SUITE["x.clean"])).argmax(1) == SUITE["y"]
    change = (judged[-1] - images.x[torch.from_numpy(right)]).flatten(1)
    assert change.abs().sum() > 0
    assert (change.square().sum(1) <= (255 * eps) ** 2).all()


def test_the_threat_is_the_artifacts_and_eps_may_be_another(tmp_path):
    for form in FORMS:
        opened = deployed(tmp_path / form, form, 0.25)
        assert threat_of(opened) == Threat("l2", 0.25)
        assert threat_of(opened, 0.1) == Threat("l2", 0.1)


def test_square_attacks_in_l2_too(tmp_path):
    opened = deployed(tmp_path, "floats", 0.25)
    result = attack_deployed(opened, find_images(opened), Settings(attacks=("square-50",)))
    assert result["attacks"]["square-50"]["accuracy"] < result["clean"]["accuracy"]


def test_two_classes_are_attacked_by_apgd_too(tmp_path):
    opened = open_deployed(artifact(tmp_path / "one"))
    result = attack_deployed(opened, find_images(opened), Settings(attacks=("pgd-2", "apgd-t")))
    assert set(result["attacks"]) == {"pgd-2", "apgd-t"}


def test_eval_of_an_artifact_knows_its_norm(tmp_path, monkeypatch):
    opened = deployed(tmp_path, "floats", 0.25)
    monkeypatch.setattr(module.Artifact, "load", lambda _: opened.artifact)
    (result,) = evaluate_folder(tmp_path / "one", "", Request()).values()
    assert result["threat"] == {"norm": "l2", "eps": 0.25}
    assert set(result["attacks"]) == {"gn", "square-500"}
