"""Makes a run of any LightningModule and LightningDataModule dependable."""
