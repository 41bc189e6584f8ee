"""Human-readable tables, plots and report pages."""

from lightning_signin.report.cost import byte_table, flop_table
from lightning_signin.report.table import layer_table
from lightning_signin.report.write import write_report

__all__ = ["byte_table", "flop_table", "layer_table", "write_report"]
