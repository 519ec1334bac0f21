"""65,536 samples of 2,048 uint16 tokens, shuffled, batch 64, warm and local."""

from benchmarks.outcome import Outcome
from benchmarks.race import race
from benchmarks.setting import Setting


def ask(setting: Setting) -> Outcome:
    wanted = {"MDS": 20, "WebDataset": 20, "litdata": 3}
    return race("stream-tokens", "tokens", setting, limit="take", wanted=wanted, limit_wanted=0.5)
