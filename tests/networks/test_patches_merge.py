"""What a patch holds, how far two are apart, and the average of several: its statistics are those of all the
batches."""

import pytest
import safetensors.torch
import torch
from hub_nets import drawn
from nets import resnet
from test_patches import trained

import fastbn
from bench.oracle.networks import images
from fastbn import patch
from fastbn.errors import UsageError
from fastbn.patches.merge import merged
from fastbn.patches.patch import read

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def two(tmp_path):
    for i, name in enumerate("ab"):
        model = trained(drawn("torchvision's basic blocks"), "bn+output+random=2", seed=i)
        fastbn.save(model, tmp_path / f"{name}.safetensors", task=name, accuracy=0.5 + i / 10)
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_statistics_are_pooled_as_those_of_all_batches():
    """Clients of unequal numbers of batches: the mean and variance of all their values together, exactly."""
    draw = torch.Generator().manual_seed(0)
    clients = [torch.randn(n * 50, 3, generator=draw, dtype=torch.float64) * 2 + n for n in (1, 4, 2)]
    states = [
        {
            "bn.weight": torch.full((3,), float(i)),
            "bn.running_mean": values.mean(0),
            "bn.running_var": values.var(0, correction=0),
            "bn.num_batches_tracked": torch.tensor(len(values) // 50),
        }
        for i, values in enumerate(clients)
    ]
    found, every = merged(states), torch.cat(clients)
    torch.testing.assert_close(found["bn.running_mean"], every.mean(0))
    torch.testing.assert_close(found["bn.running_var"], every.var(0, correction=0))
    assert found["bn.num_batches_tracked"] == 7 and found["bn.weight"].tolist() == [1, 1, 1]
    weighted = merged(states, [1, 0.25, 1e-9])
    torch.testing.assert_close(
        weighted["bn.running_mean"], (states[0]["bn.running_mean"] + states[1]["bn.running_mean"] / 4) / 1.25
    )
    torch.testing.assert_close(weighted["bn.weight"], torch.full((3,), 0.2))
    fresh = [state | {"bn.num_batches_tracked": torch.tensor(0)} for state in states[:2]]
    torch.testing.assert_close(
        merged(fresh)["bn.running_mean"], (fresh[0]["bn.running_mean"] + fresh[1]["bn.running_mean"]) / 2
    )


def test_a_merged_patch_applies(two, tmp_path):
    out = tmp_path / "mean.safetensors"
    fastbn.merge_patches(two, out, task="both")
    a, b, mean = map(read, (*two, out))
    for name in ("fc.weight", "bn1.bias", "layer1.0.conv1.weight"):
        torch.testing.assert_close(mean.tensors[name], (a.tensors[name] + b.tensors[name]) / 2)
    assert mean.metadata == {"merged": ["a.safetensors", "b.safetensors"], "task": "both"}
    assert mean.masks.keys() == a.masks.keys() and mean.sha256 == a.sha256
    fastbn.apply_patch(drawn("torchvision's basic blocks"), out)


def test_of_the_projects_own_networks(tmp_path):
    files = []
    for seed in range(2):
        files.append(tmp_path / f"{seed}.safetensors")
        fastbn.save(trained(resnet(8, 4), seed=seed), files[-1], epoch=3)
    fastbn.merge_patches(files, tmp_path / "mean.safetensors")
    found = fastbn.load(tmp_path / "mean.safetensors", "stock")
    a, b = (fastbn.load(path, "stock") for path in files)
    torch.testing.assert_close(found.bn1.weight, (a.bn1.weight + b.bn1.weight) / 2)
    assert fastbn.inspect(files[0]).metadata == {"epoch": 3}
    assert fastbn.inspect(files[0]).numbers["γ"] == sum(
        p.numel() for name, p in a.named_parameters() if "bn" in name and name.endswith("weight")
    ) + sum(p.numel() for name, p in a.named_parameters() if name.endswith("downsample.1.weight"))


def test_inspect(two):
    held = fastbn.inspect(two[0])
    assert held.network == "VisionResNet" and held.metadata == {"task": "a", "accuracy": 0.5}
    assert held.tensors["fc.weight"] == ("float32", (5, 16)) and held.bytes == two[0].stat().st_size
    channels = 8 * 3 + 16 * 3
    assert [held.numbers[kind] for kind in ("γ", "β", "running_mean", "running_var")] == [channels] * 4
    assert held.numbers["num_batches_tracked"] == 6
    random = 2 * sum(held.tensors[name][1][0] // 2 for name in held.entries)
    assert held.numbers["other parameters"] == 5 * 16 + 5 + random
    assert held.entries["conv1.weight"] == 16 and set(held.entries) == set(held.frozen)
    assert "SHA-256" in str(held) and "accuracy: 0.5" in str(held)


def test_the_difference(two, tmp_path):
    found = fastbn.diff_patches(*two)
    a, b = map(read, two)
    gammas = torch.cat(
        [b.tensors[n] - t for n, t in a.tensors.items() if "bn" in n and n.endswith(".weight")]
    )
    down = b.tensors["layer2.0.downsample.1.weight"] - a.tensors["layer2.0.downsample.1.weight"]
    assert found.distance["γ"][0] == pytest.approx(float(torch.cat([gammas, down]).norm()), rel=1e-5)
    assert found.same_base and found.alone == ()
    assert fastbn.diff_patches(two[0], two[0]).distance["γ"][0] == 0
    fastbn.save(trained(drawn("torchvision's basic blocks", seed=1)), tmp_path / "c.safetensors")
    other = fastbn.diff_patches(two[0], tmp_path / "c.safetensors")
    assert not other.same_base and "fc.weight" in other.alone and "conv1.weight" in other.alone


def test_what_cannot_be_merged(two, tmp_path):
    out = tmp_path / "out.safetensors"
    fastbn.save(trained(drawn("torchvision's basic blocks", seed=1), "bn+output+random=2"), tmp_path / "base")
    fastbn.save(trained(drawn("torchvision's basic blocks"), "bn+random=2"), tmp_path / "head")
    for paths, weights, match in (
        (two[:1], None, "two patches or more, got 1"),
        (two, [1], "positive weight for each of 2"),
        (two, [1, -1], "positive weight"),
        ((two[0], tmp_path / "base"), None, "their frozen weights differ"),
        ((two[0], tmp_path / "head"), None, "frozen weights differ|not the same kind"),
    ):
        with pytest.raises(UsageError, match=match):
            fastbn.merge_patches(paths, out, weights)
    assert not out.exists()


def test_the_command(two, tmp_path, capfd):
    a, b = map(str, two)
    base, out = tmp_path / "base.pth", tmp_path / "whole.safetensors"
    model = drawn("torchvision's basic blocks")
    torch.save(model.state_dict(), base)
    assert patch.main(["show", a]) == 0 and "a patch of VisionResNet" in capfd.readouterr().out
    assert patch.main(["diff", a, b]) == 0 and "the same base" in capfd.readouterr().out
    assert patch.main(["merge", a, b, "--out", str(tmp_path / "m"), "--weights", "1", "3"]) == 0
    assert "merged: ['a.safetensors', 'b.safetensors']" in capfd.readouterr().out
    assert patch.main(["apply", a, "--base", str(base), "--out", str(out)]) == 0
    model.load_state_dict(safetensors.torch.load_file(out))
    x = images(2, 16, 16, dtype=torch.float32)
    assert torch.equal(model(x), fastbn.apply_patch(drawn("torchvision's basic blocks"), a)(x))
    torch.save(drawn("torchvision's basic blocks", seed=1).state_dict(), tmp_path / "other.pth")
    capfd.readouterr()
    for words, match in (
        (["show", str(base)], "not a readable safetensors file"),
        (["apply", a, "--out", str(out)], "--base"),
        (["apply", a, "--base", str(tmp_path / "other.pth"), "--out", str(out)], "conv1.weight has other"),
        (["merge", a, "--out", str(out)], "two patches or more"),
        (["apply", a, "--base", str(base), "--out", str(tmp_path / "no" / "x")], "could not write"),
    ):
        assert patch.main(words) == 2
        out_text, err = capfd.readouterr()
        assert match in err and err.count("\n") == 1 and not out_text, err
