"""python -m bench.record: finished runs become records and networks, those under way folders to continue."""

import json
import shutil

import pytest
import torch
from runs import REPOSITORY, STEPS, at_call, checkpoint, contents, metrics, train

from bench.record import main
from bench.records import rows
from bench.records.conditions import RESULTS
from bench.records.keep import keep
from bench.records.networks import MARKERS, networks
from bench.records.runs import histogram, relative
from fastbn.experiments.records import folder_of, load, read
from fastbn.training import checked_file
from fastbn.training.checkpoint import load as network_of
from fastbn.training.step import TrainingStep

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Runs as an experiment leaves them, their folders named by absolute paths: BN-only, the output alone,
    and one that stopped."""
    root = tmp_path_factory.mktemp("machine") / "reproduction"
    data = ("--data-dir", str(root / "data"))
    assert (
        train(root / "tiny" / "8-bn-s0", *data)
        == train(root / "tiny" / "8-output-s0", "--train", "output", *data)
        == 0
    )
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, TrainingStep, "__call__", 2 * STEPS + 1, lambda: (_ for _ in ()).throw(MemoryError))
        assert train(root / "tiny" / "8-bn-s1", "--seed", "1", *data, epochs=4) == 2
    return root


@pytest.fixture
def kept(tree, tmp_path):
    """(the folders of records, of runs under way, of networks; what was said)."""
    places = [tmp_path / name for name in ("results", "reproduction", "pretrained")]
    places[0].mkdir()
    places[2].mkdir()
    (places[2] / "README.md").write_text(f"Before.\n{MARKERS[0]}\nold\n{MARKERS[1]}\nAfter.\n")
    return (*places, list(keep([tree], *places)))


def test_finished_runs_become_records(kept, tree):
    results, *_ = kept
    assert [path.name[:-16] for path in sorted(results.iterdir())] == [
        "run-tiny-8-bn-s0",
        "run-tiny-8-output-s0",
    ]
    for path in results.iterdir():
        run, folder = load(path), tree / "tiny" / path.name.removeprefix("run-tiny-")[:-16]
        lines = metrics(folder)
        assert run.finished and [line["test_accuracy"] for line in run.epochs] == [
            line["test_accuracy"] for line in lines
        ]
        assert (
            run.identity == folder_of(folder).identity
            and run.summary["instructions"]
            and "norms" not in run.epochs[0]
        )
        assert str(tree.parent) not in path.read_text()
    gammas = [
        m.weight
        for m in network_of(tree / "tiny" / "8-bn-s0").modules()
        if isinstance(m, torch.nn.BatchNorm2d)
    ]
    assert sum(load(next(results.glob("*-bn-*"))).gammas["counts"]) == sum(
        weight.numel() for weight in gammas
    )


def test_a_run_under_way_is_kept_and_continues(kept, tree, tmp_path):
    _, under_way, _, said = kept
    copy = under_way / "tiny" / "8-bn-s1"
    assert sorted(path.name for path in copy.iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "metrics.jsonl",
    ]
    assert any("epoch 2 of 4, kept" in line for line in said)
    assert str(tree.parent) not in (copy / "config.json").read_text() + json.dumps(checkpoint(copy)[1])
    assert train(copy, "--seed", "1", "--resume", epochs=4) == 0
    alone = tmp_path / "alone"
    assert train(alone, "--seed", "1", epochs=4) == 0
    assert torch.equal(checkpoint(copy)[0]["parameters"], checkpoint(alone)[0]["parameters"])
    assert [line["train_loss"] for line in metrics(copy)] == [line["train_loss"] for line in metrics(alone)]


def test_finished_bn_only_networks_are_kept(kept, tree):
    results, _, pretrained, _ = kept
    (folder,) = (path for path in pretrained.iterdir() if path.is_dir())
    tensors, header = checked_file.read(folder / "checkpoint.safetensors")
    assert folder.name == "tiny-8-bn-s0" and not [name for name in tensors if name.startswith("optimizer")]
    assert str(tree.parent) not in json.dumps(header)
    mine, its = (network_of(run).state_dict() for run in (folder, tree / "tiny" / "8-bn-s0"))
    assert all(torch.equal(mine[name], its[name]) for name in its)
    text = (pretrained / "README.md").read_text()
    accuracy = metrics(tree / "tiny" / "8-bn-s0")[-1]["test_accuracy"]
    assert text.startswith(f"Before.\n{MARKERS[0]}\n| network |") and text.endswith(f"{MARKERS[1]}\nAfter.\n")
    assert "| `tiny-8-bn-s0` | digits, " in text and f" | {accuracy:.4f} | — | " in text and "old" not in text
    assert [run.place.name[:-16] for _, run in networks(pretrained, read([results]))] == ["run-tiny-8-bn-s0"]


def test_the_same_again_changes_nothing(kept, tree):
    *places, _ = kept

    def files():
        return {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}

    before = files()
    list(keep([tree], *places))
    assert before == files()


def test_when_a_run_ends_its_record_takes_the_copy_s_place(kept, tree, tmp_path):
    results, under_way, pretrained, _ = kept
    source = tmp_path / "later" / "tiny" / "8-bn-s1"
    shutil.copytree(under_way / "tiny" / "8-bn-s1", source)
    assert train(source, "--seed", "1", "--resume", epochs=4) == 0
    list(keep([tmp_path / "later"], results, under_way, pretrained))
    assert not (under_way / "tiny" / "8-bn-s1").exists() and source.exists()
    assert len(list(results.glob("run-tiny-8-bn-s1-*.json"))) == 1 and (pretrained / "tiny-8-bn-s1").is_dir()


def test_what_lies_there_is_not_overwritten_by_less(kept, tree, tmp_path):
    results, under_way, pretrained, _ = kept
    copy = under_way / "tiny" / "8-bn-s1"
    lines = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(
        lines + lines.splitlines()[-1].replace('"epoch": 1', '"epoch": 2') + "\n"
    )
    further = contents(copy)
    assert any("further than" in line for line in keep([tree], results, under_way, pretrained))
    assert contents(copy) == further
    assert list(keep([under_way], results, under_way, pretrained)) == [f"{copy}: epoch 3 of 4, left as it is"]
    config = json.loads((copy / "config.json").read_text()) | {"lr": 0.7}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds a run with other settings"):
        list(keep([tree], results, under_way, pretrained))


def test_a_checkpoint_that_is_too_large_is_left_out_and_said(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.records.keep.LARGEST", 1_000)
    (tmp_path / "results").mkdir()
    said = list(keep([tree], tmp_path / "results", tmp_path / "reproduction", tmp_path / "pretrained"))
    assert any("more than the 1,000 that are kept" in line for line in said)
    assert not (tmp_path / "reproduction").exists() and not (tmp_path / "pretrained").exists()


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert "holds no run" in capsys.readouterr().err


def test_absolute_paths_become_names():
    config = {"out": "/a/b", "data_dir": "/c", "vectors": "/d/v.txt", "weights": "e/w", "depth": 14}
    assert relative(config, "runs/b") == {
        "out": "runs/b",
        "data_dir": "data",
        "vectors": "v.txt",
        "weights": "e/w",
        "depth": 14,
    }
    assert relative({"out": "runs/x", "vectors": None}, "runs/y") == {"out": "runs/x", "vectors": None}


def test_a_histogram_counts_every_value():
    values = torch.tensor([-7.0, -1.0, -0.001, 0.0, 0.009, 0.01, 0.049, 2.999, 3.0, 50.0])
    counted = histogram(values)
    bins = {round(counted["low"] + k * counted["width"], 2): n for k, n in enumerate(counted["counts"]) if n}
    assert bins == {-1.0: 2, -0.05: 1, 0.0: 4, 2.95: 3} and counted["below_0.01"] == pytest.approx(0.3)
    assert histogram(torch.empty(0)) == {}


def test_every_network_here_has_a_record_and_stands_in_the_table():
    from bench.records.networks import table

    text = (REPOSITORY / "pretrained" / "README.md").read_text()
    assert text.split(MARKERS[0])[1].split(MARKERS[1])[0].strip() == table(REPOSITORY / "pretrained")
    assert len(networks(REPOSITORY / "pretrained", read([REPOSITORY / "bench" / "results"]))) == text.count(
        "| `"
    )


def test_every_record_that_is_kept_can_be_read():
    """Those of formats before today's too: their conditions, and a figure in every row."""
    kept = sorted(RESULTS.glob("*.json"))
    assert len(kept) > 30
    for path in kept:
        if path.name.startswith("run-"):
            assert load(path).finished
        elif path.name.startswith("runs-"):
            found = json.loads(path.read_text(encoding="utf-8"))
            assert found["config"]["depth"] and found["date"]
            assert all(row["device"] and row["versions"] and 0 < row["mean"] <= 1 for row in found["devices"])
        elif path.name.startswith("architectures-"):
            found = json.loads(path.read_text(encoding="utf-8"))
            assert {"device", "versions", "libraries", "commit", "date"} <= found["conditions"].keys()
            assert all(row["library"] and row["name"] for row in found["rows"])
        else:
            (record,) = rows.load([path])
            assert record.rows and {"device", "versions", "commit", "date"} <= record.conditions.keys(), path
            for row in record.rows:
                told = row.failed, row.seconds, row.peak_memory_bytes, row.accuracy, row.more
                assert any(told) and row.level in rows.LEVELS and row.provider and row.case, path


def test_records_from_before_the_format(tmp_path):
    """Figures of the README, as the files hold them."""
    found = {
        path.stem: rows.load([path])[0].rows
        for path in RESULTS.glob("*.json")
        if not path.name.startswith(("run", "architectures"))
    }
    memory = {row.provider: row for row in found["memory-resnet32-32px-b128-native-2026-11-21"]}
    assert round(memory["fastbn native"].peak_memory_bytes / 1e6) == 224
    (whole, cut) = found["plan-resnet110-cpu-2026-11-21"]
    assert whole.provider == "whole" and round(1e3 * cut.seconds) == 511
    assert round(cut.peak_memory_bytes / 1e6) == 394 and round(cut.more["predicted_bytes"] / 1e6) == 341
    assert [row.provider for row in found["ranks-resnet32-32px-b128-native-2026-11-21"]] == [
        "1 ranks",
        "2 ranks",
    ]
    steps = found["step-resnet56-32px-b128-native-2026-11-21"]
    assert {row.trains for row in steps if row.provider.startswith("stock-full")} == {"all"}
    assert all(row.q1 <= row.seconds <= row.q3 and row.n for row in steps)
    (tmp_path / "x.json").write_text('{"format": 7, "rows": []}')
    with pytest.raises(ValueError, match="not a benchmark record of format"):
        rows.load([tmp_path / "x.json"])
