"""What bytes are that were meant to be text: compressed, in another encoding, binary."""

import codecs
import zlib

from pipelines.ingest.quarantine import Aside, uncountable
from pipelines.ingest.readers.lookahead import Lookahead

_TABLE = "export its tables as CSV or Parquet first"
_ARRAY = "save what is in it as CSV or Parquet first"
_PICTURE = "a picture: set curate.reader to image_folder, or leave it out with ingest.exclude"
#: How no text in UTF-8 begins, but for the first ones, which are seldom more than they seem to be.
_MAGIC = {
    b"\x1f\x8b": "compressed by gzip: unpack it first (gunzip)",
    b"BZh": "compressed by bzip2: unpack it first (bunzip2)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first (unzstd)",
    b"\xfd7zXZ\x00": "compressed by xz: unpack it first (unxz)",
    b"\x04\x22\x4d\x18": "compressed by lz4: unpack it first (unlz4)",
    b"\x5d\x00\x00": "compressed by lzma: unpack it first (unlzma)",
    b"\xff\x06\x00\x00sNaPpY": "compressed by snappy: unpack it first",
    b"\x1f\x9d": "compressed by compress: unpack it first (uncompress)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first (7z x)",
    b"Rar!\x1a\x07": "a RAR archive: unpack it first (unrar x)",
    b"PK\x03\x04": "a ZIP archive: name what is in it in ingest.sources as zip://**/*.csv::path/of/the.zip",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": f"an Office document (.xls, .doc): {_TABLE}",
    b"PAR1\x15": "a Parquet file: set curate.reader to parquet",
    b"ARROW1\x00\x00": f"an Arrow file: {_TABLE}",
    b"Obj\x01": f"an Avro file: {_TABLE}",
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file: {_TABLE}",
    b"CDF\x01": f"a NetCDF file: {_TABLE}",
    b"CDF\x02": f"a NetCDF file: {_TABLE}",
    b"CDF\x05": f"a NetCDF file: {_TABLE}",
    b"SQLite format 3\x00": f"an SQLite database: {_TABLE}",
    b"\x93NUMPY": f"a NumPy array: {_ARRAY}",
    **dict.fromkeys([bytes([0x80, protocol]) for protocol in range(2, 6)], f"a pickle, which is never read: {_ARRAY}"),
    b"\x89PNG\r\n\x1a\n": f"PNG, {_PICTURE}",
    b"\xff\xd8\xff": f"JPEG, {_PICTURE}",
    b"GIF87a": f"GIF, {_PICTURE}",
    b"GIF89a": f"GIF, {_PICTURE}",
    b"II*\x00": f"TIFF, {_PICTURE}",
    b"MM\x00*": f"TIFF, {_PICTURE}",
    b"\x7fELF": "a program: leave it out with ingest.exclude",
    b"%PDF-": "a PDF: take the text out of it first",
}
#: Such begins may be of text as well: they count where what follows is none.
_LIKELY = {
    b"ORC": f"an ORC file: {_TABLE}",
    b"MATLAB 5.0 MAT-file": f"a MATLAB file: {_ARRAY}",
    b"RIFF": "RIFF (WebP, WAV or AVI): leave it out with ingest.exclude",
    b"BM": f"BMP, {_PICTURE}",
}
_TAR = 257, (b"ustar\x0000", b"ustar  \x00")  # where and what
_LOOKED_AT = 4096


def is_text(name: str, lookahead: Lookahead, aside: Aside) -> bool:
    """Whether a file may be lines of text in UTF-8. Else it is set aside with the number of its lines, or DataError is
    raised where nobody knows how many rows it holds."""
    lookahead.need(_LOOKED_AT)
    if (found := foreign(lookahead.data)) is None:
        return True
    reason, in_lines = found
    if not in_lines:
        raise uncountable(name, reason)
    aside.add(name, reason, max(sum(piece.count(b"\n") for piece in lookahead.rest()), 1))
    return False


def foreign(data: bytes) -> tuple[str, bool] | None:
    """Why `data`, by how it begins, is no text in UTF-8, and whether its lines can be counted; None where it may be
    some."""
    begin = data[:_LOOKED_AT]
    if reason := _format(begin):
        return reason, False
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")) or _every_second_is_zero(begin):
        return "not UTF-8 but UTF-16 or UTF-32: convert it (iconv -f UTF-16 -t UTF-8)", True
    return None


def _format(begin: bytes) -> str | None:
    """What a file that begins so is; None where it may be text."""
    for magic, reason in _MAGIC.items():
        if begin.startswith(magic) and (magic != b"BZh" or begin[4:10] == b"1AY&SY"):
            office = magic.startswith(b"PK") and b"[Content_Types].xml" in begin
            return f"an Office document (.xlsx, .docx): {_TABLE}" if office else reason
    at, tars = _TAR
    if begin.startswith(tars, at):
        return "a tar archive: name what is in it in ingest.sources as tar://**/*.csv::path/of/the.tar"
    if _may_be_text(begin):
        return None
    if begin[8:12] == b"\x10\x00\x00\x00" and begin.startswith(b"\xff\xff\xff\xff"):
        return f"an Arrow stream: {_TABLE}"
    if _unpacks(begin):
        return "compressed by zlib: unpack it first (zlib-flate -uncompress)"
    return next((reason for magic, reason in _LIKELY.items() if begin.startswith(magic)), None)


def _may_be_text(begin: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begin)  # a character may be cut off at the end
    except UnicodeDecodeError:
        return False
    return b"\0" not in begin


def _unpacks(begin: bytes) -> bool:
    """Whether it begins a zlib stream (RFC 1950)."""
    try:
        return begin[:1] == b"x" and bool(zlib.decompressobj().decompress(begin, 64))
    except zlib.error:
        return False


def _every_second_is_zero(begin: bytes) -> bool:
    """Western text in UTF-16 without a mark, either way round."""
    half = len(begin) // 2
    return half > 1 and max(begin[0::2].count(0), begin[1::2].count(0)) > 0.7 * half > 3 * min(
        begin[0::2].count(0), begin[1::2].count(0)
    )
