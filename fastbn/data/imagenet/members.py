"""The members of a tar shard, by its headers alone: a seek each, no image is read."""

from __future__ import annotations

import os
import tarfile
from typing import NamedTuple

from fastbn.files import opened, reason, shown
from fastbn.files.archives import open_tar

LABEL = "cls"
LABEL_BYTES = 64  # a class is a short number
NAME = 1_024  # characters of a member's name: the names of a set are kept at the length of the longest


class Member(NamedTuple):
    """A file within a shard."""

    name: str
    start: int  # of its content in the shard
    size: int
    text: bytes  # of a label; empty for all else


def members(path: str) -> tuple[list[Member], str]:
    """Return the whole members, in order, and what is wrong with the shard: empty, or why there are no
    more."""
    listed: list[Member] = []
    try:
        with opened(path) as file, open_tar(file) as tar:
            total, before = os.fstat(file.fileno()).st_size, -1
            while (member := tar.next()) is not None:
                # it would be read again and again
                if tar.offset <= before or member.size < 0 or len(member.name) > NAME:
                    return (
                        listed,
                        f"damaged at byte {member.offset:,}: {shown(member.name, 40)}, {member.size:,} bytes",
                    )
                before = tar.offset
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if not member.isreg():
                    continue
                if member.offset_data + member.size > total:
                    return listed, f"cut off within {shown(member.name)}"
                label = member.name.lower().endswith(f".{LABEL}") and member.size <= LABEL_BYTES
                text = os.pread(file.fileno(), member.size, member.offset_data) if label else b""
                listed.append(Member(member.name, member.offset_data, member.size, text))
            # the mark of an archive's end
            whole = os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) == bytes(tarfile.BLOCKSIZE)
            return listed, "" if whole else f"cut off or damaged at byte {tar.offset:,} of {total:,}"
    except Exception as error:  # a damaged header raises anything, from OverflowError to RecursionError
        return listed, f"{type(error).__name__}: {reason(error)}"
