"""Tables for people."""

from lightning_signin.report.table import layer_table

__all__ = ["layer_table"]
