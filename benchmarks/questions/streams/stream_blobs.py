"""16,384 blobs of 8 to 32 KB and a label, shuffled, batch 64, warm and local."""

from benchmarks.outcome import Outcome
from benchmarks.race import race
from benchmarks.setting import Setting


def ask(setting: Setting) -> Outcome:
    wanted = {"MDS": 10, "WebDataset": 10, "litdata": 1.5}
    return race("stream-blobs", "blobs", setting, limit="copy", wanted=wanted, limit_wanted=0.5)
