"""What tests of AutoAttack share."""

import pyautoattack
import pytest


@pytest.fixture
def few_steps(monkeypatch):
    """A tenth of AutoAttack's steps, for the package's driver and for its parts alike."""
    settled = pyautoattack.AutoAttack._set_version

    def shortened(self, version):
        settled(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10
        self.square.n_queries = 200

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shortened)
