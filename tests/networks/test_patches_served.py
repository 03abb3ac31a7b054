"""Several patches of one network: switched by a copy, and served together, each sample as its own task's."""

import copy

import pytest
import torch
from hub_nets import NETWORKS, drawn
from nets import resnet
from test_patches import trained
from torch import nn

import fastbn
from bench.oracle.networks import images
from fastbn.engine.fuse import fused_forward
from fastbn.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")
TASKS = ("a", "b", "c")


def x(count=6, dtype=torch.float64, **options):
    return images(count, 16, 16, dtype=dtype, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write three patches for each network and what trains."""
    folder = tmp_path_factory.mktemp("patches")

    def of(name, train="bn"):
        found = {}
        for i, task in enumerate(TASKS):
            found[task] = folder / f"{name}-{train}-{task}.safetensors"
            if not found[task].exists():
                fastbn.save(trained(drawn(name), train, seed=i), found[task])
        return found

    return of


def with_patches(model, files):
    patches = fastbn.Patches(model)
    for task, path in files.items():
        patches.add(task, path)
    return patches


def base(name, engine="reference", train="bn", dtype=torch.float64):
    model = fastbn.freeze(drawn(name).to(dtype), train)
    return fastbn.fuse(model, engine) if engine else model


def alone(name, path, train="bn", dtype=torch.float64):
    """Return the network with that patch alone, stock: the oracle."""
    return fastbn.apply_patch(base(name, None, train, dtype), path)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "train, engine", [("bn", None), ("bn+output", "reference"), ("bn+random=1", "reference")]
)
@torch.no_grad()
def test_each_sample_as_its_own_task(name, train, engine, files):
    """Six samples of four tasks, the base among them, in float64."""
    model, given = base(name, engine, train), files(name, train)
    patches = with_patches(model, given)
    tasks = ["b", None, "a", "c", "b", "a"]
    found = patches.forward(x(), tasks)
    for i, task in enumerate(tasks):
        want = (base if task is None else alone)(name, *((None,) if task is None else (given[task],)), train)
        torch.testing.assert_close(found[i], want(x())[i], rtol=1e-11, atol=1e-11)
    assert patches.served.startswith("task by task: " if "random" in train else "together"), patches.served
    assert patches.current is None and torch.equal(patches.forward(x(), tasks), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_native_engine(name, dtype, files):
    """It agrees up to the rounding of what is stored: the engine's own forward of one task, beside the same
    of all. Sizes that no vector fits; images that lie in one block of 256 pixels together."""
    model, given = base(name, "native", "bn+output", dtype), files(name, "bn+output")
    patches, bound = with_patches(model, given), 16 * torch.finfo(dtype).eps
    for size in (16, 7):
        batch = images(5, size, size, dtype=dtype)
        tasks = ["c", "a", None, "a", "b"]
        found = patches.forward(batch, tasks)
        assert patches.served == "together"
        for i, task in enumerate(tasks):
            with patches.use(task):
                torch.testing.assert_close(found[i], model(batch)[i], rtol=bound, atol=bound)


@torch.no_grad()
def test_an_engine_without_tasks_serves_them_one_after_another(files, monkeypatch):
    from fastbn.engine.reference.engine import Reference

    monkeypatch.setattr(Reference, "tasks", False)
    name = "torchvision's basic blocks"
    patches = with_patches(base(name), files(name))
    found = patches.forward(x(), ["a", "b", "a", None, "b", "a"])
    assert patches.served == "task by task: the reference engine has no vectors by task"
    torch.testing.assert_close(found[4], alone(name, files(name)["b"])(x())[4], rtol=1e-11, atol=1e-11)


class Scaled(nn.Module):
    """A network whose own forward uses what a patch changes, as many channels as samples; in place if asked,
    and with a BatchNorm of batch statistics."""

    def __init__(self, track=True, way="times"):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4, track_running_stats=track)
        self.scale, self.way = nn.Parameter(torch.ones(4)), way
        self.register_buffer("fixed", torch.arange(4.0))

    def forward(self, x):
        y = self.conv(self.bn(self.conv(x.repeat(1, 1, 1, 1)))[:, :3])
        scale = (self.scale + self.fixed).view(-1, 1, 1)
        if self.way == "in place":
            y = y.clone()
            y.mul_(scale)
        else:
            y = y * scale
        return {"out": self.other(y)}


@pytest.mark.parametrize(
    "options, how",
    [
        ({}, "together"),
        ({"track": False}, "task by task: other takes the batch's statistics"),
        ({"way": "in place"}, "writes over what it reads"),
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_that_uses_what_a_patch_changes(options, how, mode, tmp_path):
    """It is right, together or not, and says why not; outputs in a dictionary."""

    def made(seed=0):
        torch.manual_seed(0)
        model = fastbn.freeze(Scaled(**options).double().eval(), "bn")
        model.scale.requires_grad_(True)
        with torch.no_grad():
            for i, p in enumerate(p for p in model.parameters() if p.requires_grad):
                p += seed * (i + 1) * 0.1
        return model

    patches = fastbn.Patches(fastbn.fuse(made(), "reference"))
    for seed in (1, 2):
        fastbn.save(made(seed), tmp_path / f"{seed}.safetensors")
        patches.add(str(seed), tmp_path / f"{seed}.safetensors")
    with mode():
        found = patches.forward(x(4), ["2", "1", "1", "2"])["out"]
    assert how in patches.served
    for task, rows in (("1", [1, 2]), ("2", [0, 3])):
        with torch.no_grad():
            want = made(int(task))(x(4)[rows])["out"]
        torch.testing.assert_close(found[rows], want, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_switching_is_one_copy(files):
    """Nothing is traced, packed or laid out anew: the same objects, addresses and programs."""
    name = "torchvision's bottlenecks"
    model = base(name, "native", dtype=torch.float32)
    plain = {task: alone(name, path, dtype=torch.float32) for task, path in files(name).items()}
    patches = with_patches(model, files(name))
    fused, batch = fused_forward(model), x(2, torch.float32)
    model(batch)
    programs, packs = fused._programs, {key: id(found[2]) for key, found in fused._packs["native"].items()}
    addresses = [t.data_ptr() for t in model.state_dict().values()]
    for task in ("a", "b", None, "c", "a"):
        patches.use(task)
        assert patches.current == task
        want = base(name, None, dtype=torch.float32) if task is None else plain[task]
        torch.testing.assert_close(model(batch), want(batch), rtol=1e-4, atol=1e-4)
        for (key, mine), theirs in zip(model.state_dict().items(), want.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs), key
    assert fused._programs.keys() == programs.keys()
    assert {key: id(found[2]) for key, found in fused._packs["native"].items()} == packs
    assert addresses == [t.data_ptr() for t in model.state_dict().values()]


@torch.no_grad()
def test_a_weight_that_a_patch_changes_is_packed_anew(files):
    """A frozen convolution is in a patch here: a program must not multiply by the weight of another."""
    name = "torchvision's basic blocks"
    given = files(name, "all")
    model = base(name, "reference")
    patches = with_patches(model, given)
    for task in ("a", "b", "a"):
        patches.use(task)
        want = fastbn.apply_patch(drawn(name).double(), given[task])
        torch.testing.assert_close(model(x()), want(x()), rtol=1e-10, atol=1e-10)
    found = patches.forward(x(), ["b", "a"] * 3)
    assert "changes a convolution's weight" in patches.served
    torch.testing.assert_close(found[1], model(x())[1], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_context_and_removal(files):
    name = "timm's"
    model = base(name)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    patches = with_patches(model, files(name))
    patches.use("a")
    with patches.use("b") as same:
        assert same.current == "b"
        with pytest.raises(KeyError), patches.use(None):
            raise KeyError
        assert patches.current == "b"
    assert patches.current == "a" and patches.names == ["a", "b", "c"]
    assert repr(patches) == "Patches(TimmNet, ['a', 'b', 'c'], current='a')"
    patches.remove("a")
    assert patches.current is None and patches.names == ["b", "c"]
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    with pytest.raises(UsageError, match="no patch is called 'a'; there are: b, c"):
        patches.use("a")
    with pytest.raises(UsageError, match="no patch is called 'a'"):
        patches.forward(x(1), ["a"])
    with pytest.raises(UsageError, match="name is a text that no other has"):
        patches.add("b", files(name)["a"])
    with pytest.raises(UsageError, match="2 tasks for"):
        patches.forward(x(3), ["b", "c"])
    patches.add("a", files(name)["a"])
    model.train()
    with pytest.raises(UsageError, match=r"\.eval\(\)"):
        patches.forward(x(1), ["a"])


@torch.no_grad()
def test_a_network_that_was_moved_cast_or_copied(files):
    """The patches follow it, and a copy of it has its own values."""
    name = "timm's"
    model = base(name, None, dtype=torch.float32)
    patches = with_patches(model, files(name))
    patches.use("a")
    model.double()
    wants = {task: alone(name, path, dtype=torch.float32).double() for task, path in files(name).items()}
    for task in ("b", "a"):
        patches.use(task)
        assert torch.equal(model(x()), wants[task](x()))
    other = copy.deepcopy(model)
    patches.use("b")
    assert torch.equal(other(x()), wants["a"](x())) and torch.equal(model(x()), wants["b"](x()))
    found = patches.forward(x(2), ["a", "b"])
    torch.testing.assert_close(found[0], wants["a"](x(2))[0], rtol=1e-11, atol=1e-11)


def test_training_goes_on_with_a_patch_in(files, tmp_path):
    """An optimizer moves what the network holds; saved, it is a patch like any other."""
    name = "timm's"
    model = base(name)
    patches = with_patches(model, files(name))
    patches.use("a")
    model.train()
    model(x()).square().mean().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    fastbn.save(model, tmp_path / "more.safetensors")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    want = model.eval()(x())
    patches.use("b")
    patches.add("more", tmp_path / "more.safetensors")
    with patches.use("more"):
        assert torch.equal(model(x()), want)


def test_the_projects_own_networks_and_inference_mode(tmp_path):
    """A file of a FastBNOnlyResNet is a patch; a network that took one in inference mode still trains."""
    fastbn.save(trained(resnet(8, 4), seed=1), tmp_path / "a.safetensors")
    model = fastbn.fuse(resnet(8, 4).eval(), "reference")
    with torch.inference_mode():
        patches = with_patches(model, {"a": tmp_path / "a.safetensors"})
        batch = x(4, torch.float32)
        found = patches.forward(batch, ["a", None, "a", None])
    assert patches.served == "together"
    want = fastbn.load(tmp_path / "a.safetensors", "reference").eval()(batch)
    torch.testing.assert_close(found[[0, 2]], want[[0, 2]], rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        made = fastbn.Patches(resnet(8, 4).eval())
    with pytest.raises(UsageError, match="inference mode"):
        made.add("a", tmp_path / "a.safetensors")
    model.train()(batch).square().mean().backward()
    with torch.no_grad():
        model.bn1.weight.sub_(model.bn1.weight.grad)
