"""Transformers and ConvNeXt: integers where layers read, floats between; captured with all that follows the mode."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.errors import ModelError
from qrobust.quant import bits_per_layer, cost, quantize, quantizers, requantize, round_biases
from qrobust.quant.graph import capture

from .helpers import images, quantiser_above, relative


class Attended(nn.Module):
    """A patch embedding, attention with dropout and a drop in its residual, an MLP, a classifier; biases not 0."""

    def __init__(self, width=16, heads=2, dropout=0.1):
        super().__init__()
        self.patch = nn.Conv2d(1, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.fc = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 4)
        self.heads, self.dropout = heads, dropout

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        x = x + self.project(y.transpose(1, 2).reshape(n, length, width))
        x = x + self.down(F.dropout(F.gelu(self.up(self.norm2(x))), self.dropout, self.training))
        return self.fc(self.norm(x)[:, 0])


def attended(**settings):
    torch.manual_seed(0)
    return Attended(**settings).eval()


def users_of(model, path):
    return [user for node in model.graph.nodes if node.target == path for user in node.users]


def test_integers_stand_where_layers_read_and_nowhere_else():
    model = quantize(attended(), 4, calibration=images()).eval()
    reads = {name: next(quantizers(model.get_submodule(name))) for name, _ in model.named_children() if "quant" in name}
    assert len(reads) == 7  # pixels, the patches behind their convolution, what five layers of tokens and fc read
    assert bits_per_layer(model) == {"patch": 8, "qkv": 4, "project": 4, "up": 4, "down": 4, "fc": 8}
    sums = [node for node in model.graph.nodes if node.target is torch.add]
    assert not any("quant" in str(source.target) for node in sums for source in node.all_input_nodes)
    (behind,) = users_of(model, "patch")
    assert next(quantizers(model.get_submodule(behind.target))).bits == 8
    for path in ("qkv", "project", "up", "down"):
        (node,) = (node for node in model.graph.nodes if node.target == path)
        assert quantiser_above(model, node.all_input_nodes[0]).bits == 4


def test_eight_bits_keep_the_logits_and_most_products_are_integers():
    model = attended()
    made = quantize(model, 8, calibration=images()).eval()
    assert relative(made(images()), model(images())) < 0.2
    counted = cost(made, images(2))
    tokens, width = 5, 16
    assert counted.other_macs == 2 * tokens * tokens * width  # of attention
    assert counted.integer_share == counted.macs / (counted.macs + counted.other_macs)


def test_dropout_of_attention_follows_the_mode():
    model = capture(attended(dropout=0.5), (1, 8, 8))
    assert torch.equal(model(images()), model(images()))
    assert not torch.equal(model.train()(images()), model(images()))


def test_what_reads_one_value_shares_its_quantiser():
    class Parted(Attended):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(16, 16)

        def forward(self, x):
            y = self.norm1(self.patch(x).flatten(2).transpose(1, 2))
            return self.fc((self.project(y) * self.gate(y)).mean(1))

    torch.manual_seed(0)
    model = quantize(Parted().eval(), 4, calibration=images())
    project, gate = (node for node in model.graph.nodes if node.target in ("project", "gate"))
    assert project.all_input_nodes == gate.all_input_nodes


def test_biases_of_tokens_stay_and_others_lie_on_their_grid():
    model = quantize(attended(), 4, calibration=images())
    before = model.get_submodule("qkv").bias.clone()
    with torch.no_grad():
        model.get_submodule("fc").bias.add_(0.3 * next(quantizers(model.get_submodule("fc"))).scale().flatten())
    assert round_biases(model) > 0
    assert torch.equal(model.get_submodule("qkv").bias, before)


def test_it_trains_copies_pickles_and_takes_another_width():
    model = quantize(attended(), 4, calibration=images()).train()
    F.cross_entropy(model(images()), torch.arange(32) % 4).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.eval()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(images()), model(images()))
    narrower = requantize(model, 2, calibration=images())
    assert {quantiser.bits for quantiser in quantizers(narrower)} == {2, 8}


def test_images_of_another_size_than_it_was_captured_for_are_refused():
    model = quantize(attended(), 4, calibration=images())
    again = pickle.loads(pickle.dumps(model))
    for one in (model, copy.deepcopy(model), again, requantize(model, 2, calibration=images())):
        with pytest.raises(ModelError, match=r"expected images \(batch, 1, 8, 8\), .* got \(32, 1, 12, 12\); quantise"):
            one(images(side=12))
    with pytest.raises(ModelError, match=r"expected the size of the images .*pass calibration images, or shape="):
        quantize(attended(), 4, calibration=None)


class Biased(nn.Module):
    """A linear layer as a function, a third of whose bias is set to 0, as Swin V2 has it."""

    def __init__(self):
        super().__init__()
        self.conv, self.qkv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(36, 36), nn.Linear(36, 3)

    def forward(self, x):
        bias = self.qkv.bias.clone()
        bias[12:24].zero_()
        return self.fc(F.linear(self.conv(x).flatten(2), self.qkv.weight, bias).mean(1))


def test_a_bias_that_is_computed_stays_so():
    torch.manual_seed(0)
    model = Biased().eval()
    made = quantize(model, 8, calibration=images()).eval()
    assert bits_per_layer(made) == {"conv": 8, "qkv.linear": 8, "fc": 8}
    assert {"qkv.bias", "qkv.linear.weight"} <= {name for name, _ in made.named_parameters()}
    assert relative(made(images()), model(images())) < 0.05


def test_rows_of_tokens_are_tokens_as_in_torch_s_attention():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.attention = nn.Conv2d(1, 8, 4, stride=4), nn.MultiheadAttention(8, 2, batch_first=True)
            self.fc = nn.Linear(8, 3)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            return self.fc((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))

    torch.manual_seed(0)
    model = quantize(Rows().eval(), 8, calibration=images()).eval()
    (sum_,) = (node for node in model.graph.nodes if node.target is torch.add and len(node.meta["shape"] or ()) == 3)
    assert not any("quant" in str(source.target) for source in sum_.all_input_nodes if source.target != "patch_quant")
    assert bits_per_layer(model) == {"patch": 8, "attention.in_proj": 8, "attention.out_proj": 8, "fc": 8}


@pytest.mark.parametrize("rows", [5, 11, 22])
def test_sizes_that_a_batch_may_have_too_are_no_batch(rows):
    """Of a graph for any batch: its tokens stand first, as many as a marked batch holds images."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 1), nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x):
            tokens = self.conv(x).flatten(2).permute(2, 0, 1)[:rows]
            return self.fc(self.norm(tokens).mean(0).reshape(x.shape[0], 4))

    torch.manual_seed(0)
    graph = capture(Turned().eval(), (1, 8, 8))
    (norm,) = (node for node in graph.graph.nodes if node.target == "norm")
    assert norm.meta["shape"] == (rows, None, 4)
    (fc,) = (node for node in graph.graph.nodes if node.target == "fc")
    assert fc.meta["shape"] == (None, 3)
