"""Patches whose digest is right and whose content is not, and files of other sizes: refused in one line."""

import pytest
import torch
from damage import PLACES, put, refused
from hub_nets import drawn
from patched_nets import trained

import fastbn
from fastbn.errors import UsageError
from fastbn.patches.patch import MOST_BYTES, PATCH
from fastbn.training import checked_file

pytestmark = pytest.mark.usefixtures("one_thread")


def into(*keys, **values):
    def alter(tensors, said):
        for key in keys:
            said = said[key]
        said.update(values)

    return alter


def tensor(name, value):
    return lambda tensors, said: tensors.update({name: value(tensors[name]) if name in tensors else value})


BN = "stem.bn.running_var"
SIGNED = {
    "no header": lambda tensors, said: said.clear(),
    "a header without metadata": lambda tensors, said: said.pop("metadata"),
    "metadata too deep": into("metadata", a=[[[[[[[[[1]]]]]]]]]),
    "trains twice": lambda tensors, said: said["trains"].append(said["trains"][0]),
    "trains what is not there": lambda tensors, said: said["trains"].append("no\nsuch"),
    "entries of what has none": lambda tensors, said: said["entries"].append("head.bias"),
    "entries cut": tensor("stem.conv.weight.entries", lambda t: t[:-1]),
    "entries without a value each": tensor("stem.conv.weight", lambda t: t[:-1]),
    "a digest that is none": into("frozen", "tensors", **{"stem.conv.weight": "float32 8x3x3x3 zz"}),
    "too few digests": into("frozen", "tensors", **{"stem.conv.weight": "float32 8x3x3x3 " + "0" * 12}),
    "a huge shape": into("frozen", "tensors", **{"stem.conv.weight": "float16 9999999999x99 " + "0" * 12}),
    "another SHA-256": into("frozen", sha256="0" * 64),
    "of the base and stored": into("frozen", "tensors", **{"stem.bn.bias": "float16 8 " + "0" * 12}),
    "a tensor that is none's": tensor("unknown", torch.zeros(3)),
    "no γ": lambda tensors, said: tensors.pop("stem.bn.weight"),
    "γ that are no numbers": tensor("stem.bn.weight", lambda t: t * float("nan")),
    "an infinite variance": tensor(BN, lambda t: t / 0),
    "a negative variance": tensor(BN, lambda t: -t),
    "statistics that are whole": tensor(BN, lambda t: t.long()),
    "a count that is none": tensor("stem.bn.num_batches_tracked", lambda t: t.int()),
    "a negative count": tensor("stem.bn.num_batches_tracked", lambda t: t - 99),
    "eight bits": tensor("stem.bn.weight", lambda t: t.to(torch.float8_e5m2)),
}


@pytest.mark.parametrize("alter", SIGNED.values(), ids=SIGNED)
def test_a_patch_that_is_signed_and_wrong(alter, tmp_path):
    """One line, and the network is as it was: in another dtype too, whose digests the file may lack."""
    path = tmp_path / "patch.safetensors"
    fastbn.save(trained(drawn("timm's"), "bn+output+random=1"), path)
    _, tensors, said = checked_file.verified(path, (PATCH,), "a patch", MOST_BYTES)
    alter(tensors, said)
    checked_file.write(path, tensors, said, PATCH)
    for model in (drawn("timm's"), drawn("timm's").half()):
        before = {name: t.clone() for name, t in model.state_dict().items()}
        if said.get("frozen", {}).get("sha256") == "0" * 64 and model.head.weight.dtype == torch.float16:
            continue  # of a rounded base each tensor has its digest
        with pytest.raises(UsageError) as found:
            fastbn.apply_patch(model, path)
        assert str(found.value).isprintable() and len(str(found.value)) < 600
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("place", PLACES)
def test_only_a_file_of_its_size_is_read(place, tmp_path):
    path = tmp_path / "patch.safetensors"
    fastbn.save(trained(drawn("timm's")), path)
    put(path, place)
    for call in (fastbn.inspect, lambda path: fastbn.apply_patch(drawn("timm's"), path)):
        refused(call, path, match=r"patch\.safetensors")
