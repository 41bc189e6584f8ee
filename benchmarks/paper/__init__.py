"""The paper's tables, figures and theorems, one script each: `python -m benchmarks.paper --quick` or ``--full``."""
