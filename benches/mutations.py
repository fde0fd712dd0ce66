"""Would the tests see it? One line in each of many modules is broken, and the tests that stand for it must fail.

    python benches/mutations.py [NAME ...] [--json benches/results/mutations.json]

NAME: a module as in the first column; default: all. Works on a copy in a temporary folder. Exit code 1 if a broken line
went unseen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("qrobust", "tests", "benches", "docs", "recipes", "export", "setup.cfg", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Mutation:
    """before: a text that stands once in qrobust/MODULE.py; after: what is wrong in its place; tests: of `tests/`."""

    module: str
    before: str
    after: str
    tests: str


MUTATIONS = tuple(
    Mutation(*row)
    for row in (
        # A projection that leaves the ball.
        ("threat", "(self.eps / length.clamp_min(1e-12)).clamp_max(1.0)", "(self.eps / length.clamp_min(1e-12))",
         "test_threat.py"),
        # Steps down the gradient.
        ("attacks/gradient", "x_adv + config.step_size * threat.direction(gradient)",
         "x_adv - config.step_size * threat.direction(gradient)", "attacks/test_gradient.py"),
        ("attacks/registry", 'settings["step_size"] = threat.eps / 4', 'settings["step_size"] = threat.eps / 40',
         "attacks/test_registry.py"),
        # A gradient that is no number ends the attack.
        ("attacks/auto", "return grads[0].contiguous().nan_to_num()", "return grads[0].contiguous()",
         "attacks/test_auto.py"),
        ("models/inference", "(norm.running_var.to(dtype) + norm.eps).sqrt()", "norm.running_var.to(dtype).sqrt()",
         "models/test_folding.py"),
        ("quant/quantizer", "return (x / scale).round_().clamp_(low, high).mul_(scale)",
         "return (x / scale).floor_().clamp_(low, high).mul_(scale)", "quant/test_quantizer.py"),
        ("quant/layers", "offset + units.round() * step", "offset + units.floor() * step", "quant/test_biases.py"),
        ("quant/placement", "weight = FLOAT_BITS if edge_layers == \"float\" else EDGE_BITS", "weight = EDGE_BITS",
         "quant/test_widths.py"),
        ("spectrum/filters", 'return torch.fft.ifftshift(mask) if band == "low" else mask',
         "return torch.fft.ifftshift(mask)", "spectrum/test_filters.py"),
        ("spectrum/fat", "return 2 * torch.sigmoid(", "return torch.sigmoid(", "spectrum/test_fat.py"),
        ("objectives", "+ beta * divergence(clean, adversarial)",
         "+ beta * divergence(adversarial, clean)", "test_objectives.py"),
        ("data/loading", "return images.take(torch.where(~aside)[0])", "return images.take(torch.where(aside)[0])",
         "data/test_splitting.py"),
        ("data/augment", "mixed = x[partner].lerp(x, ", "mixed = x.lerp(x[partner], ", "data/test_mixing.py"),
        ("train/job", "rate *= factor if epoch >= milestone else 1", "rate *= factor if epoch > milestone else 1",
         "train/test_schedule.py"),
        ("train/step", "weight.add_(gradient * (gamma", "weight.sub_(gradient * (gamma", "train/test_perturb.py"),
        # Whatever an attack returns would be believed.
        ("evaluation/accuracy", "x_adv = x_adv.clamp(0, 1) if threat is None else threat.project(x_adv, x)",
         "x_adv = x_adv.clamp(0, 1)", "evaluation/test_judge.py"),
        ("evaluation/outcomes", "result: Mask = np.logical_and.reduce([self.correct[CLEAN], *bounded])",
         "result: Mask = np.logical_or.reduce([self.correct[CLEAN], *bounded])", "evaluation/test_outcomes.py"),
        ("evaluation/sanity", "if not value <= limit:", "if value > 2 * limit:", "evaluation/test_sanity.py"),
        ("runs/stages", 'return digest([self.settings, self.digests_read()])', "return digest([self.settings])",
         "runs/test_stages.py"),
        ("export/artifact", "reach = int(threat.eps * 255 + 1e-4)", "reach = int(threat.eps * 255 + 1.0)",
         "export/test_suite.py"),
        ("export/parity", "STEPS, HALF_STEPS = 1, 16", "STEPS, HALF_STEPS = 3, 16", "export/test_parity.py"),
        ("onnx_module/node", "inside(g, x, _finite(low * step), _finite(high * step))",
         "inside(g, x, _finite(low * step), _finite(2 * high * step))",
         "onnx_module/test_rounding.py"),
        ("recipe/reading", "LARGEST = 20, 2.0**63", "LARGEST = 20, 2.0**80", "test_recipe.py"),
        ("bench/timing", "np.percentile(drawn, (2.5, 97.5))", "np.percentile(drawn, (25, 75))", "bench/test_timing.py"),
        ("tables", 'return NONE if share is None else f"{100 * share:.{digits}f}"',
         'return NONE if share is None else f"{share:.{digits}f}"', "test_tables.py"),
        ("runtime", "changed, gap = drop + 2 * gained, drop - tolerated",
         "changed, gap = drop + gained, drop - tolerated",
         "test_runtime_statistics.py"),
    )
)  # fmt: skip


def seen(mutation: Mutation, tree: Path) -> tuple[bool, float, str]:
    """Whether the tests fail on a copy with this line broken, in how many seconds, and the first that did."""
    path = tree / "qrobust" / f"{mutation.module}.py"
    text = path.read_text()
    if text.count(mutation.before) != 1:
        raise SystemExit(f"{path.name}: expected once, got {text.count(mutation.before)} times: {mutation.before}")
    path.write_text(text.replace(mutation.before, mutation.after))
    started = time.monotonic()
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{mutation.tests}"]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tree, env=environment)
    finally:
        path.write_text(text)
    first = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    # 1: a test failed. Anything else, such as no test found, proves nothing.
    return done.returncode == 1 and first.startswith("FAILED"), time.monotonic() - started, first


def main() -> int:
    """Print a line for each; 1 if one was not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    chosen = [one for one in MUTATIONS if not asked.names or one.module in asked.names]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            tree.mkdir(exist_ok=True)
            copy(ROOT / name, tree / name)
        for one in chosen:
            found, seconds, first = seen(one, tree)
            print(f"{one.module:<24}{'seen' if found else 'NOT SEEN':<10}{seconds:5.1f} s  {first[:100]}", flush=True)
            rows[one.module] = {"before": one.before, "after": one.after, "tests": one.tests, "seen": found}
    if asked.json:
        import record

        record.write_json(asked.json, {**record.origin(), "mutations": rows})
    return 0 if all(row["seen"] for row in rows.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
