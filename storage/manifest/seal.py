"""A file that carries its own digest: Arrow files whose footer names the BLAKE3 of everything else in them.

The footer's metadata has the key `seal`. Its value begins with a mark and ends with 64 hexadecimal characters: the
digest of the whole file, with zeros in their place. So a flipped bit anywhere is found, before anything in the file is
interpreted, by whoever has nothing but the file; and any Arrow reader reads it as before. A seal says that the bytes
are those which were written. It doesn't say by whom.
"""

import io
from dataclasses import dataclass
from typing import BinaryIO

from blake3 import blake3
from typing_extensions import Buffer

from storage.digest import DIGEST_LENGTH

KEY = b"seal"
_MARK = b"\0shardline seal\0"  # no JSON text holds it: there, control characters are escaped
_BLANK = b"0" * DIGEST_LENGTH
BLANK = _MARK + _BLANK  # the value to write, for `seal` to fill in
_TAIL = 10  # bytes of an Arrow file after its footer: the footer's length and the magic
_PIECE = 1 << 20  # bytes


@dataclass(frozen=True)
class Digests:
    """`whole`: of the file as it lies there. `says`: what its seal says, None where there is none. `found`: what the
    seal should say."""

    whole: str
    says: str | None
    found: str

    @property
    def intact(self) -> bool:
        """Whether nothing speaks against it; so of a file without a seal, too."""
        return self.says in (None, self.found)


def sealed(data: bytes) -> bytes:
    """`data`, an Arrow file with BLANK in its footer, with the digest in that place."""
    at = _place(data)
    assert at is not None, "no place for a seal"
    found = digests(io.BytesIO(data), len(data), at).found
    return data[:at] + found.encode() + data[at + DIGEST_LENGTH :]


def digests_of(file: BinaryIO, size: int) -> Digests:
    """Those of an open file of `size` bytes, read once, in pieces: it takes no memory."""
    file.seek(max(0, size - _TAIL))
    length = int.from_bytes(file.read(4), "little")
    begin = max(0, size - _TAIL - length)
    file.seek(begin)
    place = _place(file.read(size - begin)) if length < size else None
    file.seek(0)
    return digests(file, size, None if place is None else begin + place)


def _place(data: Buffer) -> int | None:
    """Where in `data`, which ends as the file does, the seal's digest is."""
    text = bytes(data)
    mark = text.rfind(_MARK)
    at = mark + len(_MARK)
    return at if mark >= 0 and at + DIGEST_LENGTH + _TAIL <= len(text) else None


def digests(file: BinaryIO, size: int, at: int | None) -> Digests:
    """Those of a file that is read from here on, whose seal's digest is at byte `at`."""
    whole, piece = blake3(), memoryview(bytearray(_PIECE))

    left = size if at is None else at
    while left and (count := file.readinto(piece[: min(left, _PIECE)])):  # type: ignore[attr-defined]
        whole.update(piece[:count])
        left -= count
    if at is None:
        return Digests(whole.hexdigest(), None, "")
    blank, says, rest = whole.copy(), file.read(DIGEST_LENGTH), file.read()
    whole.update(says + rest)
    blank.update(_BLANK + rest)
    return Digests(whole.hexdigest(), says.decode(errors="replace"), blank.hexdigest())
