"""From `model.name` and `model.args` to a module.

The contract of a model, ours or anybody's:

- It is a `torch.nn.Module`. Its constructor takes keyword arguments: those of `model.args`, and of the facts of the
  data those that it names (`data_facts`). What `model.args` sets wins over a fact.
- Or `model.name` names an `Architecture` (`member.py`), as ours do: typed parameters, and the module that takes them.
- `forward(x)` takes a batch as it is stored and returns logits:
  tokens `int64 [B, T]` → `[B, T, vocab_size]`; samples `[B, *input_shape]` in the storage's dtype, which the model
  converts and normalises by `mean` and `std` → `[B, num_classes]`, or `[B]` when `num_classes` is None (a regression).
- With `stream.documents`, `forward` is given what it names of `documents` and `positions`, by keyword: `documents.py`.
- Its randomness comes from torch's default generators, so that a resumed training repeats it.
"""

import inspect
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.models.member import Architecture
from pipelines.params import suggestion
from pipelines.params.train.training import MODELS
from storage.errors import ParamsError


def build_model(
    name: str, args: dict[str, Any], spec: dict[str, Any], seq_len: int | None = None, *, seed: int = 0,
    folders: Sequence[Path] = (),
) -> nn.Module:  # fmt: skip
    """The model `name` for data of `spec` (the shards manifest's), on the CPU, its weights a function of `seed`.

    An import path is imported (looked for in `folders` first), so it must be one that params.yaml gives; for a name
    out of a file, `Own.check` comes before. Raises ParamsError for a model that cannot be found, imported or made with
    these arguments.
    """
    cls, args = find_model(name, args, folders)
    facts = data_facts(spec, seq_len)
    parameters = inspect.signature(cls).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for arg in args:
        if arg not in named and not open_ended:
            known = [one for one in named if one not in facts]
            raise ParamsError(f"model.args.{arg}: model {name!r} takes no such argument{suggestion(arg, known)}")
    given = {key: value for key, value in facts.items() if key in named} | args
    missing = [p for p in named if parameters[p].default is inspect.Parameter.empty and p not in given]
    if "vocab_size" in missing:
        raise ParamsError(
            f"model.name={name!r} is for text: it needs {', '.join(missing)}, which data of numbers or images has not. "
            f"Facts of this data: {', '.join(facts)}. See docs/models.md for models of such data."
        )
    if missing:
        raise ParamsError(
            f"model {name!r} needs {', '.join(missing)}, which the data does not give: set model.args.{missing[0]}. "
            f"Facts of this data: {', '.join(facts)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return cls(**given)
        except Exception as error:  # whatever a user's constructor raises is about its arguments
            raise ParamsError(
                f"model {name!r} cannot be made with model.args={args}: {type(error).__name__}: {error}"
            ) from error


def data_facts(spec: dict[str, Any], seq_len: int | None = None) -> dict[str, Any]:
    """What a constructor may ask for by name.

    Tokens: vocab_size, seq_len. Samples: input_shape (tuple, without the batch), in_features (their product),
    num_classes (None for a regression), mean, std (of the inputs' last axis, in stored units), target_mean, target_std
    (of a regression's target; 0 and 1 where the spec does not say).
    """
    if "vocab_size" in spec:
        return {"vocab_size": spec["vocab_size"], "seq_len": seq_len}
    shape = tuple(spec["inputs"]["x"]["shape"])
    target = spec.get("target") or {}
    return {
        "input_shape": shape,
        "in_features": prod(shape),
        "num_classes": len(spec["classes"]) if spec.get("classes") else None,
        "mean": spec.get("mean") or [0.0],
        "std": spec.get("std") or [1.0],
        "target_mean": target.get("mean", 0.0),
        "target_std": target.get("std", 1.0),
    }


def find_model(name: str, args: dict[str, Any], folders: Sequence[Path] = ()) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a registered name or of an import path `package.module:Class`, and arguments for it: `args` with the
    defaults of an architecture. Raises ParamsError, also for those that it refuses."""
    cls = MODELS.find(name, folders)
    if isinstance(cls, type) and issubclass(cls, Architecture):
        declared = MODELS.with_args(cls, args)
        return declared.module(), args | declared.model_dump()
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ParamsError(
            f"model.name={name!r}: {cls!r} must be a class of torch.nn.Module, or of {Architecture.__module__}."
            f"{Architecture.__name__}."
        )
    return cls, args
