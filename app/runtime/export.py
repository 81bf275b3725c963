"""The exported weights of a network."""

from pathlib import Path

from pytorch_lightning import LightningModule, Trainer

from runtime.files import to_bytes, write_atomically


def export_weights(trainer: Trainer, model: LightningModule, path: Path) -> None:
    """Writes the weights of a module, on the CPU, for `torch.load(path, weights_only=True)`.

    If the module has no parameters but those of its attribute `network`, they are named as in that network.
    """
    if trainer.is_global_zero:
        weights = model.state_dict()
        prefix = "network." if all(name.startswith("network.") for name in weights) else ""
        weights = {name.removeprefix(prefix): weight.cpu() for name, weight in weights.items()}
        write_atomically(to_bytes(weights), path)
