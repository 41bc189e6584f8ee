"""What sparse training costs beside dense training: `python -m benchmarks.overhead`."""
