"""A file of which a bounded stretch is in memory, read ahead of where the reader stands; what is behind is let go."""

from collections.abc import Iterator
from typing import BinaryIO

from pipelines.ingest.readers.lines import breaks, next_line

AHEAD = 8 << 20  # bytes
_BOM = b"\xef\xbb\xbf"  # with which some programs begin UTF-8


class Lookahead:
    """Bytes of `file` in `data`, from `start` on as many as were asked for; one byte before `start` stays. Each read is
    of `ahead` bytes or more.

    After `need(count)` either data[start + count - 1] is there, or `data` has the file's end (`ended`).
    """

    def __init__(self, file: BinaryIO, ahead: int = AHEAD) -> None:
        self._file, self._ahead = file, ahead
        self._before = 0  # bytes of the file before `data`
        self.data, self.start, self.ended = b"", 0, False

    @property
    def place(self) -> int:
        """Where in the file `start` is."""
        return self._before + self.start

    def need(self, count: int) -> None:
        """Have `count` bytes from `start` on, or all that there are."""
        missing = self.start + count - len(self.data)
        if missing <= 0 or self.ended:
            return
        unused = max(self.start - 1, 0)
        parts, wanted = [self.data[unused:]], max(missing, self._ahead)
        self.data = b""
        while wanted and (part := self._file.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        self.data, self.ended = b"".join(parts), wanted > 0
        self._before, self.start = self._before + unused, self.start - unused

    def more(self) -> bool:
        """Whether the file goes on."""
        self.need(1)
        return self.start < len(self.data)

    def skip_line(self) -> None:
        """Go on where the next line begins; what is passed over isn't kept."""
        while True:
            after = next_line(self.data, self.start)[1]
            if after < len(self.data) or self.ended:
                self.start = after
                return
            self.start = len(self.data) - 1  # it may be the \r of a \r\n
            self.need(2)

    def rest(self) -> Iterator[bytes]:
        """What is left, piece by piece."""
        while self.more():
            piece, self.start = self.data[self.start :], len(self.data)
            yield piece

    def count_lines(self) -> int:
        """How many lines are left, all of which are read."""
        found, last = 0, b""
        for piece in self.rest():
            found += breaks(piece) - (last == b"\r" and piece.startswith(b"\n"))
            last = piece[-1:]
        return found + (last not in (b"", b"\n", b"\r"))


def skip_mark(lookahead: Lookahead) -> None:
    """Go behind the byte order mark that a file may begin with."""
    lookahead.need(len(_BOM))
    if lookahead.data.startswith(_BOM):
        lookahead.start = len(_BOM)
