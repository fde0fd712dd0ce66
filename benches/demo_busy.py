"""The demo alone, and beside a process that keeps one core busy: how much longer does it take?

    python benches/demo_busy.py [--json benches/results/demo-busy.json] [--limit 1800] [--keep DIR] [-o KEY=VALUE]

Runs `qrobust run digits` twice in folders of their own, as `make demo` does, by the clock; the busy process is started
and ended here. Run it on a machine that does nothing else. GOAL: the second takes at most twice the time of the first.
Exit code 1 if it is missed, 2 if a run fails or takes longer than --limit seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import record

from qrobust.storage import write_json

GOAL = 2.0
BUSY = "while True: pass"


@contextmanager
def busy() -> Iterator[None]:
    """A process that takes one core as long as this lasts."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError("expected the busy process to last, got none at the end; run again")
    finally:
        process.kill()
        process.wait()


def seconds(overrides: list[str], limit: float, keep: Path | None = None) -> float:
    """Of one run from nothing, whose folder stays as `keep`.

    A broken limit of the recipe's artifacts (exit code 1) is no failure of the clock.
    """
    more = [part for setting in overrides for part in ("-o", setting)]
    path = os.pathsep.join([str(record.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "qrobust", "run", "digits", *more, "--out", str(keep or Path(folder) / "run")]
        started = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, timeout=limit, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        took = time.perf_counter() - started
    if done.returncode not in (0, 1):
        raise RuntimeError(f"expected a run, got exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return took


def measured(overrides: list[str], limit: float, keep: Path | None = None) -> dict[str, Any]:
    load = os.getloadavg()[0]
    took = {}
    for name, beside in (("quiet", nullcontext()), ("busy", busy())):
        with beside:
            took[name] = round(seconds(overrides, limit, keep if name == "quiet" else None), 1)
        print(f"{name}: {took[name]} s", flush=True)
    ratio = took["busy"] / took["quiet"]
    return {"overrides": overrides, "load_before": load, "seconds": took, "ratio": ratio, "at_most": GOAL}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that one run may take")
    parser.add_argument("-o", metavar="KEY=VALUE", action="append", default=[], help="as of qrobust run")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for the first run's results")
    options = parser.parse_args()
    origin = record.origin()
    try:
        result = measured(options.o, options.limit, options.keep and options.keep.resolve())
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"error: {str(error)[:500]}", file=sys.stderr)
        return 2
    held = result["ratio"] <= GOAL
    print(f"ratio {result['ratio']:.2f}, at most {GOAL}: {'held' if held else 'missed'}")
    if options.json:
        write_json(options.json, {**origin, **result, "held": held})
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
