"""The Fourier heat map and the low-pass sweep beside the bare forward passes that they need: one network, one run.

    python benches/heatmap.py [--model resnet20] [--side 32] [--n 50] [--json benches/results/heatmap.json]

Bare passes take as many images from memory, in batches as large, and read the answers as a count would. Parts of a
round take turns, ratios are of medians; 1 means that making the images costs nothing. `seconds_of_1000` reckons the
heat map of 1000 images from the time an image took here.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch
from torch import Tensor, nn

from qrobust import devices, models
from qrobust.models.inference import frozen
from qrobust.spectrum import half_plane, heat_map, low_pass_accuracy
from qrobust.storage import write_json

CHANNELS, CLASSES, NORM = 3, 10, 4.0
Work = Callable[[], object]


@torch.no_grad()
def bare(model: nn.Module, x: Tensor, images: int, batch: int) -> None:
    """Passes over so many images, a batch at a time, x round and round."""
    wrong = torch.zeros((), dtype=torch.int64, device=x.device)
    for some in itertools.cycle(x.split(batch)):
        wrong += (model(some[:images]).argmax(1) != 0).sum()
        images -= len(some)
        if images <= 0:
            break
    wrong.item()


def side_by_side(ours: Work, passes: Work, images: int, rounds: int) -> dict[str, Any]:
    """Seconds of both in turns, after one of each that does not count."""
    parts, seconds = {"ours": ours, "bare": passes}, {"ours": [], "bare": []}
    for turn in range(rounds + 1):
        for name, work in parts.items():
            started = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"images": images, "seconds": seconds, "ratio_to_bare": medians["ours"] / medians["bare"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    origin, device, side, batch = record.origin(), devices.device(), options.side, options.batch
    torch.manual_seed(0)
    model = devices.on_device(models.build(options.model, in_channels=CHANNELS, classes=CLASSES)).eval()
    waves, bandwidths = len(half_plane(side, side)), range(1, side + 1)
    shape = (max(options.n, batch), CHANNELS, side, side)
    x = torch.rand(shape, generator=devices.generator(0)).to(device, memory_format=torch.channels_last)
    y = torch.zeros(len(x), dtype=torch.int64, device=device)
    some, labels = x[: options.n], y[: options.n]
    heat_images, sweep_images = options.n * waves, len(x) * len(bandwidths)
    with frozen(model):
        heat = side_by_side(
            lambda: (
                heat_map(model, some, labels, norm=NORM, generator=devices.generator(1), batch_size=batch).sum().item()
            ),
            lambda: bare(model, x, heat_images, batch),
            heat_images,
            options.rounds,
        )
        sweep = side_by_side(
            lambda: low_pass_accuracy(model, zip(x.split(batch), y.split(batch), strict=True), bandwidths),
            lambda: bare(model, x, sweep_images, batch),
            sweep_images,
            options.rounds,
        )
    heat["seconds_of_1000"] = statistics.median(heat["seconds"]["ours"]) / options.n * 1000
    result = origin | {
        "network": options.model,
        "side": side,
        "n": options.n,
        "batch": batch,
        "heat map": heat,
        "low-pass sweep": sweep,
    }
    for name in ("heat map", "low-pass sweep"):
        print(f"{name}: {result[name]['ratio_to_bare']:.2f} of the bare passes' time")
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
