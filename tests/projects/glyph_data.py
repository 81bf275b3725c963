"""A synthetic dataset: noisy grey glyphs of seven classes, 28 x 28 pixels, shifted by a few pixels."""

from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import Dataset, random_split
from torchdata.stateful_dataloader import StatefulDataLoader


class Glyphs(Dataset):
    """Images [1, 28, 28] in [0, 1] and labels from 0 to 6, augmented by a random shift if `shift` is not 0."""

    def __init__(self, path: Path, shift: int = 0):
        self.images, self.labels = torch.load(path)
        self.shift = shift

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        if self.shift:
            image = image.roll(torch.randint(-self.shift, self.shift + 1, (2,)).tolist(), dims=(1, 2))
        return image, int(self.labels[index])


class GlyphDataModule(LightningDataModule):
    def __init__(self, root: str = "glyphs", batch_size: int = 64, num_workers: int = 0, shift: int = 2):
        super().__init__()
        self.save_hyperparameters()

    def prepare_data(self) -> None:
        """Generates the files; other projects would download them."""
        root = Path(self.hparams.root)
        if (root / "test.pt").exists():
            return
        root.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(7)
        glyphs = torch.rand(7, 1, 28, 28, generator=generator)
        for name, size in ("train", 700), ("test", 140):
            labels = torch.randint(7, (size,), generator=generator)
            images = (glyphs[labels] + 0.5 * torch.randn(size, 1, 28, 28, generator=generator)).clamp(0, 1)
            torch.save((images, labels), root / f"{name}.pt")

    def setup(self, stage: str) -> None:
        root = Path(self.hparams.root)
        halves = torch.Generator().manual_seed(0)
        self.train, self.val = random_split(Glyphs(root / "train.pt", self.hparams.shift), [600, 100], halves)
        self.test = Glyphs(root / "test.pt")

    def train_dataloader(self) -> StatefulDataLoader:
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> StatefulDataLoader:
        return self.loader(self.val)

    def test_dataloader(self) -> StatefulDataLoader:
        return self.loader(self.test)

    def loader(self, dataset: Dataset, shuffle: bool = False) -> StatefulDataLoader:
        batch_size, num_workers = self.hparams.batch_size, self.hparams.num_workers
        return StatefulDataLoader(dataset, batch_size=batch_size, num_workers=num_workers, shuffle=shuffle)
