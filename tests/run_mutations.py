"""Seeded damage to a file: to its bytes, to what lies at its path, or, where it is JSON, to its values."""

import json
import os
import random

TEXTS = ("", "x", "a\nb\x1b[31m", "../../etc/passwd", "/dev/zero")
BAD_VALUES = (None, True, -1, 0, 1 << 40, 10**30, 1e400, float("nan"), *TEXTS, [], {}, [[]], [1, "x"])
DEEP = "[" * 50_000


def of_bytes(content, rng):
    """Cut, flipped, filled, doubled, or something else altogether."""
    at = rng.randrange(len(content) + 1)
    kind = rng.randrange(8)
    if kind == 0:
        return content[:at]
    if kind in (1, 2) and content:
        place = min(at, len(content) - 1)
        return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    if kind == 3:
        return content[:at] + bytes(rng.randrange(1, 64)) + content[at:]
    if kind == 4:
        return content[:at] + rng.randbytes(rng.randrange(1, 64)) + content[at:]
    if kind == 5:
        return content + content
    return rng.choice(
        (
            b"",
            b"\0" * len(content),
            DEEP.encode(),
            b"\xff\xfe" + content,
            rng.randbytes(len(content)),
            b"null",
            b"{}",
        )
    )


def of_value(value, rng):
    """A JSON value with one place in it altered: another value or type, a key gone, one more, one renamed."""
    places = list(_places(value))
    parent, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent["unknown"] = rng.choice(BAD_VALUES)
    elif kind == 2 and isinstance(parent, dict):
        parent[key + "x"] = parent.pop(key)
    else:
        parent[key] = rng.choice(BAD_VALUES)
    return value


def _places(value):
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(inside):
        yield value, key
        yield from _places(one)


def of_json(content, rng):
    """A line of the text, altered as a value; or bytes where it is none."""
    lines = content.decode().splitlines() if content.count(b"\n{") else [content.decode()]
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(of_value(json.loads(lines[at]), rng))
    return ("\n".join(lines) + "\n").encode()


def of_path(path, rng):
    """Something else lies at the path: nothing, a folder, a FIFO, a device, a link to nowhere or to
    itself."""
    path.unlink()
    kind = rng.randrange(6)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        os.mkfifo(path)
    elif kind > 2:
        path.symlink_to(("/dev/zero", path.with_name("nowhere"), path)[kind - 3])


def seeded(*parts):
    return random.Random("/".join(map(str, parts)))
