"""Archives, zip and tar, that somebody else may have made, read within bounds: headers are held against what
is there.

Imports nothing but the standard library.
"""

from __future__ import annotations

import tarfile
import zipfile
from gzip import GzipFile
from typing import BinaryIO, cast

PIECE = 1 << 20  # bytes that are read at once: no header of a tar archive is longer


def check_zip(file: BinaryIO) -> None:
    """Raise, whatever zipfile raises, or ValueError, for a damaged zip archive and for one whose members are
    larger than itself.

    torch.save and numpy.savez store members as they are: where they take more than the archive has, it was
    compressed (a few kilobytes can hold gigabytes of zeros), or members overlap. CRCs are verified; one of 0
    was not computed.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        has, needs = file.seek(0, 2), sum(member.file_size for member in members)
        if needs > has:
            raise ValueError(
                f"its members take {needs:,} bytes in an archive of {has:,}: it was compressed, store it "
                "uncompressed"
            )
        for member in members:
            if member.CRC:
                with archive.open(member) as content:
                    while content.read(PIECE):
                        pass


def open_tar(file: BinaryIO | GzipFile) -> tarfile.TarFile:
    """Open a tar archive whose headers are read in pieces of at most PIECE bytes. Raises what tarfile
    raises."""
    return tarfile.open(fileobj=cast(BinaryIO, TarPieces(cast(BinaryIO, file))), mode="r:")


class TarPieces:
    """A file as tarfile reads it, in pieces of at most PIECE bytes: a header that claims to be longer is
    refused."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= PIECE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)
