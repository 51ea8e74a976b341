"""What the tests look at of a run: gradients and metrics of every optimiser step."""

from collections.abc import Iterable

from lightning import Callback, LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def whole(gradient: Tensor) -> Tensor:
    """A copy, of all parts where it is sharded."""
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


class StepRecorder(Callback):
    """Keeps the gradients of every optimiser step, by name, and what was logged with it."""

    def __init__(self) -> None:
        self.gradients, self.logged = [], []

    def watched(self, pl_module: LightningModule) -> Iterable[tuple[str, nn.Parameter]]:
        """The parameters whose gradients are kept."""
        return pl_module.policy.named_parameters()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append({name: whole(p.grad) for name, p in self.watched(pl_module)})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})
