"""1,000,000 samples of 100 float32 and an int64 label, shuffled, batch 1,024, warm and local."""

from benchmarks.outcome import Outcome
from benchmarks.race import race
from benchmarks.setting import Setting


def ask(setting: Setting) -> Outcome:
    wanted = {"MDS": 50, "WebDataset": 50, "litdata": 5}
    return race("stream-rows", "rows", setting, limit="take", wanted=wanted, limit_wanted=0.4)
