"""Trains a network to classify images, tests the best one, and exports its weights.

On what there is, on CIFAR-10:   python app/train.py
On all GPUs of this machine:     python app/train.py --trainer.accelerator=gpu --trainer.devices=-1
In two processes on the CPU:     python app/train.py --trainer.accelerator=cpu --trainer.devices=2
Repeating a run:                 python app/train.py --config=logs/tensorboard/tutorial/version_0/config.yaml

People use most: --data.batch_size, --trainer.max_epochs, --trainer.devices, --trainer.precision, --optimizer.lr,
--model=my_file.MyNetwork, --data=my_file.MyData, --checkpoint.every_n_minutes, --logger.name, --seed_everything.
"""

from pathlib import Path

import cifar10  # noqa: F401 - so that --data takes its classes by name
import resnet  # noqa: F401 - so that --model does
from pytorch_lightning.utilities.model_helpers import is_overridden
from runtime.cli import CLI
from runtime.errors import one_line_errors
from runtime.files import to_bytes, write_atomically
from runtime.report import logged_metrics, print_summary


def main() -> None:
    cli = CLI(Path(__file__).with_name("train.yaml"), purpose=__doc__)
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    trainer.fit(model, data)
    metrics = logged_metrics(trainer)
    cli.best.load(trainer, model)
    if is_overridden("test_step", model) and is_overridden("test_dataloader", data or model):
        trainer.test(model, data, verbose=False)
        metrics = logged_metrics(trainer)
    model_path = Path(cli.config.model_dir or cli.best.folder, "model.pt")
    if trainer.is_global_zero:
        weights = model.state_dict()
        prefix = "network." if all(name.startswith("network.") for name in weights) else ""
        weights = {name.removeprefix(prefix): weight.cpu() for name, weight in weights.items()}
        write_atomically(to_bytes(weights), model_path)
        rows = {name: f"{value:.6g}" for name, value in metrics.items()}
        if accuracy := rows.pop("test_acc", None):
            rows = {"test accuracy": f"{float(accuracy):.1%} on {getattr(data, 'description', 'test data')}"} | rows
        print_summary(rows | {"model": model_path} | cli.places())
    cli.end()


if __name__ == "__main__":
    with one_line_errors():
        main()
