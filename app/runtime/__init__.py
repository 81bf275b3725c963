"""What makes a run of any LightningModule and LightningDataModule dependable."""

from runtime.cli import CLI
from runtime.errors import one_line_errors
from runtime.files import to_bytes, write_atomically
from runtime.report import logged_metrics, print_summary

__all__ = ["CLI", "logged_metrics", "one_line_errors", "print_summary", "to_bytes", "write_atomically"]
