"""The questions: each module has `ask(setting) -> Outcome`."""
