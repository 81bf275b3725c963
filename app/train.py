"""Trains an image classifier, tests its best checkpoint, and exports the weights.

On the available hardware:       python app/train.py
On all GPUs of this machine:     python app/train.py --trainer.accelerator=gpu --trainer.devices=-1
In two processes on the CPU:     python app/train.py --trainer.accelerator=cpu --trainer.devices=2
Repeating a run:                 python app/train.py --config=logs/tensorboard/tutorial/version_0/config.yaml

Common options: --data.batch_size, --trainer.max_epochs, --trainer.devices, --trainer.precision,
--optimizer.lr, --model=my_file.MyNetwork, --data=my_file.MyData, --resume.every_n_minutes, --logger.name,
--seed_everything.

app/train.yaml overrides the defaults that are shown below. --print_config shows the values in use.
"""

from pathlib import Path

import cifar10  # noqa: F401 - so that --data finds its classes by name
import resnet  # noqa: F401 - so that --model finds its classes by name
from runtime.best_network import export_weights
from runtime.cli import CLI
from runtime.errors import one_line_errors
from runtime.report import print_summary


def main() -> None:
    cli = CLI(Path(__file__).with_name("train.yaml"), purpose=__doc__)
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    trainer.fit(model, data)  # resumes here if the CLI has found a checkpoint of an interrupted run
    cli.best.load_weights(trainer, model)
    if cli.has_test:
        trainer.test(model, data, verbose=False)
    export_weights(trainer, model, cli.model_path)
    print_summary(trainer, data, cli.output_paths())
    cli.finish()


if __name__ == "__main__":
    with one_line_errors():
        main()
