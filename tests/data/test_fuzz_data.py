"""Whatever happens to a file that others made, it is refused in one line or read: never code run, memory
filled, or a wait without end."""

import zlib

import numpy as np
import pytest
import torch
from damage import MOST_CHARACTERS, PLACES, bounded, mutated, put
from data_damage import DAMAGE
from data_kinds import KINDS

from fastbn.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN, SLOW = 300, 3_000  # mutations, of all kinds together


@pytest.fixture
def made(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return KINDS[request.param](tmp_path)


def outcome(read, what):
    """Return what was read, or None where it was refused as it must be."""
    try:
        with bounded():
            return read()
    except UsageError as error:
        text = str(error)
        assert text.isprintable() and 10 < len(text) < MOST_CHARACTERS, f"{what}: {text[:1000]!r}"
        return None
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:300]}") from error


def fuzz(made, name, count):
    paths, read, verified = made
    whole = {path: path.read_bytes() for path in paths}
    good = read()
    for k in range(count):
        draws = np.random.default_rng([zlib.crc32(name.encode()), k])
        path = paths[int(draws.integers(len(paths)))]
        known = name.split()[-1] in DAMAGE and k % 2 == 1
        path.write_bytes((DAMAGE[name.split()[-1]] if known else mutated)(whole[path], draws))
        found = outcome(read, f"mutation {k} of {path.name}")
        # the rest is well made
        if found is not None and verified and (not known or "kept" in name or "index" in name):
            assert found.keys() == good.keys() and all(
                torch.equal(value, good[key]) for key, value in found.items()
            ), f"mutation {k}"
        for each, content in whole.items():
            each.write_bytes(content)


@pytest.mark.parametrize(("made", "name"), [(name, name) for name in KINDS], indirect=["made"], ids=KINDS)
def test_damaged_files_are_refused_or_read(made, name):
    fuzz(made, name, -(-PLAIN // len(KINDS)))


@pytest.mark.slow
@pytest.mark.parametrize(("made", "name"), [(name, name) for name in KINDS], indirect=["made"], ids=KINDS)
def test_many_damaged_files_are_refused_or_read(made, name):
    fuzz(made, f"slow {name}", -(-SLOW // len(KINDS)))


@pytest.mark.parametrize("made", KINDS, indirect=True, ids=KINDS)
def test_what_is_no_file_is_refused_or_made_anew(made):
    paths, read, verified = made
    good = read()
    for place in PLACES:
        content = paths[0].read_bytes()
        put(paths[0], place)
        found = outcome(read, place)
        assert (
            found is None
            or not verified
            or all(torch.equal(value, good[key]) for key, value in found.items())
        )
        if paths[0].is_dir():
            paths[0].rmdir()
        else:
            paths[0].unlink()
        paths[0].write_bytes(content)
