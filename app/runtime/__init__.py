"""What makes a run dependable, for any LightningModule and LightningDataModule."""
