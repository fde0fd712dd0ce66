"""What the machine offers: device, memory format, threads, versions. A recipe says nothing of these."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from .errors import one_line

if TYPE_CHECKING:
    import torch
    from torch import Generator, nn

TRIAL = 3.0  # seconds for all numbers of threads together
CALLS = 5  # of the work with each number; their median leaves out the first, which warms up
ENOUGH = 1.1  # times the shortest time
BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # of processors, as torch names them
PACKAGES = ("qrobust", "torch", "brevitas", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy")


def device() -> torch.device:
    """CUDA if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where a network's weights are: images follow it. A network without any is taken to be on the CPU."""
    import torch

    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def home(nbytes: int) -> torch.device:
    """Where data of this size rests: on the device if it fills at most half of what is free there, else in memory."""
    import torch

    if torch.cuda.is_available() and nbytes > torch.cuda.mem_get_info()[0] / 2:
        return torch.device("cpu")
    return device()


def on_device(model: nn.Module) -> nn.Module:
    """The network on the device, channels last (convolutions 1.3 times faster on a CPU, more on a GPU)."""
    import torch

    moved: nn.Module = model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def generator(*parts: object) -> Generator:
    """A CPU generator whose stream is fixed by a seed and what it is for: `generator(seed, "train", epoch)`.

    No stream depends on how much of another was used, so a continued run draws what an uninterrupted one did.
    """
    import torch

    return torch.Generator().manual_seed(seed(*parts))


@contextmanager
def own_randomness() -> Iterator[None]:
    """Inside, torch's global streams may be used; afterwards they are as before, on the CPU and this GPU."""
    import torch

    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield


def seed(*parts: object) -> int:
    """The number that `generator` starts from."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Inside, matrix products and convolutions in "float32", "tf32" (GPU only), "bf16" (autocast) or "auto"."""
    import torch

    name = precision_here(name)
    # No cache: it would hold the cast of a weight until the end of the context, over all optimiser steps.
    whole = torch.autocast(device().type, torch.bfloat16, enabled=name == "bf16", cache_enabled=False)
    with exact_products(name == "float32"), whole:
        yield


def precision_here(name: str) -> str:
    """What "auto" is on this machine: "bf16" where `has_bf16`, else "float32"; any other name is itself."""
    if name != "auto":
        return name
    return "bf16" if has_bf16() else "float32"


def has_bf16() -> bool:
    """Whether the device computes bf16 by instructions of its own; without them it takes many times float32's time."""
    import torch

    if device().type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(able.get(name, False) for name in BF16)


@contextmanager
def exact_products(on: bool = True) -> Iterator[None]:
    """Inside, a GPU multiplies float32 whole, or as tf32, as torch does by itself in convolutions.

    tf32 keeps ten bits, and what a sum loses depends on the batch: quantisers then round some values the other way,
    and the logits of an image depend on the batch it comes in. A verdict must not.
    """
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if on else "high")
    torch.backends.cudnn.allow_tf32 = not on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@cache
def most_threads() -> int:
    """As many threads as torch takes by itself: one a core, or OMP_NUM_THREADS."""
    import torch

    return torch.get_num_threads()


def use_threads(count: int) -> None:
    """Let torch compute on this many threads of the CPU from now on. Sessions of onnxruntime have their own number."""
    import torch

    most_threads()  # asked for before it changes
    torch.set_num_threads(count)


def choose_threads(work: Callable[[], object]) -> int:
    """The fewest threads with which `work` takes at most a tenth longer than with the best number of them.

    work: what will be done many times, at a small size: a forward and backward pass of the network at hand. It is
    tried on one thread, two, four, and so on up to `most_threads`, all together for about `TRIAL` seconds, but once at
    least with each. A small network gains nothing by a second thread, and beside another busy process loses by it:
    each step then waits for the thread whose core that process has.
    """
    import torch

    before, counts = torch.get_num_threads(), _counts(most_threads())
    if len(counts) == 1:
        return 1
    try:
        seconds = {count: _typical_seconds(work, count, TRIAL / len(counts)) for count in counts}
    finally:
        use_threads(before)
    return min(count for count, spent in seconds.items() if spent <= ENOUGH * min(seconds.values()))


def _counts(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return [count for count in (1 << power for power in range(most.bit_length())) if count < most] + [most]


def _typical_seconds(work: Callable[[], object], threads: int, limit: float) -> float:
    """Of one call: the median of `CALLS`, or of those that the limit allows."""
    use_threads(threads)
    ends = [time.perf_counter()]
    while len(ends) <= CALLS and (len(ends) == 1 or ends[-1] < ends[0] + limit):
        work()
        ends.append(time.perf_counter())
    return median(end - start for start, end in pairwise(ends))


def versions() -> dict[str, str]:
    """Versions of python and of the packages that a number depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, threads that torch uses, GPU."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def processor() -> str:
    """The CPU's name."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


NEEDED = (
    "torch",
    "torchvision",
    "brevitas",
    "onnx",
    "numpy",
    "safetensors",
    "pydantic",
)


@dataclass(frozen=True)
class Finding:
    """One thing looked for: whether it is there, what was found, what to do if not."""

    name: str
    passed: bool
    reason: str
    hint: str = ""


def findings() -> list[Finding]:
    """Packages, runtime providers, accelerator, compiler."""
    packages = [_package(name) for name in NEEDED]
    return [*packages, _runtime(), _accelerator(), _compiler()]


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", f"pip install {name}")


def _runtime() -> Finding:
    try:
        import onnxruntime
    except ImportError as error:
        return Finding("onnxruntime", False, one_line(error), "pip install onnxruntime")
    providers = ", ".join(onnxruntime.get_available_providers())
    return Finding("onnxruntime", True, f"{onnxruntime.__version__} with {providers}")


def _accelerator() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that it needs may be missing
        return Finding("accelerator", False, one_line(error), "pip install torch")
    if torch.cuda.is_available():
        return Finding("accelerator", True, torch.cuda.get_device_name())
    return Finding("accelerator", True, f"none; {torch.get_num_threads()} CPU threads")


def _compiler() -> Finding:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("cl")
    return Finding("C++ compiler", True, found or "none; needed for torch.compile only")
