"""A fixture that several tests of the graph share."""

import random

import pytest
import torch


@pytest.fixture
def seeded():
    """Draw from the same seeds, Python's numbers and torch's."""
    random.seed(1)
    torch.manual_seed(1)
