"""A training loop of one's own in plain torch: TRADES with spectral alignment, in float, then at four bits."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import qrobust
from qrobust import data, objectives
from qrobust.attacks import PgdConfig, tpgd
from qrobust.quant import parameter_groups

THREAT = qrobust.Threat("linf", 20 / 255)
ATTACK = PgdConfig(steps=3, step_size=8 / 255)
ATTACKS = ["strong"]  # of the evaluation, as of the suite that the artifact holds


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """With batch-norm and ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def train(model: nn.Module, batches: DataLoader, epochs: int, lr: float) -> None:
    """SGD on what an attack makes of every batch; clips and masks of a quantised network have rates of their own."""
    optimizer = torch.optim.SGD(parameter_groups(model, lr=lr, weight_decay=5e-4), momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for x, y in batches:
            x_adv = tpgd(model, x, threat=THREAT, config=ATTACK)  # attacked in eval mode
            model.train()
            clean, adversarial = model(x), model(x_adv)
            loss = objectives.trades(clean, adversarial, y, beta=3) + 0.1 * objectives.sar(clean, adversarial)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


if __name__ == "__main__":
    torch.manual_seed(0)
    digits = data.load(data.DataSettings("digits", train_size=1000, test_size=200))
    batches = DataLoader(TensorDataset(digits.train.x / 255, digits.train.y), 50, shuffle=True)
    body = (convolution(1, 16, 1), convolution(16, 32, 2), convolution(32, 32, 1))
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    train(net, batches, epochs=8, lr=0.1)
    qm4 = qrobust.quantize(net, 4, calibration=batches)
    train(qm4, batches, epochs=2, lr=0.01)
    artifact = qrobust.export_artifact(
        qm4, digits, threat=THREAT, out="artifacts/qm-4", attacks=ATTACKS, float_model=net
    )
    before = artifact.manifest["metrics"]["before"]
    print(f"clean {before['clean']['accuracy']:.1%}, robust {before['worst_case']['accuracy']:.1%}")
    assert qrobust.check(artifact).passed
