"""Data that is missing, too little or damaged is told with the setting to change."""

from typing import Any

import pytest
from support.small_shards import PREFETCH, SEQ_LEN, make

from storage.errors import DataError, DigestError, LakeError, ParamsError
from storage.lake import Zone
from storage.manifest import Manifest


def test_an_empty_split_names_split_zone_and_setting(zone: Zone, samples: Manifest) -> None:
    with pytest.raises(DataError, match=rf"{zone.folder}.*split 'test' has no shards.*train, val.*curate\.split\.test"):
        make(zone, samples, split="test")
    with pytest.raises(DataError, match=rf"{zone.folder}.*split 'val' is empty.*curate\.split\.val"):
        make(zone, samples, split="val")


@pytest.mark.parametrize(("kind", "window"), [("samples", {}), ("tokens", {"seq_len": SEQ_LEN})])
def test_a_version_without_shards_says_so(zone: Zone, kind: str, window: dict[str, Any], request: Any) -> None:
    spec = request.getfixturevalue(kind).header["spec"]
    empty = zone.commit(Manifest.build("shards", [], kind=kind, spec=spec))
    with pytest.raises(DataError, match=r"split 'train' has no shards; there are: none\. Raise curate\.split\.train"):
        make(zone, empty, **window)


def test_too_little_data_says_what_to_lower(zone: Zone, tokens: Manifest) -> None:
    with pytest.raises(DataError, match=r"no sequence of 50 tokens.*Lower stream\.seq_len"):
        make(zone, tokens, seq_len=50)
    with pytest.raises(DataError, match=r"11 samples, fewer than one batch of 12.*Lower stream\.batch_size to 11"):
        make(zone, tokens, seq_len=SEQ_LEN, batch_size=12, last="drop")
    with pytest.raises(ParamsError, match=r"set stream\.seq_len"):
        make(zone, tokens)
    with pytest.raises(ParamsError, match=r"5 ranks share stream\.batch_size=4"):
        make(zone, tokens, seq_len=SEQ_LEN, world=5)
    with pytest.raises(ParamsError, match="last='all'"):
        make(zone, tokens, seq_len=SEQ_LEN, last="all")


@PREFETCH
def test_an_error_in_the_thread_reaches_the_consumer_each_time(zone: Zone, samples: Manifest, prefetch: int) -> None:
    file = zone.folder / samples.table["path"][2].as_py()
    whole = file.read_bytes()
    file.write_bytes(bytes([*whole[:-200], whole[-200] ^ 8, *whole[-199:]]))
    with make(zone, samples, epochs=1, prefetch=prefetch) as stream:
        for _ in range(2):
            with pytest.raises(DigestError, match=str(file)):
                list(stream)
        file.unlink()
        with pytest.raises((DataError, LakeError), match=str(file)):
            list(stream)
        file.write_bytes(whole)
        state = stream.state_dict()
        assert len(list(stream)) == 10 - state["step"]
