"""Remember what scans found, so that a second look at an unchanged folder decodes nothing.

One small file per folder of pictures, in the user's cache folder and never beside the pictures. A file's signature
(size, times of the last write and change, inode) tells whether it is the one seen before. It is not trusted when the
file was younger than two seconds as it was read, since clocks of disks are coarse, nor where the system keeps no time
of the last change (Windows); such a file is read again, and decoded only when its bytes are others.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import PIL

from trainer import host
from trainer.data.look import Facts

_FORMAT = f"scan 4, Pillow {PIL.__version__}"
_YOUNG_NS = 2_000_000_000
_OPAQUE = Facts().alpha

Signature = int
"""64 bits over size, times of the last write and change, and inode: a quarter of the memory of the four numbers."""


class Remembered(NamedTuple):
    """What is known of one file. signature: None when it cannot be trusted."""

    signature: Signature | None
    facts: Facts


def signature_of(stat: os.stat_result, *, read_at_ns: int) -> Signature | None:
    """The signature of a file that is read at this time, None when it could change without showing."""
    if not host.knows_change_time() or max(stat.st_mtime_ns, stat.st_ctime_ns) > read_at_ns - _YOUNG_NS:
        return None
    facts = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    return int.from_bytes(hashlib.blake2b(facts.encode(), digest_size=8).digest(), "little")


class ScanCache:
    """The remembered folders. An entry that is damaged, or of another version, counts as none."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or host.cache_folder() / "scans"

    def rows(self, pictures: Path) -> Iterator[tuple[str, Remembered]]:
        """(file name, what is known) for one folder of pictures, a row at a time: never all of it in memory."""
        try:
            head, _, body = self._file(pictures).read_bytes().partition(b"\n")
            if head.decode() != _head(pictures, body):
                return
        except (OSError, UnicodeDecodeError):
            return
        for name, signature, width, height, sha, animated, low, high, looks in map(json.loads, io.BytesIO(body)):
            facts = Facts(width, height, sha, animated, _OPAQUE if low == high == 255 else (low, high), looks)
            yield name, Remembered(signature, facts)

    def write(self, pictures: Path, known: Mapping[str, Remembered]) -> None:
        """Replace what is known of a folder. A cache that cannot be written is done without."""
        rows = (
            (name, entry.signature, f.width, f.height, f.sha256, f.is_animated, *f.alpha, f.looks)
            for name, entry in known.items()
            if not (f := entry.facts).reason
        )
        body = b"\n".join(json.dumps(row, separators=(",", ":")).encode() for row in rows)
        file = self._file(pictures)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(_head(pictures, body).encode() + b"\n" + body)
            temporary.replace(file)

    def _file(self, pictures: Path) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(pictures.absolute())).hexdigest()[:32]}.json"


def _head(pictures: Path, body: bytes) -> str:
    checksum = hashlib.sha256(body).hexdigest()
    return json.dumps({"format": _FORMAT, "folder": str(pictures.absolute()), "checksum": checksum})
