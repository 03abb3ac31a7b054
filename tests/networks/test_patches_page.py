"""docs/patches.md: its blocks run as they stand there, in turn."""

import re

import torch
from hub_nets import drawn
from runs import REPOSITORY
from test_patches import trained

import fastbn
from bench.oracle.networks import images

PAGE = (REPOSITORY / "docs" / "patches.md").read_text(encoding="utf-8")


def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fastbn.save(trained(drawn("timm's"), "bn+output"), "birds.safetensors")
    names = {"base": lambda: drawn("timm's"), "images": images(4, 16, 16, dtype=torch.float32)}
    with torch.no_grad():
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S):
            exec(compile(block, "docs/patches.md", "exec"), names)
    assert names["patches"].served == "together" and "timm/resnet18" in capsys.readouterr().out
    with torch.no_grad():
        torch.testing.assert_close(names["network"](names["images"]), names["served"](names["images"]))
    x, patches = names["images"], names["patches"]
    with torch.no_grad(), patches.use("birds"):
        assert torch.equal(names["birds"], patches.model(x))
        torch.testing.assert_close(names["logits"][3], names["birds"][3])
