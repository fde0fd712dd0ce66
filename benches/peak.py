"""Peak memory of one piece of work, in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from qrobust import devices


def in_own_process(script: str, case: Sequence[object]) -> float:
    """What `script --memory CASE` prints: megabytes.

    Freed tensors leave that process at once; else its peak varies by a quarter with how the allocator keeps them.
    """
    command = [sys.executable, "-W", "ignore", script, "--memory", json.dumps(case)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def megabytes(work: Callable[[], object]) -> float:
    """The most that `work` holds at once, beyond what the process held before (Linux) or on the GPU."""
    if devices.device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _peak()
    work()
    return _peak() - before


def _peak() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
