"""python -m fastbn.analyze: the page says what the runs' files say, computed here anew, and a folder that
is no run is refused."""

import base64
import json
import re
import shutil
import statistics
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from report_pages import SECTIONS, refused, tree
from runs import REPOSITORY, checkpoint, metrics, train

import fastbn
from fastbn.analysis import runs as runs_of
from fastbn.analysis.curves import curves
from fastbn.analyze import main
from fastbn.data.digits import load_digits
from fastbn.errors import UsageError
from fastbn.page import pictures

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """BN only with seeds 0 and 1, and everything: not to be written to."""
    root = tmp_path_factory.mktemp("runs")
    assert (
        train(root / "bn-s0") == 0
        and train(root / "bn-s1", "--seed", "1") == 0
        and train(root / "all-s0", "--train", "all") == 0
    )
    return [root / name for name in ("bn-s0", "bn-s1", "all-s0")]


@pytest.fixture(scope="module")
def found(pair, tmp_path_factory):
    """Their page."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main([*map(str, pair), "-o", str(out), "--thresholds", "0.05,0.5"]) == 0
    return out.read_text(encoding="utf-8")


def tables(content, section):
    """Return each table of a section: header and rows of texts."""
    (own,) = [one for one in tree(content).iter("section") if one.get("id") == section]
    return [
        [["".join(cell.itertext()) for cell in row] for row in one.iter("tr")] for one in own.iter("table")
    ]


def gamma_of(out):
    """Return γ of every channel, from the checkpoint's flat vector alone: of each BatchNorm its weight, then
    its bias."""
    names = [name for name, _ in fastbn.load(out).named_parameters()]
    tensors, header = checkpoint(out)
    shapes = {name: p.shape for name, p in fastbn.load(out).named_parameters()}
    stored = [name for name in names if name in header["trains"] or re.search(r"bn\d|downsample\.1", name)]
    parts = dict(
        zip(stored, tensors["parameters"].split([shapes[name].numel() for name in stored]), strict=True)
    )
    return [
        float(g) for name in stored if re.search(r"(bn\d|downsample\.1)\.weight", name) for g in parts[name]
    ]


def test_the_page_stands_alone(found):
    assert [one.get("id") for one in tree(found).iter("section")] == SECTIONS
    assert not re.search(r"https?:|<link|<script|@import|url\(", found)
    assert set(re.findall(r'src="([^,"]*),', found)) == {"data:image/png;base64"}
    assert all(one.get("aria-label") for one in tree(found).iter("svg")) and all(
        one.get("alt") for one in tree(found).iter("img")
    )
    assert str(sys.prefix) not in found and "nan" not in re.sub(r"base64,[^\"]*", "", found).lower().split()


def test_results_and_seeds(found, pair):
    header, *rows = tables(found, "result")[0]
    assert [row[0] for row in rows] == [
        "BatchNorm only, 2 seeds, seed 0",
        "BatchNorm only, 2 seeds, seed 1",
        "everything, seed 0",
    ]
    for row, out in zip(rows, pair, strict=True):
        last = metrics(out)[-1]
        cells = dict(zip(header, row, strict=True))
        assert (cells["test accuracy"], cells["training accuracy"]) == (
            f"{last['test_accuracy']:.4f}",
            f"{last['train_accuracy']:.4f}",
        )
        assert cells["epochs"] == "2" and cells["trained"].endswith("of 5,214")
        assert float(cells["seconds"]) == pytest.approx(
            sum(line["seconds"] for line in metrics(out)), rel=5e-3
        )
    ends = [metrics(out)[-1]["test_accuracy"] for out in pair[:2]]
    over = f"{statistics.mean(ends):.4f} ± {statistics.stdev(ends):.4f}"
    assert tables(found, "result")[1][1:] == [["BatchNorm only, 2 seeds", "2", over]]


def test_curves(pair):
    bn, everything = curves([runs_of.read(out) for out in pair])
    lines = [metrics(out) for out in pair]
    for epoch in range(2):
        own = [line[epoch]["test_accuracy"] for line in lines[:2]]
        assert (bn.mean[epoch], bn.std[epoch]) == pytest.approx((statistics.mean(own), statistics.stdev(own)))
        assert bn.seconds[epoch] == pytest.approx(
            statistics.mean(sum(one["seconds"] for one in line[: epoch + 1]) for line in lines[:2])
        )
    assert (bn.runs, everything.runs, bn.joules, everything.std.tolist()) == (2, 1, None, [0.0, 0.0])
    assert curves([runs_of.read(pair[0])], "val_accuracy") == []


def test_gamma(found, pair):
    header, *rows = tables(found, "batchnorm-and")[0]
    for row, out in zip(rows, (pair[0], pair[2]), strict=True):
        gamma = gamma_of(out)
        cells = dict(zip(header, row, strict=True))
        assert cells["channels"] == str(len(gamma)) == "84"
        for t in (0.01, 0.05, 0.1):
            assert cells[f"|γ| < {t:g}"] == f"{sum(abs(g) < t for g in gamma) / len(gamma):.4f}"
        assert cells["γ, mean ± std"] == f"{statistics.mean(gamma):.3f} ± {statistics.pstdev(gamma):.3f}"


def test_dead_features(found, pair):
    test = load_digits()[1].limit(32)
    x = (
        test.images.permute(0, 3, 1, 2).float() / 255 - torch.tensor(test.mean).view(3, 1, 1)
    ) / torch.tensor(test.std).view(3, 1, 1)
    _, *rows = tables(found, "dead-features")[0]
    for row, out in zip(rows, (pair[0], pair[2]), strict=True):
        plain = fastbn.load(out, engine="stock").eval().to_torch()
        (output,) = (node for node in plain.graph.nodes if node.op == "output")
        output.args = (
            tuple(node for node in plain.graph.nodes if getattr(node.target, "__name__", "") == "relu"),
        )
        plain.recompile()
        with torch.no_grad():
            zs = plain(x)
        channels = [z[:, c] for z in zs for c in range(z.shape[1])]
        dead, always = sum(bool((z <= 0).all()) for z in channels), sum(bool((z > 0).all()) for z in channels)
        assert row[1:] == [
            str(len(channels)),
            str(dead),
            f"{dead / len(channels):.4f}",
            str(always),
            f"{always / len(channels):.4f}",
            "32",
        ]


def test_pruning(found, pair):
    for table, out in zip(tables(found, "pruning"), (pair[0], pair[2]), strict=True):
        assert [row[0] for row in table[1:]] == ["none", "0.05", "0.5"]
        gamma = gamma_of(out)
        assert [row[1] for row in table[1:]] == [
            f"{sum(abs(g) < t for g in gamma) / len(gamma):.4f}" for t in (0, 0.05, 0.5)
        ]
        assert table[1][2] == f"{metrics(out)[-1]['test_accuracy']:.4f}"
        smaller = fastbn.prune(fastbn.load(out), 0.5)
        assert table[3][4] == f"{sum(p.numel() for p in smaller.parameters()):,}"


def test_recipe(found, pair):
    (table,) = tables(found, "recipe-and-machine")
    assert table[0] == ["setting", "BatchNorm only, 2 seeds", "everything"]
    engines = [json.loads((out / "config.json").read_text())["engine"] for out in pair[::2]]
    assert ["train", "bn", "all"] in table and ["engine", *engines] in table
    assert ["batch size", "24", "24"] in table and ["momentum", "0.9", "0.9"] in table
    differ = [len(set(row[1:])) > 1 for row in table[1:]]
    assert differ == sorted(differ, reverse=True) and differ[0] and not differ[-1]


def test_pictures_are_what_they_should_be(found):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 3, 4, 3), np.uint8)
    grid = pictures.grid(images, 3)
    assert grid.shape == (7, 14, 4)
    assert (
        (grid[4:7, 5:9, :3] == images[4]).all()
        and grid[3].max() == 0 == grid[4:, 10:].max()
        and grid[0, 0, 3] == 255
    )
    file = pictures.png(grid)
    assert file[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", file[16:24]) == (14, 7)
    size = struct.unpack(">I", file[33:37])[0]
    raw = np.frombuffer(zlib.decompress(file[41 : 41 + size]), np.uint8).reshape(7, 57)
    assert (raw[:, 0] == 0).all() and (raw[:, 1:].reshape(7, 14, 4) == grid).all()
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    import io

    for encoded in re.findall(r"base64,([^\"]*)", found):
        image.open(io.BytesIO(base64.b64decode(encoded))).load()


def test_without_data(pair, tmp_path, capfd):
    out = tmp_path / "short.html"
    assert main([str(pair[0]), "-o", str(out), "--no-data"]) == 0
    content = out.read_text(encoding="utf-8")
    assert [one.get("id") for one in tree(content).iter("section")] == [
        "result",
        "curves",
        "batchnorm-and",
        "recipe-and-machine",
    ]
    assert "without dead features" in content and "1 run" in capfd.readouterr().out


def test_the_headline_over_seeds_is_their_mean(found, pair):
    accuracies = [metrics(out)[-1]["test_accuracy"] for out in pair[:2]]
    said = (
        f"{statistics.fmean(accuracies):.4f} ± {statistics.stdev(accuracies):.4f} over 2 seeds after 2 epochs"
    )
    assert f"BatchNorm only, 2 seeds: test accuracy {said}." in found
    assert f"Everything: test accuracy {metrics(pair[2])[-1]['test_accuracy']:.4f} after 2 epochs." in found


@pytest.mark.parametrize("name", ["resnet14-cifar10-bn-s0", "torri-lstm-bn-s0"])
def test_a_network_that_ships_without_its_epochs(name, tmp_path):
    """It is read as a folder and as a file; with BatchNorms over images and over words."""
    place, out = REPOSITORY / "pretrained" / name, tmp_path / "x.html"
    for path in (place, place / "checkpoint.safetensors"):
        assert main([str(path), "--no-data", "-o", str(out)]) == 0
        content = out.read_text(encoding="utf-8")
        assert [one.get("id") for one in tree(content).iter("section")] == [
            SECTIONS[0],
            SECTIONS[2],
            SECTIONS[6],
        ]
        assert "a network without the epochs of its run" in content


def test_an_earlier_run_has_no_trajectories(pair, tmp_path):
    old = shutil.copytree(pair[0], tmp_path / "old")
    lines = [{name: value for name, value in line.items() if name != "norms"} for line in metrics(old)]
    (old / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(old), "-o", str(tmp_path / "old.html"), "--no-data"]) == 0
    assert "Over training" not in (tmp_path / "old.html").read_text(encoding="utf-8")


def test_what_is_no_finished_run(pair, tmp_path, capfd):
    refused([tmp_path / "missing"], capfd, "missing", "no such folder")
    refused([tmp_path], capfd, str(tmp_path), "holds no run")
    for name in runs_of.FILES:
        half = shutil.copytree(pair[0], tmp_path / f"without {name}")
        (half / name).unlink()
        refused([half], capfd, "half-written", name, "--resume")
    short = shutil.copytree(pair[0], tmp_path / "short")
    (short / "metrics.jsonl").write_text((short / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    refused([short], capfd, "half-written", "1 epochs", "2 in summary.json")
    for content in ("{", "[]\n", '{"epoch": 0}\n'):
        (short / "metrics.jsonl").write_text(content)
        refused([short], capfd, "metrics.jsonl: line 1")
    broken = shutil.copytree(pair[0], tmp_path / "broken")
    (broken / "summary.json").write_text('{"epochs": 2}')
    refused([broken], capfd, "summary.json", "test_accuracy")
    (broken / "summary.json").write_text((pair[0] / "summary.json").read_text())
    (broken / "checkpoint.safetensors").write_bytes(b"cut")
    refused([broken, "-o", tmp_path / "x.html"], capfd, "checkpoint.safetensors", "truncated")
    assert not (tmp_path / "x.html").exists()


def test_wrong_arguments(pair, tmp_path, capfd):
    refused([], capfd, "RUN")
    for given in ("0.5,0.1", "x", "-1", "", "nan"):
        refused([pair[0], f"--thresholds={given}"], capfd, "thresholds", "0.01,0.1")
    refused([pair[0], "--layer", "layer9", "-o", tmp_path / "x.html"], capfd, "layer9", "layer1.0.bn1")
    refused(
        [pair[0], "--no-data", "-o", tmp_path / "no" / "x.html"], capfd, "cannot write", "choose another -o"
    )
    moved = shutil.copytree(pair[0], tmp_path / "cifar")
    config = json.loads((moved / "config.json").read_text()) | {
        "dataset": "cifar10",
        "data_dir": str(tmp_path),
    }
    (moved / "config.json").write_text(json.dumps(config))
    refused([moved, "-o", tmp_path / "x.html"], capfd, str(tmp_path), "--data-dir")
    refused([moved, "--data-dir", tmp_path, "-o", tmp_path / "x.html"], capfd, "CIFAR-10", str(tmp_path))
    with pytest.raises(UsageError):
        runs_of.read(tmp_path / "missing")
