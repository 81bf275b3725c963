"""What a SageMaker container says in its environment, as command-line options of train.py."""

import os


def default_args() -> list[str]:
    """Options for the container's folders, to be placed before the person's own; none outside of SageMaker."""
    return [f"--model_dir={os.environ['SM_MODEL_DIR']}"] if "SM_MODEL_DIR" in os.environ else []
