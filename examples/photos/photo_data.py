"""Photos in the folders `train`, `val` and `test`, each with one folder per class."""

from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

TO_TENSOR = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]


class Photos(ImageFolder):
    """Saves the random state of a worker of StatefulDataLoader, so that a resumed run augments exactly as before."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"random_state": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        torch.set_rng_state(state["random_state"])


class PhotoData(LightningDataModule):
    """Photos in the folders `train`, `val` and `test` of `root`.

    Args:
        root: Folder of the photos.
        batch_size: Photos per process and step.
        image_size: Width and height of the images in a batch, in pixels.
        num_workers: Worker processes per loader.
    """

    def __init__(self, root: str = "photos", batch_size: int = 32, image_size: int = 64, num_workers: int = 2):
        super().__init__()
        self.save_hyperparameters()
        self.loader_kwargs = {"batch_size": batch_size, "num_workers": num_workers}

    def setup(self, stage: str) -> None:
        root, size = Path(self.hparams.root), self.hparams.image_size
        augment = [transforms.RandomResizedCrop(size, scale=(0.5, 1.0)), transforms.RandomHorizontalFlip()]
        center_crop = [transforms.Resize(size), transforms.CenterCrop(size)]
        self.train = Photos(root / "train", transforms.Compose(augment + TO_TENSOR))
        self.val, self.test = (
            ImageFolder(root / name, transforms.Compose(center_crop + TO_TENSOR)) for name in ("val", "test")
        )

    def train_dataloader(self) -> StatefulDataLoader:
        sampler = DistributedSampler(self.train, self.trainer.world_size, self.trainer.global_rank)
        return StatefulDataLoader(self.train, sampler=sampler, **self.loader_kwargs)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, **self.loader_kwargs)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, **self.loader_kwargs)
