"""What bytes are that were meant to be text: compressed, in another encoding, binary."""

from pipelines.ingest.quarantine import Aside, uncountable
from pipelines.ingest.readers.window import Window

_MAGIC = {
    b"\x1f\x8b": "compressed by gzip: unpack it first (gunzip)",
    b"BZh": "compressed by bzip2: unpack it first (bunzip2)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first (unzstd)",
    b"\xfd7zXZ\x00": "compressed by xz: unpack it first (unxz)",
    b"PK\x03\x04": "a ZIP archive: name what is in it in ingest.sources as zip://**/*.csv::path/of/the.zip",
    b"PAR1\x15": "a Parquet file: set curate.reader to parquet",
    b"%PDF-": "a PDF: take the text out of it first",
}
_LOOKED_AT = 4096


def is_text(name: str, window: Window, aside: Aside) -> bool:
    """Whether a file may be lines of text in UTF-8. Else it is set aside with the number of its lines, or DataError is
    raised where nobody knows how many rows it holds."""
    window.need(_LOOKED_AT)
    if (found := foreign(window.data)) is None:
        return True
    reason, in_lines = found
    if not in_lines:
        raise uncountable(name, reason)
    aside.add(name, reason, max(sum(piece.count(b"\n") for piece in window.rest()), 1))
    return False


def foreign(data: bytes) -> tuple[str, bool] | None:
    """Why `data`, by how it begins, is no text in UTF-8, and whether its lines can be counted; None where it may be
    some."""
    begin = data[:_LOOKED_AT]
    for magic, reason in _MAGIC.items():
        if begin.startswith(magic) and (magic != b"BZh" or begin[4:10] == b"1AY&SY"):
            return reason, False
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")) or _every_second_is_zero(begin):
        return "not UTF-8 but UTF-16 or UTF-32: convert it (iconv -f UTF-16 -t UTF-8)", True
    return None


def _every_second_is_zero(begin: bytes) -> bool:
    """Western text in UTF-16 without a mark, either way round."""
    half = len(begin) // 2
    return half > 1 and max(begin[0::2].count(0), begin[1::2].count(0)) > 0.7 * half > 3 * min(
        begin[0::2].count(0), begin[1::2].count(0)
    )
