# What makes a run of any LightningModule and LightningDataModule dependable.
