import os

import pytest
import torch

if not torch.cuda.is_available():
    # before anything imports Triton, which reads it then; see interpreted.py
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The whole suite, as a bare `pytest` asks for it, is shared out between two processes where there are
    two processors; -n 0: by one."""
    option, mine = config.option, hasattr(config, "workerinput")  # whether this is one of them
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not (
        option.usepdb or option.collectonly
    )
    if whole and not mine and (os.cpu_count() or 1) > 1 and getattr(option, "numprocesses", 0) is None:
        option.numprocesses, option.dist = 2, "worksteal"


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small only wait for a second thread; and what a run resolves is then the same
    everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_gpu(monkeypatch):
    """As on a machine without CUDA where Triton does not interpret."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
