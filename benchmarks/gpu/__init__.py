"""What `python -m benchmarks.gpu` measures, one part per file."""
