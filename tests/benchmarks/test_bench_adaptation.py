"""The corruptions of bench.adaptation, and its pages, which are what their records say."""

from __future__ import annotations

import pytest
import torch
from runs import REPOSITORY, train

from bench import examples
from bench.adaptation import __main__ as adaptation
from bench.adaptation.corruptions import KINDS, SEVERITIES, corrupted
from bench.adaptation.table import NAMES, write
from bench.records.conditions import RESULTS
from bench.records.rows import load
from fastbn import Images
from fastbn.errors import UsageError


def some(count=5, side=12):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(60, 180, (count, side, side, 3), dtype=torch.uint8, generator=draw)
    return Images(pixels, torch.arange(count) % 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_is_seeded_and_grows_with_its_severity(kind):
    images = some()
    before = images.images.clone()
    found = [corrupted(images, kind, severity) for severity in SEVERITIES]
    away = [(one.images.float() - before).square().mean() for one in found]
    assert 0 < away[0] < away[1] < away[2] and torch.equal(images.images, before)
    for one, severity in zip(found, SEVERITIES, strict=True):
        assert torch.equal(one.images, corrupted(images, kind, severity).images)
        assert torch.equal(one.labels, images.labels) and (one.mean, one.std) == (images.mean, images.std)
    assert torch.equal(found[0].images[:3], corrupted(images.take(torch.arange(3)), kind, 1).images)


def test_what_the_corruptions_are():
    images = some(40)
    pixels = images.images.double()
    noise = corrupted(images, "noise", 1).images.double() - pixels
    assert noise.std() == pytest.approx(0.04 * 255, rel=0.03) and abs(noise.mean()) < 0.2
    assert not torch.equal(corrupted(images, "noise", 1, seed=1).images, corrupted(images, "noise", 1).images)
    contrast = corrupted(images, "contrast", 2).images.double()
    mean = pixels.mean((1, 2), keepdim=True)
    torch.testing.assert_close(contrast, mean + 0.3 * (pixels - mean), rtol=0, atol=0.51)
    bright = corrupted(images, "brightness", 2).images.double()
    torch.testing.assert_close(bright, (pixels + 0.3 * 255).clamp(max=255), rtol=0, atol=0.51)
    flat = Images(torch.full((1, 12, 12, 3), 77, dtype=torch.uint8), [0])
    assert (corrupted(flat, "blur", 3).images == 77).all()


@pytest.mark.parametrize("kind, severity", [("fog", 1), ("noise", 0), ("noise", 4)])
def test_another_corruption_is_refused(kind, severity):
    with pytest.raises(UsageError, match="noise, blur, contrast, brightness at severities"):
        corrupted(some(), kind, severity)


def test_the_pages_are_what_the_records_say(tmp_path):
    for name, make in (("adaptation", write), ("examples", examples.write)):
        kept, page = REPOSITORY / "docs" / f"{name}.md", tmp_path / f"{name}.md"
        page.write_text(kept.read_text(encoding="utf-8"), encoding="utf-8")
        make(page, RESULTS)
        assert page.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")


def test_tent_gains_on_record():
    """What docs/adaptation.md claims: each step of the ladder errs less than the one before, on the mean."""
    (record,) = load(sorted(RESULTS.glob("adaptation-resnet*.json"))[-1:])
    corrupted_rows = [row for row in record.rows if row.case != "clean" and "batch" not in row.case]
    right = {name: sum(row.accuracy for row in corrupted_rows if row.provider == name) for name in NAMES}
    assert len(corrupted_rows) == len(NAMES) * len(KINDS) * len(SEVERITIES)
    assert right["none"] < right["adabn"] < right["tent"] and right["none"] < right["alphabn"]


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch):
    """A tiny run and few images give both records, and the page of them."""
    assert train(tmp_path / "run", "--train", "all") == 0
    page, results = tmp_path / "adaptation.md", tmp_path / "results"
    results.mkdir()
    page.write_text("".join(f"<!-- {n} -->\n<!-- /{n} -->\n" for n in ("adaptation", "adaptation-seconds")))
    words = [str(tmp_path / "run"), "--images", "30", "--results", str(results), "--page", str(page)]
    for more in ([], ["--seconds", "--most-seconds", "0"]):
        monkeypatch.setattr("sys.argv", ["bench.adaptation", *words, *more])
        adaptation.main()
    found, timed = (load(results.glob(f"adaptation{part}-resnet*.json"))[0] for part in ("", "-seconds"))
    cases = list(dict.fromkeys(row.case for row in found.rows))
    assert len(cases) == 1 + 12 + 4 * len(adaptation.SIZES) and cases[:2] == ["clean", "noise 1"]
    settings = found.conditions["settings"]
    assert settings["lr"] in adaptation.RATES and settings["alpha"] in adaptation.ALPHAS
    assert {row.provider for row in timed.rows} == {f"{m} {e}" for m in NAMES for e in ("stock", "fused")}
    text = page.read_text(encoding="utf-8")
    assert "| noise 1 |" in text and "| Tent |" in text
    assert all(str(tmp_path) not in path.read_text(encoding="utf-8") for path in results.iterdir())


@pytest.mark.slow
def test_examples_are_kept(tmp_path, monkeypatch):
    page = tmp_path / "examples.md"
    page.write_text("".join(f"<!-- {n} -->\n<!-- /{n} -->\n" for n in ("federated", "gan")))
    monkeypatch.setattr(examples, "PICTURE", tmp_path / "gan.png")
    for name, words in (
        ("federated", ["--rounds", "1", "--epochs", "1", "--seeds", "2", "--images", "100"]),
        ("gan", ["--epochs", "1", "--width", "4", "--images", "200"]),
    ):
        examples.kept(name, words).save(f"example-{name}", tmp_path)
    examples.write(page, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "| γ and β | 2.7 |" in text and "| BatchNorm alone trained |" in text
    assert (tmp_path / "gan.png").read_bytes().startswith(b"\x89PNG")
