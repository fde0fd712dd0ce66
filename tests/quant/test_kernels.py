"""The kernels for a GPU: their source compiled for the CPU, and on a GPU themselves, beside torch's operations."""

import ctypes
import subprocess

import pytest
import torch

from qrobust.quant import quantizer
from qrobust.quant.quantizer import fake_quantize, integer_range

from ..conftest import evidence

CLIP, COUNT = 1.3, 20_000
CASES = [(bits, signed) for bits in range(2, 9) for signed in (False, True)]
CALLS = """
extern "C" void all(int n, const float* g, const float* x, float clip, float low, float high, float below,
                    float* value, float* passed, float* dx, float* dclip) {
    for (int i = 0; i < n; i++) {
        value[i] = quantize<float>(x[i], clip, low, high);
        passed[i] = pass<float>(g[i], x[i], clip, below);
        train<float>(g[i], x[i], clip, low, high, below, dx[i], dclip[i]);
    }
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    compiler = evidence("compiler")
    folder = tmp_path_factory.mktemp("kernels")
    source = "#include <cmath>\n" + quantizer._QUANTIZE + quantizer._PASS + quantizer._TRAIN + CALLS
    (folder / "all.cpp").write_text(source)
    options = ["-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", str(folder / "all.so"), str(folder / "all.cpp")]
    subprocess.run([compiler, *options], check=True)
    return ctypes.CDLL(str(folder / "all.so")).all


def some(device="cpu"):
    """Values with ties, with the clip itself, and NaN; a gradient."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(COUNT, generator=generator) for _ in range(2))
    x[:100], x[100:110] = CLIP, float("nan")
    x[200:300] = torch.arange(100) * CLIP / 30  # on and halfway between the grid's points
    return (2 * x).to(device), g.to(device)


def expected(x, g, low, high):
    """Value, passed gradient, and the clip's, by torch's operations on the CPU."""
    clip = torch.tensor(CLIP)
    value = (x / (clip / high)).round().clamp(low, high) * (clip / high)
    inside = (x > clip * (low / high)) & (x < clip)
    dclip = g * torch.where(inside, (value - x) / clip, torch.where(x > 0, 1.0, low / high))
    return value, g * inside, dclip


@pytest.mark.parametrize(("bits", "signed"), CASES)
def test_the_source_says_what_the_formulas_say(compiled, bits, signed):
    (low, high), (x, g) = integer_range(bits, signed=signed, narrow=signed), some()
    found = [torch.empty(COUNT) for _ in range(4)]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (g, x, *found)]
    numbers = [ctypes.c_float(number) for number in (CLIP, low, high, low / high)]
    compiled(COUNT, *pointers[:2], *numbers, *pointers[2:])
    value, passed, dclip = expected(x, g, low, high)
    for got, want in zip(found, (value, passed, passed, dclip), strict=True):
        assert torch.equal(got.nan_to_num(9), want.nan_to_num(9))
    assert torch.equal(fake_quantize(x, torch.tensor(CLIP), low, high).nan_to_num(9), value.nan_to_num(9))


def test_they_are_for_float32_on_a_gpu():
    assert not quantizer.has_kernel(torch.zeros(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels for a GPU")
@pytest.mark.parametrize(("bits", "signed"), CASES)
def test_on_a_gpu_they_give_what_the_cpu_gives(bits, signed):
    (low, high), (x, g) = integer_range(bits, signed=signed, narrow=signed), some("cuda")
    clip = torch.tensor(CLIP, device="cuda")
    value, passed, dclip = expected(x.cpu(), g.cpu(), low, high)
    assert torch.equal(quantizer.quantize_by_kernel(x, clip, low, high).cpu().nan_to_num(9), value.nan_to_num(9))
    assert torch.equal(quantizer.inside_by_kernel(g, x, clip, low, high).cpu(), passed)
    dx, got = quantizer.gradients_by_kernel(g, x, clip, low, high)
    assert torch.equal(dx.cpu(), passed)
    torch.testing.assert_close(got.cpu(), dclip, rtol=1e-5, atol=1e-6, equal_nan=True)
