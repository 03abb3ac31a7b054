"""--device xla without torch_xla: what is told where it is lacking, and the ranks' logic over collectives
that stand in for XLA's."""

from __future__ import annotations

import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from runs import TINY, digits, network

from fastbn import fit, train_xla
from fastbn.engine.select import choose
from fastbn.errors import MachineError, UsageError
from fastbn.machine import devices, xla
from fastbn.machine.environment import Place, place, placed
from fastbn.planning import precision
from fastbn.train import main
from fastbn.training.distributed import xla as xla_ranks
from fastbn.training.distributed.ranks import ALONE

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def anew():
    """What a test finds of torch_xla is not kept."""
    xla.torch_xla_package.cache_clear()
    yield
    xla.torch_xla_package.cache_clear()


def told(tmp_path, capfd, *words):
    assert main([*TINY, "--device", "xla", "--out", str(tmp_path / "run")]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("fastbn: error: --device xla") and err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert not (tmp_path / "run").exists()


def test_no_torch_xla(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_xla", None)  # as where it is not installed
    told(tmp_path, capfd, "no module torch_xla", "pip install torch==2.9.0 torch_xla==2.9.0")


def test_a_torch_that_it_does_not_load_with(tmp_path, capfd, monkeypatch):
    (tmp_path / "torch_xla.py").write_text(
        "raise ImportError('_XLAC.so: undefined symbol: _ZN5torch4lazy\\nand more')"
    )
    monkeypatch.delitem(sys.modules, "torch_xla", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    told(tmp_path, capfd, torch.__version__, "undefined symbol", "torch==2.9.0 torch_xla==2.9.0")


def without_a_device():
    raise RuntimeError("Bad StatusOr access: UNKNOWN: TPU initialization failed\nand more")


def test_no_device(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    monkeypatch.setitem(sys.modules, "torch_xla", types.SimpleNamespace(device=without_a_device))
    told(tmp_path, capfd, "PJRT_DEVICE is 'TPU'", "TPU initialization failed", "PJRT_DEVICE=CPU")


def test_the_launcher_tells_it_too(capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    assert train_xla.launch(["--depth", "14"]) == 2
    assert "torch_xla" in capfd.readouterr().err


def test_auto_is_the_models_own_forward():
    assert choose("auto", torch.device("xla"), torch.float32)[0] is None
    with pytest.raises(MachineError, match="native engine is for CPUs"):
        choose("native", torch.device("xla"), torch.float32)


@pytest.mark.parametrize("name", ["tf32", "mixed"])
def test_precisions_it_has_not(name):
    with pytest.raises(MachineError, match="on xla"):
        precision.check(name, torch.device("xla"))


def test_frozen_statistics_are_refused():
    with pytest.raises(MachineError, match="--bn-stats frozen"):
        devices.check_recipe("frozen", torch.device("xla"))
    devices.check_recipe("batch", torch.device("xla"))
    devices.check_recipe("frozen", CPU)


def test_a_number_there():
    assert torch.equal(devices.number(0.1, torch.float64, CPU), torch.tensor(0.1, dtype=torch.float64))


class Collectives(types.SimpleNamespace):
    """torch_xla.core.xla_model's, for threads that stand for chips."""

    REDUCE_SUM = "sum"

    def __init__(self, count):
        self.barrier, self.given, self.messages = threading.Barrier(count), [None] * count, []

    def _all(self, value):
        self.given[place().rank] = value
        self.barrier.wait(60)
        found = list(self.given)
        self.barrier.wait(60)
        return found

    def rendezvous(self, tag, payload):
        return self._all(payload)

    def all_reduce(self, kind, tensor):
        assert kind == "sum"
        self.messages.append(tuple(tensor.shape))
        return torch.stack(self._all(tensor.clone())).sum(0)

    def all_gather(self, tensor):
        return torch.cat(self._all(tensor.clone()))


def on_chips(monkeypatch, act, count=2):
    """act(ranks) of each chip, and the collectives that they used."""
    collectives = Collectives(count)
    core = types.SimpleNamespace(xla_model=collectives)
    modules = {
        "torch_xla": types.SimpleNamespace(core=core),
        "torch_xla.core": core,
        "torch_xla.core.xla_model": collectives,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def chip(rank):
        with placed(Place(rank, count, rank, 0)):
            return act(xla_ranks.Chips(rank, count))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(chip, range(count))), collectives


def test_chips_agree_and_start_alike(monkeypatch):
    def act(ranks):
        tensors = [
            torch.full((3,), float(ranks.rank)),
            torch.arange(2) + ranks.rank,
            torch.tensor([-0.0, float("nan")]),
        ]
        ranks.copy(tensors)
        return (
            ranks.told({"from": ranks.rank}),
            tensors,
            ranks.total(1.5, CPU),
            ranks.agree(lambda: ranks.rank),
        )

    found, _ = on_chips(monkeypatch, act)
    for rank, (said, tensors, total, own) in enumerate(found):
        assert (said, total, own) == ({"from": 0}, 3.0, rank)
        assert tensors[0].tolist() == [0.0] * 3 and tensors[1].tolist() == [0, 1]
        assert torch.signbit(tensors[2][0]) and tensors[2][1].isnan()


def test_what_fails_on_one_chip_is_told_by_all(monkeypatch):
    def act(ranks):
        def lacking():
            if ranks.rank == 1:
                raise UsageError("no such data")

        with pytest.raises(UsageError, match="rank 1: no such data") as caught:
            ranks.agree(lacking)
        return caught.value.agreed

    assert on_chips(monkeypatch, act)[0] == [True, True]


def test_two_chips_are_one_device(monkeypatch):
    """Statistics are frozen, so that slicing the batch changes nothing; a step sends one message."""

    def act(ranks):
        model = network(engine="stock")
        lines = fit(
            model,
            *digits(50, 16),
            epochs=1,
            batch_size=24,
            lr=0.01,
            bn_stats="frozen",
            progress=False,
            ranks=ranks,
        )
        return lines, torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])

    lines, expected = act(ALONE)
    found, collectives = on_chips(monkeypatch, act)
    assert torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][1], expected, rtol=1e-5, atol=1e-6)
    assert found[0][0][0]["train_loss"] == pytest.approx(lines[0]["train_loss"], rel=1e-5)
    assert collectives.messages.count((len(expected) + 4,)) == 2 * 3  # of two chips, in three steps


def test_torchrun_does_not_start_chips(monkeypatch):
    runtime = types.SimpleNamespace(world_size=lambda: 1)
    monkeypatch.setitem(sys.modules, "torch_xla", types.SimpleNamespace(device=lambda: CPU, runtime=runtime))
    with placed(Place(1, 4, 1, 0)), pytest.raises(UsageError, match="by python -m"):
        xla_ranks.ranks(1.0)
    assert xla_ranks.ranks(1.0).count == 1
