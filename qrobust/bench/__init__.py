"""How fast, how large and how robust artifacts are, side by side in one run. Torch is not needed."""

from .measure import Contestant, Scenario, bench, load_scenario, race, unique_names

__all__ = [
    "Contestant",
    "Scenario",
    "bench",
    "load_scenario",
    "race",
    "unique_names",
]
