"""Where a step's time goes: a capture of real training, its bottleneck, its picture; and a step once more."""
