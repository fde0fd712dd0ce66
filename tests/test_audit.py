"""The audit of networks that are claimed to be robust: its units, what follows from them, and the rebuilt networks."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from qrobust.attacks import StrongConfig
from qrobust.data import Images
from qrobust.evaluation import CheckedModel
from qrobust.quant import QuantConfig, quantize, quantizers
from qrobust.storage import read_json
from qrobust.threat import Threat

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benches")]

import audit  # noqa: E402
import tables  # noqa: E402
from audit_networks import Built, Mean, RandomPrecision, Threshold, Workshop, _insert, _turned  # noqa: E402

N = 12


def network(seed=0, channels=2):
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(), nn.Linear(channels * 36, 10)
    return nn.Sequential(*layers).eval()


def images():
    x = torch.randint(256, (N, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.no_grad():
        return Images(x, network()(x / 255).argmax(1))


@pytest.fixture
def small(monkeypatch):
    """Two networks and quick attacks instead of the audit's; what was built."""
    made = []

    def one(workshop):
        made.append(workshop)
        return Built(network(), images(), network(1), file=Path("one"))

    drawn, claim = (network(), network(1)), "random precision"
    subjects = {
        "W2A2": audit.Subject("activation bits", one, 20, "pgd-2"),
        claim: audit.Subject(claim, lambda _: Built(RandomPrecision(drawn), images(), network(), drawn), 20, "pgd-2"),
    }
    quick = {"LAST": "pgd-2", "TRANSFER": "transfer-2", "STRONG": "strong:budget=40", "AUTO": "apgd-ce"}
    strong, config = audit.strong, StrongConfig(budget=40)
    monkeypatch.setattr(audit, "strong", lambda *given, **more: strong(*given, config=config, **more))
    monkeypatch.setitem(audit.CHECKS, audit.ALL, audit.CHECKS[audit.DEFAULT])
    for name, value in {"FIRST": subjects, "THEN": {}, "SUBJECTS": subjects, **quick}.items():
        monkeypatch.setattr(audit, name, value)
    monkeypatch.setattr(tables, "AUDITED", ("clean", *quick.values(), audit.KNOWN, "worst case"))
    return made


def test_every_unit_comes_once_and_autoattack_last():
    units = list(audit.plan())
    assert set(Counter(units).values()) == {1}
    last = [attack for _, attack in units].index(audit.AUTO)
    assert [attack for _, attack in units[last:]] == [audit.AUTO] * len(audit.SUBJECTS)
    for name, subject in audit.SUBJECTS.items():
        attacks = [attack for one, attack in units if one == name]
        assert {subject.printed, audit.STRONG, *audit.CHECKS} < set(attacks)
        assert attacks.index(audit.STRONG) < attacks.index(audit.DEFAULT)  # which reads it
    assert {name for name, _ in audit.plan(("float",))} == {"float"}


def test_a_stopped_audit_goes_on_and_tells_what_it_has(small, tmp_path, monkeypatch):
    checked = audit.Audit.checked

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(audit.Audit, "checked", stop)
    with pytest.raises(KeyboardInterrupt):
        audit.Audit(Workshop(tmp_path), n=N).run()
    half = read_json(tmp_path / "audit.json")
    assert set(half["units"]) == {"W2A2"}
    assert half["rows"][0]["overestimate"] is not None
    assert half["rows"][1][audit.STRONG] is None
    monkeypatch.setattr(audit.Audit, "checked", checked)
    copy = tmp_path / "copy.json"
    audit.Audit(Workshop(tmp_path), n=N, copies=copy).run()
    found = read_json(copy)
    assert found == read_json(tmp_path / "audit.json")
    assert found["units"]["W2A2"][audit.STRONG] == half["units"]["W2A2"][audit.STRONG]
    assert {(name, attack) for name, unit in found["units"].items() for attack in unit if attack != "clean"} == set(
        audit.plan()
    )
    row, drawn = found["rows"]
    masks = {name: audit.mask_of(found["units"]["W2A2"][name]) for name in ("pgd-2", audit.STRONG)}
    assert row["overestimate"] == pytest.approx(masks["pgd-2"].mean() - masks[audit.STRONG].mean())
    assert row["worst case"]["accuracy"] <= row[audit.STRONG]["accuracy"] < row["clean"]["accuracy"] == 1
    assert drawn["default checks"][0] == "random-logits"
    assert found["limits"]["last-step"] == 0.06
    before = len(small)
    audit.Audit(Workshop(tmp_path), n=N).run()
    assert len(small) == before  # nothing is left to do
    text = list(tables.audited(half))
    assert "| W2A2 (activation bits) | 20/255 | 100.0 (" in text[0]
    assert tables.NOT_YET in text[0]
    assert tables.NOT_YET in text[1]
    assert "`random-logits`" in list(tables.audited(found))[1]


def test_of_each_image_one_precision_is_drawn_anew():
    nets, x = (network(), network(1), network(2)), images().x / 255
    each = torch.stack([net(x) for net in nets])
    model = RandomPrecision(nets)
    seen = set()
    for _ in range(3):
        same = torch.isclose(model(x), each, atol=1e-5).all(2)
        assert (same.sum(0) == 1).all()
        seen.add(tuple(same.int().argmax(0).tolist()))
    assert len(seen) == 3
    torch.testing.assert_close(Mean(nets)(x), each.mean(0))


def test_a_threshold_leaves_what_is_far_from_the_mean():
    one = Threshold(1)
    one.mean.fill_(1.0)
    one.deviation.fill_(2.0)
    one.alpha.fill_(0.5)
    x = torch.tensor([-1.0, 0.5, 1.9, 2.1]).view(1, 1, 2, 2).requires_grad_(True)
    assert one(x).flatten().tolist() == pytest.approx([-1.0, 1.0, 1.0, 2.1])
    one(x).sum().backward()
    assert x.grad.flatten().tolist() == [1, 0, 0, 1]


def test_thresholds_stand_before_every_relu_with_its_statistics():
    model, x = network(), images().x / 255
    before = model(x)
    read = model[:2](x)
    (one,) = _insert(model, x)
    torch.testing.assert_close(one.mean, read.mean((0, 2, 3), keepdim=True))
    torch.testing.assert_close(one.deviation, read.std((0, 2, 3), keepdim=True))
    torch.testing.assert_close(model(x), before)  # alpha 0
    one.alpha.fill_(1e6)
    assert (model(x) == model(x)[:1]).all()  # nothing but means is left


def test_the_penalty_turns_the_gradient_of_a_quantised_network():
    source, given = network(), images()
    x, y = given.x / 255, given.y
    model = quantize(source, QuantConfig(4, fat="none"), calibration=x)
    for quantizer in quantizers(model):
        quantizer.clip.requires_grad_(False)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], 0.1)
    cosines = []
    for _ in range(12):
        optimizer.zero_grad()
        gradients = [CheckedModel(net, given, Threat("linf", 0.1), n=N).gradient.flatten(1) for net in (model, source)]
        cosines.append(float(nn.functional.cosine_similarity(*gradients, dim=1).mean()))
        _turned(model, source, x, y).backward()
        optimizer.step()
    assert cosines[0] > 0.3
    assert cosines[-1] < 0.1
