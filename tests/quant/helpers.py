"""Small networks with lived-in batch-norm statistics, and images for them."""

import operator

import torch
from torch import nn
from torch.nn import functional as F

from qrobust.models import build
from qrobust.models.inference import estimate_statistics
from qrobust.quant import bits_per_layer, quantizers
from qrobust.quant._brevitas import QuantIdentity
from qrobust.torchvision_cpu import import_torchvision


def images(n=32, side=8, channels=1, seed=0):
    """Pixels of a camera: whole steps of 1/255, in [0,1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, side, side), generator=generator) / 255


def resnet(seed=0, activation="relu", shortcut="B"):
    """A resnet8 with random batch-norm, some of its γ negative, in eval mode."""
    torch.manual_seed(seed)
    model = build("resnet8", in_channels=1, classes=10, activation=activation, shortcut=shortcut)
    shake_norms(model)
    estimate_statistics(model, [images()])
    return model.eval()


def shake_norms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.4, 1.6)
            nn.init.uniform_(module.bias, -0.5, 0.5)


class Does(nn.Module):
    """A function of the image as a network, or as a module of one."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Plain(nn.Module):
    """conv-relu-pool-conv-relu-conv-linear with biases and no batch-norm; flattened by a function."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.relu = nn.ReLU()  # one module, called twice
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.pool(self.relu(self.first(x)))
        x = self.third(self.relu(self.second(x)))
        return self.fc(torch.flatten(self.average(x), 1))


@torch.no_grad()
def relative(got, expected):
    """Size of the difference against how much the expected logits differ between images."""
    return float((got - expected).norm() / (expected - expected.mean(0)).norm())


def convolutions(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


class Functional(nn.Module):
    """Functions and tensor methods where others have modules; normalises its images itself."""

    def __init__(self, channels=1):
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.4))
        self.conv1, self.bn1 = nn.Conv2d(channels, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 6, 1)
        self.hidden, self.fc = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        x = (x - self.mean) / 0.25
        x = F.relu(F.max_pool2d(self.bn1(self.conv1(x)), 2))  # as most tutorials have it: the pool before relu
        y = self.bn2(self.conv2(x)).relu_()
        y = F.dropout(torch.add(x, self.conv3(y)), 0.1, self.training)
        y = F.relu6(y).mean([2, 3]).view(y.size(0), -1)
        return self.fc(torch.relu(self.hidden(y)))


class Dense(nn.Module):
    """Two layers that read all before them, as DenseNet does, and a transition."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn0, self.conv0 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.squeeze = nn.Conv2d(12, 6, 1)  # reads a concatenation as it comes
        self.bn2, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv0(F.relu(self.bn0(x)))
        z = self.conv1(F.relu(self.bn1(torch.cat([x, y], 1))))
        z = F.avg_pool2d(F.relu(self.bn2(self.squeeze(torch.cat((x, y, z), dim=1)))), 2)
        return self.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))


class Squeezed(nn.Module):
    """A squeeze-and-excitation block with smooth activations and a residual sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.silu = nn.SiLU(inplace=True)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.project, self.bn2 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.hardswish(self.bn(self.conv(x)))
        scale = torch.sigmoid(self.up(self.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        y = self.bn2(self.project(x * scale))
        y += x
        return self.fc(torch.flatten(self.silu(y).mean((-2, -1)), 1))


class Shuffled(nn.Module):
    """Half of the channels pass a convolution, then all are shuffled, as ShuffleNet does; twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for conv in (self.one, self.two):
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat((kept, self.relu(conv(changed))), dim=1)
            n, c, h, w = x.size(0), x.size(1), x.shape[2], x.shape[3]
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.fc(self.relu(x).mean([2, 3]))


class Branched(nn.Module):
    """One value that a convolution and a sum read, as they come."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.bn = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv3, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(144, 2)

    def forward(self, x):
        x = self.bn(self.conv1(x))
        return self.fc(self.conv3(x + self.conv2(x)).flatten(1))


def short(kind, classes=4):
    """torchvision's architecture for colour images with a block or two of each kind: depth adds none."""
    found = import_torchvision().models
    if kind == "resnet":
        model = found.ResNet(found.resnet.BasicBlock, [1, 1, 1, 1])
        model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, classes)  # the wider half
        return model
    if kind == "mobilenet":
        return found.MobileNetV2(num_classes=classes, inverted_residual_setting=[[1, 8, 1, 1], [6, 8, 2, 2]])
    blocks = [found.efficientnet.MBConvConfig(*row) for row in ((1, 3, 1, 16, 8, 1, 1, 1), (4, 5, 2, 8, 12, 2, 1, 1))]
    return found.EfficientNet(blocks, dropout=0.2, stochastic_depth_prob=0.2, num_classes=classes)


def module_of(model, node):
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def quantiser_above(model, node):
    """The quantiser whose grid a node's values lie on, past all that selects, moves or drops values."""
    while True:
        module = module_of(model, node)
        if isinstance(module, QuantIdentity):
            return next(quantizers(module))
        keeps = isinstance(module, (nn.Identity, nn.Flatten, nn.MaxPool2d, nn.Dropout))
        keeps = keeps or node.target in (
            operator.getitem,
            F.pad,
            torch.flatten,
            torch.reshape,
            torch.chunk,
            torch.transpose,
            torch.ops.aten.slice.Tensor,
        )
        assert keeps or type(module).__name__ == "StochasticDepth", f"{node} is on no grid"
        node = node.all_input_nodes[0]


def layer_nodes(model):
    return [n for n in model.graph.nodes if isinstance(module_of(model, n), (nn.Conv2d, nn.Linear))]


def input_bits(model):
    """Bits of what every quantised layer reads, by path."""
    quantised = [n for n in layer_nodes(model) if bits_per_layer(model)[str(n.target)] < 32]
    return {str(n.target): quantiser_above(model, n.all_input_nodes[0]).bits for n in quantised}
