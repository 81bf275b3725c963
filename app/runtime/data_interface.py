"""Optional attributes and methods of a data module that this program uses."""

from typing import Protocol


class DataModuleExtras(Protocol):
    """What a LightningDataModule may define beyond Lightning's interface. All of it is optional.

    A constructor argument named `data_dir` receives the folder of SageMaker's training channel.

    Attributes:
        num_classes: Passed to a module that has an argument of this name; a class attribute.
        description: Name of the test data in the summary, such as "CIFAR-10".
        samples_name: Plural noun for the samples, such as "images", which names the logged
            `images_per_second`.
        resume_safe_options: Constructor arguments that may differ when an interrupted run resumes; a class
            attribute.
    """

    num_classes: int
    description: str
    samples_name: str
    resume_safe_options: tuple[str, ...]

    def check_before_training(self) -> None:
        """Checks the data on one process per host, before others are started.

        Raises ValueError or OSError.
        """
