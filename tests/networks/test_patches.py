"""A patch is what training changed of a network: saved from any, put back onto the same base alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hub_nets import NETWORKS, drawn
from nets import resnet
from patched_nets import trained
from torch import nn

import fastbn
from bench.oracle.networks import images
from fastbn.errors import MachineError, UsageError
from fastbn.patches.patch import read

pytestmark = pytest.mark.usefixtures("one_thread")


def x(dtype=torch.float32):
    return images(2, 16, 16, dtype=dtype)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("train", ["bn", "bn+output", "bn+random=2", "all"])
def test_a_patch_gives_the_same_bits(name, train, tmp_path):
    model = trained(drawn(name), train)
    fastbn.save(model, tmp_path / "patch.safetensors", task="test")
    again = fastbn.apply_patch(drawn(name), tmp_path / "patch.safetensors")
    for (key, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert torch.equal(model(x()), again(x()))


PROCESS = """
import sys, torch, fastbn
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from hub_nets import drawn
from bench.oracle.networks import images
for name, path in {files!r}:
    model = fastbn.apply_patch(fastbn.freeze(drawn(name)), path)
    for engine in ("stock", "reference"):
        fastbn.fuse(model, engine)
        with torch.no_grad():
            print(model(images(2, 16, 16, dtype=torch.float32)).numpy().tobytes().hex())
"""


@pytest.mark.slow
def test_in_a_fresh_process(tmp_path):
    """Plain and fused: the bits that the networks gave which were saved."""
    files, outputs = [], []
    for name in ("torchvision's bottlenecks", "timm's"):
        model = trained(drawn(name), "bn+output")
        files.append((name, str(tmp_path / f"{len(files)}.safetensors")))
        fastbn.save(model, files[-1][1])
        for engine in ("stock", "reference"):
            fastbn.fuse(model, engine)
            with torch.no_grad():
                outputs.append(model(x()).numpy().tobytes().hex())
    tests = Path(__file__).parents[1]
    code = [sys.executable, "-c", PROCESS.format(tests=str(tests), files=files)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=120, cwd=tests.parent)
    assert done.stdout.split() == outputs, done.stderr


def test_the_file_is_anybodys(tmp_path):
    """safetensors with the network's own names: it reads and loads without fastbn, and is small."""
    model = trained(drawn("torchvision's bottlenecks", width=16), "bn+output")
    fastbn.save(model, tmp_path / "patch.safetensors", task="flowers", accuracy=0.5, classes=["a", "b"])
    tensors = safetensors.torch.load_file(tmp_path / "patch.safetensors")
    other = drawn("torchvision's bottlenecks", width=16)
    found = other.load_state_dict(tensors, strict=False)
    assert not found.unexpected_keys
    assert all((".weight" in key and "conv" in key) or "downsample.0" in key for key in found.missing_keys)
    assert torch.equal(other(x()), model(x()))
    with safetensors.safe_open(tmp_path / "patch.safetensors", "pt") as file:
        assert file.metadata()["format"] == "fastbn-patch-1"
    patch = read(tmp_path / "patch.safetensors")
    assert patch.metadata == {"task": "flowers", "accuracy": 0.5, "classes": ["a", "b"]}
    whole = sum(t.nbytes for t in model.state_dict().values())
    assert (tmp_path / "patch.safetensors").stat().st_size < whole / 2


def test_another_base_is_refused_by_the_first_tensor_that_differs(tmp_path):
    path = tmp_path / "patch.safetensors"
    fastbn.save(trained(drawn("timm's")), path)
    other = drawn("timm's")
    with torch.no_grad():
        other.blocks[1][0].conv.weight[3, 0, 1, 2] += 1e-6
        other.head.bias[0] += 1
    before = {name: t.clone() for name, t in other.state_dict().items()}
    with pytest.raises(
        UsageError, match=r"blocks\.1\.0\.conv\.weight has other values.*\(and 1 more\)"
    ) as found:
        fastbn.apply_patch(other, path)
    assert str(found.value).count("\n") == 0
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())
    with pytest.warns(UserWarning, match=r"passes over: blocks\.1\.0\.conv\.weight has other values"):
        fastbn.apply_patch(other, path, strict=False)
    assert torch.equal(other.stem.bn.weight, trained(drawn("timm's")).stem.bn.weight)


MISFITS = {
    "another head": (lambda model: setattr(model, "head", nn.Linear(8, 9)), r"head\.weight is 5x8 .* 9x8"),
    "a layer less": (lambda model: delattr(model, "head_norm"), r"the patch has head_norm\.(weight|bias)"),
    "a layer more": (
        lambda model: setattr(model, "extra", nn.BatchNorm2d(3)),
        r"the network has extra\.weight, of which",
    ),
    "a head that stands elsewhere": (
        lambda model: setattr(model, "head", nn.Sequential(model.head)),
        r"the network has head\.0\.weight",
    ),
}


@pytest.mark.parametrize("alter, match", MISFITS.values(), ids=MISFITS)
def test_another_network_is_refused(alter, match, tmp_path):
    path = tmp_path / "patch.safetensors"
    fastbn.save(trained(drawn("timm's"), "bn+output"), path)
    other = drawn("timm's")
    alter(other)
    with pytest.raises(UsageError, match=match):
        fastbn.apply_patch(other, path)
    with pytest.warns(UserWarning, match="passes over"):
        fastbn.apply_patch(other, path, strict=False)
    assert torch.equal(other.stem.bn.weight, trained(drawn("timm's")).stem.bn.weight)


@pytest.mark.parametrize("kept", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("used", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_base_that_was_cast(kept, used, tmp_path):
    """A base of another dtype is known where one was cast from the other; one that was not is refused."""
    order = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    path = tmp_path / "patch.safetensors"
    saved = trained(drawn("timm's"), "bn+random=1").to(kept)
    fastbn.save(saved, path)
    base = drawn("timm's").to(kept) if order.index(used) >= order.index(kept) else drawn("timm's")
    base = base.to(used)
    if (kept, used) == (torch.float16, torch.bfloat16):  # neither is a rounding of the other
        with pytest.raises(UsageError, match=r"stem\.conv.weight has other values"):
            fastbn.apply_patch(base, path)
        return
    again = fastbn.apply_patch(base, path)
    for name, t in again.state_dict().items():
        if "bn" in name:
            assert torch.equal(t, saved.state_dict()[name].to(t.dtype)), name
    with torch.no_grad():
        base.head.weight[0, 0] += 0.5
    with pytest.raises(UsageError, match=r"head\.weight has other values"):
        fastbn.apply_patch(base, path)


def test_values_that_a_dtype_does_not_hold(tmp_path):
    model = trained(drawn("timm's"))
    with torch.no_grad():
        model.stem.bn.running_var[1] = 1e6
    fastbn.save(model, tmp_path / "patch.safetensors")
    with pytest.raises(UsageError, match=r"stem\.bn\.running_var.*float16"):
        fastbn.apply_patch(drawn("timm's").half(), tmp_path / "patch.safetensors")


def test_a_fused_network_and_its_wrappers(tmp_path):
    """fuse, DataParallel and torch.compile change neither the names nor the file."""
    plain, fused = trained(drawn("timm's")), fastbn.fuse(trained(drawn("timm's")), "reference")
    fused(x())
    wrapped = torch.compile(nn.DataParallel(trained(drawn("timm's"))), backend="eager")
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for model, path in zip((plain, fused, wrapped), files, strict=True):
        fastbn.save(model, path)
    first, *others = map(read, files)
    for other in others:
        assert other.said() == first.said() and other.tensors.keys() == first.tensors.keys()
        assert all(torch.equal(t, first.tensors[name]) for name, t in other.tensors.items())
    base = fastbn.fuse(fastbn.freeze(drawn("timm's")), "reference")
    before = base(x())
    fastbn.apply_patch(base, files[0])
    assert torch.equal(base(x()), fused(x())) and not torch.equal(before, base(x()))


def test_the_projects_own_networks(tmp_path):
    """fastbn.save of a FastBNOnlyResNet stays a checkpoint, which fastbn.load reads, and is a patch too."""
    model = trained(resnet(8, 4), "bn+random=1").eval()
    fastbn.save(model, tmp_path / "model.safetensors", epoch=3)
    assert torch.equal(fastbn.load(tmp_path / "model.safetensors").eval()(x()), model(x()))
    other = fastbn.apply_patch(resnet(8, 4).eval().double(), tmp_path / "model.safetensors").float()
    assert torch.equal(other(x()), model(x()))
    with pytest.raises(UsageError, match="another SHA-256"):
        fastbn.apply_patch(resnet(8, 4, seed=5), tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"conv1\.weight is 4x3x3x3 .* 8x3x3x3"):
        fastbn.apply_patch(resnet(8, 8), tmp_path / "model.safetensors")
    fastbn.save(trained(drawn("timm's")), tmp_path / "patch.safetensors")
    with pytest.raises(UsageError, match="fastbn-patch-1"):
        fastbn.load(tmp_path / "patch.safetensors")


def test_what_cannot_be_saved(tmp_path):
    path = tmp_path / "patch.safetensors"
    with pytest.raises(TypeError, match=r"torch.nn.Module, got dict"):
        fastbn.save({}, path)
    with pytest.raises(UsageError, match=r"metadata has to be texts.*nan"):
        fastbn.save(drawn("timm's"), path, accuracy=float("nan"))
    with pytest.raises(UsageError, match=r"metadata has to be.*tensor"):
        fastbn.save(drawn("timm's"), path, accuracy=torch.ones(1))
    with pytest.raises(UsageError, match="characters"):
        fastbn.save(drawn("timm's"), path, text=["a" * 60_000, "b" * 60_000])
    with pytest.raises(UsageError, match="meta device"), torch.device("meta"):
        fastbn.save(drawn("transformers'").to("meta"), path)
    with pytest.raises(UsageError, match="lazy"):
        fastbn.save(nn.LazyLinear(3), path)
    model = trained(drawn("timm's"))
    with torch.no_grad():
        model.stem.bn.running_mean[0] = float("nan")
    with pytest.raises(UsageError, match=r"stem\.bn\.running_mean holds NaN"):
        fastbn.save(model, path)
    with pytest.raises(MachineError, match="could not save"):
        fastbn.save(drawn("timm's"), tmp_path / "nowhere" / "patch.safetensors")
    assert not path.exists()


def test_buffers_and_modes_are_left_as_they_are(tmp_path):
    """A mask that may be infinite is kept; what is no part of the state dict is not; modes stay."""

    def made():
        model = drawn("timm's").train()
        model.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
        model.register_buffer("scratch", torch.zeros(3), persistent=False)
        return model

    model = trained(made())
    model.mask[0] = 2
    fastbn.save(model, tmp_path / "patch.safetensors")
    again = fastbn.apply_patch(made(), tmp_path / "patch.safetensors")
    assert again.mask.tolist() == [2, -float("inf")] and again.training
    assert all(p.requires_grad for p in again.parameters())
    assert "scratch" not in read(tmp_path / "patch.safetensors").tensors
