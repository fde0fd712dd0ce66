"""What tests of whole attacks share."""

from dataclasses import replace

import pyautoattack
import pytest

from qrobust.attacks import plan


@pytest.fixture
def few_steps(monkeypatch):
    """A tenth of AutoAttack's steps, for the package's driver and for its parts alike."""
    settled = pyautoattack.AutoAttack._set_version

    def shortened(self, version):
        settled(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10
        self.square.n_queries = 200

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shortened)


@pytest.fixture
def few_parts(monkeypatch):
    """A tenth of the steps of the cascade's parts, and no longer turns than needed."""
    for name in ("FIRST", "FLOAT", "ROUNDED", "QUICK"):
        parts = getattr(plan, name)
        short = [replace(one, steps=one.steps // 10) for one in ([parts] if name == "FIRST" else parts)]
        monkeypatch.setattr(plan, name, short[0] if name == "FIRST" else tuple(short))
