"""Files that others make: torchvision's networks through both exporters, and onnxruntime's quantiser."""

import functools
import logging
import warnings

import onnx
import onnxruntime.quantization as ort
import pytest
import torch
from onnxruntime.quantization.shape_inference import quant_pre_process

from qrobust.models.inference import estimate_statistics
from qrobust.onnx_module import load_onnx
from qrobust.runtime import sums_saturate
from qrobust.torchvision_cpu import import_torchvision

from ..quant.helpers import images, shake_norms, short
from .helpers import rounding_steps, runtime, steps_apart

SIDE = 48
SLOW = pytest.mark.slow
LARGE = ("resnet18", "mobilenet_v2", "efficientnet_b0", "convnext", "swin", "swin_v2", "maxvit")
MORE = ("googlenet", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_0", "mobilenet_v3_small", "regnet_y_400mf")


def each(*fast, names=("short", "vit", *LARGE), settings=(True, False)):
    """Every network in every setting; all but the fast ones are slow."""
    pairs = [(name, setting) for name in names for setting in settings]
    return [pair if pair in fast else pytest.param(*pair, marks=SLOW) for pair in pairs]


APPROXIMATE = 0.05  # share of values a step off: onnxruntime's softmax of integers is a table


def transformer(name):
    """Those of torchvision with fewer blocks, for images of `SIDE`."""
    models = import_torchvision().models
    swin, block = models.swin_transformer, models.convnext.CNBlockConfig
    stages = ([4, 4], 24, [2, 2], [2, 4], [4, 4])
    makers = {
        "vit": lambda: models.VisionTransformer(SIDE, 8, 2, 2, 32, 64, num_classes=10),
        "convnext": lambda: models.ConvNeXt([block(16, 32, 1), block(32, None, 1)], num_classes=10),
        "swin": lambda: models.SwinTransformer(*stages, num_classes=10),
        "swin_v2": lambda: models.SwinTransformer(
            *stages, num_classes=10, block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2
        ),
        "maxvit": lambda: models.MaxVit((SIDE, SIDE), 16, 3, [16, 32], [1, 1], 8, 0.0, num_classes=10),
        "short": lambda: short("resnet", classes=10),
    }
    return makers[name]()


@torch.no_grad()
def shake_vectors(model):
    """Fresh ones are all alike: an exporter stores them once, and a quantiser takes one for a bias of another layer."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.05 * torch.randn_like(parameter))
    for head in (module for name, module in model.named_modules() if name == "heads.head"):  # zeros in a fresh one
        torch.nn.init.normal_(head.weight, std=0.3)


@functools.cache
def network(name):
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    made = getattr(import_torchvision().models, name, None)  # a module of torchvision, or none, for those of few blocks
    model = made(weights=None, num_classes=10, **options) if callable(made) else transformer(name)
    if not callable(made):
        shake_vectors(model)
    shake_norms(model)
    estimate_statistics(model, [images(8, SIDE, 3)])
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    @functools.cache
    def export(name, dynamo=False):
        path = tmp_path_factory.mktemp("exported") / "model.onnx"
        example = images(2, SIDE, 3)
        named = {"input_names": ["x"], "output_names": ["logits"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if dynamo:
                shapes = ({0: torch.export.Dim("batch")},)
                named |= {"dynamic_shapes": shapes, "external_data": False, "verbose": False}
            else:
                named |= {"dynamic_axes": {"x": {0: "batch"}, "logits": {0: "batch"}}, "opset_version": 17}
            torch.onnx.export(network(name), (example,), str(path), dynamo=dynamo, **named)
        return path

    return export


class Images(ort.CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{"x": images(4, SIDE, 3, seed).numpy()} for seed in (1, 2)])

    def get_next(self):
        return next(self.batches, None)


def quantised(path, form, **settings):
    logging.getLogger().setLevel(logging.ERROR)
    prepared, written = path.with_name("prepared.onnx"), path.with_name(f"{form.name}.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    # 7 bits a weight where sums of 8-bit products saturate: the module's do not.
    settings |= {"quant_format": form, "reduce_range": sums_saturate()}
    ort.quantize_static(str(prepared), str(written), Images(), **settings)
    return written.read_bytes()


def assert_equal_floats(data, name):
    x = images(4, SIDE, 3, seed=7)
    with torch.no_grad():
        got = load_onnx(data)(x)
        expected = runtime(data, x)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got, network(name)(x), atol=1e-3, rtol=1e-3)
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("name", "dynamo"), each(("short", True), ("short", False), ("vit", False), names=("short", "vit", *LARGE, *MORE))
)
def test_torchvision_through_an_exporter(exported, name, dynamo):
    assert_equal_floats(exported(name, dynamo).read_bytes(), name)


@pytest.mark.parametrize(("name", "per_channel"), each(("short", True), ("short", False), ("vit", True)))
def test_static_quantisation_as_pairs(exported, name, per_channel):
    data = quantised(exported(name), ort.QuantFormat.QDQ, per_channel=per_channel)
    made = load_onnx(data)
    assert len(rounding_steps(made)) >= (10 if name == "short" else 20)
    softmax = any(step.node.op == "Softmax" for step in made.plan.steps)
    for level in ("disable", "all"):
        assert_within_a_step(made, data, level, APPROXIMATE if softmax and level == "all" else 1e-3)


def assert_within_a_step(made, data, level, share):
    x = images(4, SIDE, 3, seed=7)
    apart, _ = steps_apart(made, data, x, level)
    off = torch.cat([steps.flatten() for steps in apart.values()])
    assert float(off.max()) < 1.01
    assert float((off > 0.01).float().mean()) < share
    assert_labels_agree(made, data)


@pytest.mark.parametrize(("name", "signed"), each(("short", True), ("short", False), ("vit", False)))
def test_static_quantisation_as_operators(exported, name, signed):
    activation = ort.QuantType.QInt8 if signed else ort.QuantType.QUInt8
    data = quantised(exported(name), ort.QuantFormat.QOperator, per_channel=True, activation_type=activation)
    kinds = {node.op_type for node in onnx.load_from_string(data).graph.node}
    assert "QLinearConv" in kinds
    made = load_onnx(data)
    scale = rounding_steps(made)[-1].node.inputs[1]  # of the logits, whose spread may be a step
    assert_labels_agree(made, data, float(made.get_buffer(made.homes[scale])))


@pytest.mark.parametrize("name", ["vit", *(pytest.param(name, marks=SLOW) for name in ("short", *LARGE))])
def test_dynamic_quantisation(exported, name):
    """One range an image, in the module as in a session that is given one."""
    written = exported(name).with_name("dynamic.onnx")
    step = 5e-2 if sums_saturate() else 1e-2  # of weights with 7 bits
    settings = {"op_types_to_quantize": ["MatMul", "Gemm"], "reduce_range": sums_saturate()}
    ort.quantize_dynamic(str(exported(name)), str(written), **settings)
    data, x = written.read_bytes(), images(4, SIDE, 3, seed=7)
    with torch.no_grad():
        torch.testing.assert_close(
            load_onnx(data)(x), torch.cat([runtime(data, one[None]) for one in x]), atol=step, rtol=1e-2
        )


def assert_labels_agree(made, data, step=0.0):
    x = images(24, SIDE, 3, seed=8)
    with torch.no_grad():
        got, expected = made(x), runtime(data, x, "all")
    spread, own = (expected - expected.mean(0)).norm(), (expected - runtime(data, x)).norm()
    rounding = step * got.numel() ** 0.5
    assert (got - expected).norm() < 0.2 * spread + 2 * own + rounding  # two levels of onnxruntime differ by as much
    top = expected.topk(2).values
    clear = top[:, 0] - top[:, 1] > 0.1 * expected.std()
    assert (got.argmax(1) == expected.argmax(1))[clear].float().mean() > 0.95


def test_initialisers_may_be_listed_as_inputs(exported):
    model = onnx.load(str(exported("short")))
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    x = images(2, SIDE, 3)
    with torch.no_grad():
        torch.testing.assert_close(load_onnx(model.SerializeToString())(x), network("short")(x), atol=1e-3, rtol=1e-3)
