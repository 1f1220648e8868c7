"""Lets the comparisons import their shared mappings (`port`, `torch_params`) by name, and run tiny ones on one thread."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch's threads wait for one another on every tiny operation: on a busy machine 40 times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
