"""Settings of the whole suite."""

import os

# Test models are tiny: one thread runs them faster than two, and test files run side by side on the cores instead.
os.environ.setdefault("OMP_NUM_THREADS", "1")
