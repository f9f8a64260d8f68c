"""Pictures of a run, from the logs that it wrote."""

from .plot import plot_run

__all__ = ["plot_run"]
