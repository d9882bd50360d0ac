"""What `benchmarks/gpu.py` measures, one part a file."""
