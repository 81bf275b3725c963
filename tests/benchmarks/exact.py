"""The cost of --trainer.strategy=ddp_exact, beside ddp, in two processes."""

from benchmarks.processes import measure_exact as measure

__all__ = ["measure"]
