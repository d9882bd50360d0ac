"""Settings of the whole suite."""

import os
from collections.abc import Iterator

import pytest

# Test models are tiny: one thread runs them faster than two, and test files run side by side on the cores instead.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch with one thread: the same bytes are promised for the same number, and tiny matrices are slower on several that are shared."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
