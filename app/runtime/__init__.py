"""Fault-tolerant training of any LightningModule with any LightningDataModule."""
