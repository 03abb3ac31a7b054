"""Whatever is done to a file that a command reads, it is refused in one line, or read; nothing of the user's
changes, and it is soon over.

KINDS is a registry: a kind of file has a way to make it, ways to damage it, and the commands that read it.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import PLACES, bounded, draws_of, mutated, of_json, of_value, one, put
from hub_nets import drawn

from fastbn import analyze, apply_patch, evaluate, freeze, patch, save
from fastbn.cli import command as command_line
from fastbn.data import datasets
from fastbn.experiments.__main__ import main as experiments
from fastbn.patches.patch import PATCH
from fastbn.train import main
from fastbn.training import checked_file

pytestmark = pytest.mark.usefixtures("one_thread")

CODES = (0, 2)
EVERY, SLOW = 200, 3000  # mutations in all


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: `made(folder)` puts a sound one, and all that its commands need, into a folder and
    returns its path."""

    made: Callable[[Path], Path]
    commands: tuple[Callable[[Path], int], ...]  # each takes the folder
    damage: tuple[Callable[..., bytes], ...] = (mutated,)  # (its content, draws) -> other content
    exact: bool = (
        False  # whether it is signed: a file that was altered and is read all the same is the same file
    )


KINDS: dict[str, Kind] = {}


def in_run(name):
    def made(folder):
        shutil.copytree(in_run.finished, folder / "run")
        return folder / "run" / name

    return made


def resume(folder):
    return main(["--resume", "--out", str(folder / "run"), "--epochs", "1"])


def evaluated(folder):
    return evaluate.main([str(folder / "run"), "--limit-test", "8"])


def reported(folder):
    return analyze.main([str(folder / "run"), "--no-data", "-o", str(folder / "report.html")])


def tabled(folder):
    return experiments(["table", "torri-mlp", "--out", str(folder / "experiments")])


def started_from(folder):
    return main(
        [*in_run.arguments, "--epochs", "1", "--weights", str(folder / "run"), "--out", str(folder / "new")]
    )


def signed(content, draws):
    """Return a checkpoint whose header says something else, under a digest that is right."""
    path = signed.scratch
    path.write_bytes(content)
    tensors, header = checked_file.read(path)
    if draws.integers(4):
        header = of_value(header, draws)
    else:
        name = one(sorted(tensors), draws)
        kind = int(draws.integers(4))
        if kind == 0:
            tensors["unknown"] = tensors.pop(name)
        elif kind == 1:
            tensors[name] = tensors[name].reshape(-1)[:-1]
        elif kind == 2:
            tensors[name] = tensors[name].int()
        else:
            tensors[name] = tensors[name].float().log().neg()  # NaN and infinite numbers
    checked_file.write(path, tensors, header)
    return path.read_bytes()


def in_experiments(name):
    def made(folder):
        out = folder / "experiments" / "torri-mlp" / in_run.job
        shutil.copytree(in_run.begun, out)
        return out / name

    return made


def in_patches(folder):
    shutil.copytree(in_patches.made, folder / "patches")
    return folder / "patches" / "patch.safetensors"


def shown(folder):
    return patch.main(["show", str(folder / "patches" / "patch.safetensors")])


def applied(folder):
    path = folder / "patches" / "patch.safetensors"
    return command_line.run(lambda: 0 if apply_patch(drawn("timm's"), path) else 1)


def merged(folder):
    files = [str(folder / "patches" / name) for name in ("patch.safetensors", "other.safetensors")]
    return patch.main(["merge", *files, "--out", str(folder / "merged.safetensors")])


def signed_patch(content, draws):
    """Return a patch that says or holds something else, under a digest that is right."""
    path = signed.scratch
    path.write_bytes(content)
    _, tensors, header = checked_file.verified(path, (PATCH,), "a patch", 1 << 30)
    if draws.integers(2):
        header = of_value(header, draws)
    else:
        name = one(sorted(tensors), draws)
        altered = (
            lambda t: t.reshape(-1)[:-1],
            lambda t: t.int(),
            lambda t: t.float().log().neg(),
            lambda t: t.bool(),
            lambda t: t.to(torch.float8_e5m2),
            lambda t: -t.abs() - 1,
        )
        other = one(altered, draws)(tensors.pop(name))
        tensors[name if draws.integers(6) else "unknown"] = other
    checked_file.write(path, tensors, header, PATCH)
    return path.read_bytes()


PATCHES = (shown, applied, merged)
CHECKPOINT = (resume, evaluated, started_from)
KINDS |= {
    "config.json": Kind(in_run("config.json"), (resume, reported), (mutated, of_json, of_json)),
    "metrics.jsonl": Kind(in_run("metrics.jsonl"), (resume, reported), (mutated, of_json)),
    "summary.json": Kind(in_run("summary.json"), (reported,), (mutated, of_json)),
    "checkpoint": Kind(in_run("checkpoint.safetensors"), CHECKPOINT, (mutated,), exact=True),
    "signed checkpoint": Kind(in_run("checkpoint.safetensors"), CHECKPOINT, (signed,)),
    "patch": Kind(in_patches, PATCHES, (mutated,), exact=True),
    "signed patch": Kind(in_patches, PATCHES, (signed_patch,)),
    "lock": Kind(in_run("lock"), (resume,), (mutated,)),
    **{
        f"experiment's {name}": Kind(in_experiments(name), (tabled,), (mutated, of_json))
        for name in ("config.json", "metrics.jsonl")
    },
}


@pytest.fixture(scope="module", autouse=True)
def finished(tmp_path_factory):
    """A finished run, one that an experiment began, and where checkpoints are signed."""
    from fastbn.experiments.preset import jobs
    from fastbn.experiments.presets import preset

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(
        datasets, "load_digits", functools.cache(datasets.load_digits)
    )  # the data are sound, and most of the time
    folder = tmp_path_factory.mktemp("fuzz")
    in_run.finished, signed.scratch = folder / "run", folder / "scratch.safetensors"
    in_patches.made = folder / "patches"
    in_patches.made.mkdir()
    for name in ("patch", "other"):
        trained = freeze(drawn("timm's"), "bn+output+random=1")
        save(trained, in_patches.made / f"{name}.safetensors", task=name, classes=["a", 2])
    in_run.arguments = ["--depth", "8", "--width", "2", "--dataset", "digits", "--engine", "stock"]
    in_run.arguments += ["--limit-train", "16", "--limit-test", "8", "--batch-size", "16"]
    assert main([*in_run.arguments, "--epochs", "1", "--out", str(folder / "run")]) == 0
    job = jobs(preset("torri-mlp"), folder)[0]
    in_run.job, in_run.begun = job.out.name, folder / "begun"
    in_run.begun.mkdir()
    config = json.loads((folder / "run" / "config.json").read_text())
    asked = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in job.config.settings(2, "fp32").items()
    }
    (in_run.begun / "config.json").write_text(json.dumps(config | asked))
    shutil.copy(folder / "run" / "metrics.jsonl", in_run.begun)
    yield
    monkeypatch.undo()


def contents(folder):
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def tried(name, number, folder, capfd):
    """Try one mutation of a kind by one command that reads it, and return whether it was refused."""
    kind, draws = KINDS[name], draws_of("files", name, number)
    folder.mkdir()
    path = kind.made(folder)
    victim = folder / "victim"
    victim.write_text("the user's")
    sound = path.read_bytes()
    if draws.integers(12):
        content = one(kind.damage, draws)(sound, draws)
        path.write_bytes(content)
    else:
        content = None
        put(path, one(["gone", *(place for place in PLACES if place != "sparse")], draws))
    before, command = contents(folder), one(kind.commands, draws)
    with bounded():
        code = command(folder)
    err = capfd.readouterr().err
    said = f"{name} {number}: {command.__name__} -> {code}: {err[-500:]}"
    assert code in CODES and "Traceback" not in err, said
    assert victim.read_text() == "the user's", said
    if code == 2:
        last = err.splitlines()[-1]
        assert last.startswith("fastbn: error: ") and len(last) < 450 and last.isprintable(), said
        assert sum(line.startswith("fastbn: error: ") for line in err.splitlines()) == 1, said
        assert contents(folder) == before, said
    elif kind.exact:
        assert content == sound, said
    shutil.rmtree(folder)
    return code == 2


def every(count):
    """Return so many mutations, shared equally among the kinds; those that cost a network more are seldom."""
    return [(name, number) for name in KINDS for number in range(-(-count // len(KINDS)))]


def all_of(count, tmp_path, capfd):
    refused = dict.fromkeys(KINDS, 0)
    for name, number in every(count):
        refused[name] += tried(name, number, tmp_path / "one", capfd)
    assert all(refused.values()), refused


def test_a_sound_file_is_read(tmp_path, capfd):
    for name, kind in KINDS.items():
        (tmp_path / name).mkdir()
        kind.made(tmp_path / name)
        for command in kind.commands:
            assert command(tmp_path / name) == 0, (name, command, capfd.readouterr().err)


def test_damage_is_refused_or_read(tmp_path, capfd):
    all_of(EVERY, tmp_path, capfd)


@pytest.mark.slow
def test_much_damage_is_refused_or_read(tmp_path, capfd):
    all_of(SLOW, tmp_path, capfd)
