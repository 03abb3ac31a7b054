"""Sound files of a kind that hold what they should not: `DAMAGE[kind](content, draws)` returns other
content."""

from __future__ import annotations

import functools
import io
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
import safetensors.torch
import torch
from damage import one
from data_stream import Image

SIDES = [1, 2, 9_000, 60_000, 600_000, 5_000_000, 80_000_000, (1 << 31) - 1]
LABELS = [b"3", b"999", b"1000", b"65536", b"999999999", b"9" * 19, b"9" * 30, b"-1", b"nan"]
VALUES = [float("nan"), float("inf"), float("-inf"), -1.0, 1e300]
NAMES = ["a\nb\x1b[31m", "x" * 100_000, "", "module."]


def shard(content, draws):
    """Return a class, a name or an image of another kind; every header is right."""
    file = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as before, tarfile.open(fileobj=file, mode="w") as after:
        members = before.getmembers()
        chosen = one(members, draws)
        label = (
            one([member for member in members if member.name.endswith(".cls")], draws)
            if draws.integers(3)
            else None
        )
        for member in members:
            data = before.extractfile(member).read()
            if member is label:
                data = one(LABELS, draws)
            elif member is chosen and label is None:
                member.name, data = one(
                    [(one(NAMES, draws) + ".jpg", data), (member.name, picture(data, draws))], draws
                )
            member.size = len(data)
            after.addfile(member, io.BytesIO(data))
    return file.getvalue()


def picture(content, draws):
    """Return a PNG of these sides, whole or by its header alone; or of 32 bits; or what Pillow would hand to
    another program."""
    kind, file = int(draws.integers(4)), io.BytesIO()
    width, height = one(SIDES, draws), one(SIDES, draws)
    if kind == 0:
        Image.new("L", one([(1, 2_000_000), (2_000_000, 1)], draws)).save(file, "PNG", compress_level=1)
    elif kind == 1:
        Image.new(one(["I", "F"], draws), (8, 8)).save(file, "TIFF")
    elif kind == 2:
        Image.new("L", (8, 8)).save(file, "EPS")
    else:
        Image.new("L", (8, 8)).save(file, "PNG")
        blob = bytearray(file.getvalue())
        blob[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        blob[29:33] = zlib.crc32(blob[12:29]).to_bytes(4, "big")
        return bytes(blob)
    return file.getvalue()


def arrays(content, draws):
    """Return an index of which an array is missing, short, of another type, or points elsewhere."""
    with np.load(io.BytesIO(content)) as saved:
        index = dict(saved)
    name = one([name for name in index if name != "broken"], draws)
    array = index.pop(name)
    changes = [
        None,
        array[:-1],
        array[:, None],
        array.astype("S8"),
        array.astype(float) if array.dtype.kind == "i" else array[:0],
    ]
    if array.dtype.kind == "i":
        changes += [array - 5, array + 100_000]
    changed = one(changes, draws)
    file = io.BytesIO()
    one([np.savez, np.savez_compressed], draws)(file, **index, **({} if changed is None else {name: changed}))
    return file.getvalue()


def matrix(content, draws):
    """Vectors of another type or shape; or words that are none."""
    if content.startswith(b"{"):
        return content.replace(b'["w', one([b"[7, ", b"[[[", b'[null, "w', b'{"w'], draws), 1)
    vectors, file = np.load(io.BytesIO(content)), io.BytesIO()
    changes = [
        vectors.astype(float),
        vectors.astype(int),
        vectors.astype(str),
        vectors[:, 0],
        vectors[:-1],
        vectors.T,
        vectors + 1,
    ]
    np.save(file, one(changes, draws))
    return file.getvalue()


def batch(content, draws):
    """Return a pickle with labels or data of another kind."""
    loaded = pickle.loads(content, encoding="bytes")
    key = one([b"data", b"labels", b"labels"], draws)
    if key == b"labels":
        loaded[key][0] = one([-1, 10, 255, 1 << 31, 1 << 63, 10**30, 10**5_000, True, None, "a", [[]]], draws)
    else:
        loaded[key] = one(
            [[1] * 100_000, b"x" * 100_000, loaded[key].astype(float), loaded[key][:-1], None], draws
        )
    return pickle.dumps(loaded, 2)


def weights(content, draws, read, write):
    """Return a value that is not finite or below 0, a name that is none; or an archive that is compressed."""
    state, file = read(content), io.BytesIO()
    name = one(sorted(state), draws)
    kind = int(draws.integers(3))
    if kind == 0:
        state[one(NAMES, draws)] = state.pop(name)
    elif kind == 1 and content.startswith(b"PK"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("w/data/0", bytes(20_000_000))
        return file.getvalue()
    elif state[name].is_floating_point():
        state[name] = state[name].double()
        state[name].view(-1)[0] = one(VALUES, draws)
    else:
        state[name] = one([torch.tensor(-1), torch.ones(3), torch.tensor(1.5)], draws)
    return write(state, file) or file.getvalue()


def loaded(content):
    return torch.load(io.BytesIO(content), weights_only=True)


OLD = functools.partial(torch.save, _use_new_zipfile_serialization=False)
DAMAGE = {
    "cifar_pickle_unverified": batch,
    "class_folders": picture,
    "streamed_folders": picture,
    "shards": shard,
    "shards_index": arrays,
    "glove_kept_copies": matrix,
    "weights_pth": functools.partial(weights, read=loaded, write=torch.save),
    "weights_pth_of_old": functools.partial(weights, read=loaded, write=OLD),
    "weights_safetensors": functools.partial(
        weights, read=safetensors.torch.load, write=lambda state, file: safetensors.torch.save(state)
    ),
}
