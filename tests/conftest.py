import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small only wait for a second thread; and what a run resolves is then the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
