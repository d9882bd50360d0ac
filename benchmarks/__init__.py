"""Scripts that each measure one thing; `python -m benchmarks.NAME --help`."""
