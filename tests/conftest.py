import os

import pytest
import torch

if not torch.cuda.is_available():
    # before anything imports Triton, which reads it then; see interpreted.py
    os.environ.setdefault("TRITON_INTERPRET", "1")


PLAIN, SLOW = 240, 1800  # seconds, far beyond what any test takes: one that has taken as long hangs


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Share the whole suite, as a bare `pytest` asks for it, out between two processes where there are two
    processors; -n 0: by one. Each has one thread, for two threads that wait for each other on a processor
    that others use take several times as long."""
    option, mine = config.option, hasattr(config, "workerinput")  # whether this is one of them
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not (
        option.usepdb or option.collectonly
    )
    if whole and not mine and (os.cpu_count() or 1) > 1 and getattr(option, "numprocesses", 0) is None:
        option.numprocesses, option.dist = 2, "worksteal"
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config, items):
    """A test that hangs ends its process and is named: alone with every thread's stack; where two processes
    share the suite by the one that is left, which goes on. By a thread, not a signal, since what hangs may be
    C++ that Python's signal handlers wait for."""
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if item.get_closest_marker("timeout") is None:
                limit = SLOW if any(map(item.get_closest_marker, ("slow", "xla", "networks"))) else PLAIN
                item.add_marker(pytest.mark.timeout(limit, method="thread"))


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
    """Make the machine one without CUDA, where Triton does not interpret."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
