"""The loop left to Lightning: MART with spectral alignment on a float network, then at four bits."""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import qrobust
from qrobust import data, models, objectives
from qrobust.attacks import PgdConfig, pgd
from qrobust.quant import parameter_groups

THREAT = qrobust.Threat("linf", 20 / 255)
ATTACK = PgdConfig(steps=3, step_size=8 / 255)
ATTACKS = ["strong"]  # of the evaluation, as of the suite that the artifact holds


class Robust(lightning.LightningModule):
    """Any network, trained on what an attack makes of every batch."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__()
        self.model, self.lr = model, lr

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        x, y = batch
        x_adv = pgd(self.model, x, y, threat=THREAT, config=ATTACK)
        clean, adversarial = self.model(x), self.model(x_adv)
        return objectives.mart(clean, adversarial, y, beta=3) + 0.1 * objectives.sar(clean, adversarial)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD; clips and masks of a quantised network have rates of their own."""
        return torch.optim.SGD(parameter_groups(self.model, lr=self.lr, weight_decay=5e-4), momentum=0.9)


def train(model: nn.Module, batches: DataLoader, epochs: int, lr: float) -> None:
    """By Lightning's trainer, which knows devices, precision and processes."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(max_epochs=epochs, **quiet).fit(Robust(model.train(), lr), batches)


if __name__ == "__main__":
    lightning.seed_everything(0)
    digits = data.load(data.DataSettings("digits", train_size=1000, test_size=200))
    batches = DataLoader(TensorDataset(digits.train.x / 255, digits.train.y), 50, shuffle=True)
    net = models.build("resnet8", in_channels=1, classes=10)
    train(net, batches, epochs=4, lr=0.05)
    qm4 = qrobust.quantize(net, 4, calibration=batches)
    train(qm4, batches, epochs=1, lr=0.01)
    artifact = qrobust.export_artifact(qm4, digits, threat=THREAT, out="artifacts/qm-4", attacks=ATTACKS)
    before = artifact.manifest["metrics"]["before"]
    print(f"clean {before['clean']['accuracy']:.1%}, robust {before['worst_case']['accuracy']:.1%}")
    assert qrobust.check(artifact).passed
