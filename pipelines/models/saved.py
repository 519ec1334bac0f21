"""A trained model on disk: model.safetensors, its digest beside it (`b3sum --check model.safetensors.b3`), and
config.json. Nothing in it is ever unpickled."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as encode_tensors
from torch import Tensor, nn

from pipelines.models.importing import NOBODY, Own
from pipelines.models.registry import build_model
from pipelines.models.spec import explained, why_malformed
from pipelines.models.tasks import Task, task_of
from storage.atomic import write_atomically
from storage.digest import DIGEST_LENGTH, digest_bytes, digest_file
from storage.errors import DigestError, FormatError, ParamsError

#: Names of former files → present ones.
FORMER = {"documents": "document_mask"}
FORMAT = 1
WEIGHTS = "model.safetensors"
DIGEST = f"{WEIGHTS}.b3"  # a line of b3sum; models from before there were digests have none
CONFIG = "config.json"
_LINE = re.compile(rf"([0-9a-f]{{{DIGEST_LENGTH}}})  {re.escape(WEIGHTS)}\n")

Samples = Literal["sequences", "documents"]


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to make the model again, and the dataset version that it learnt from.

    model: {"name", "args"}; spec: the shards manifest's; seq_len: tokens a sequence, None for samples; task: its name;
    manifest: digest of the shards manifest; samples: of text, whether it learnt from sequences or whole documents;
    document_mask: whether documents that share a sequence are kept apart; code: of a model of the user's own, its files
    when the training began, path from the recipe's folder → digest.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # of config.json

    model: dict[str, Any]
    spec: dict[str, Any]
    seq_len: Annotated[int, Field(ge=1)] | None
    task: str
    manifest: str
    samples: Samples = "sequences"
    document_mask: bool = False
    code: dict[str, str] = field(default_factory=dict)

    @property
    def sequence_len(self) -> int | None:
        """Tokens of a sequence, where samples are sequences of tokens."""
        return self.seq_len if self.samples == "sequences" else None

    def build(self, seed: int = 0, folders: Sequence[Path] = ()) -> nn.Module:
        """A fresh model of this configuration, its code looked for in `folders` (none: the current one) first."""
        model, args = self.model["name"], self.model["args"]
        return build_model(model, args, self.spec, self.seq_len, seed=seed, folders=folders)

    def get_task(self) -> Task:
        return task_of(self.spec, self.document_mask)


def weights(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a module's state, or of its state dict's, on the CPU, one a name (so tied tensors come twice), by the
    plain module's names: torch.compile puts a word before those of what it wraps."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    return {
        name.replace("_orig_mod.", ""): tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()
    }


def save_model(folder: Path, state: dict[str, Tensor], config: ModelConfig) -> None:
    """Write `state` and `config` into `folder`, each file whole or absent; the same always gives the same bytes."""
    data = encode_tensors(state)
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / DIGEST, f"{digest_bytes(data)}  {WEIGHTS}\n".encode())
    values = {"format": FORMAT, **asdict(config)}
    for name, usual in (("samples", "sequences"), ("document_mask", False), ("code", {})):
        if values[name] == usual:  # as files have always been, so that older versions read them
            del values[name]
    text = json.dumps(values, indent=2, sort_keys=True)
    write_atomically(folder / CONFIG, (text + "\n").encode())


def load_config(folder: Path, own: Own = NOBODY) -> ModelConfig:
    """Raises FormatError for a folder without a model, or of an unknown format; ParamsError for one whose model is
    neither Shardline's nor of the user's `own` code, or was trained with other code than that."""
    file = folder / CONFIG
    try:
        values = json.loads(file.read_text())
        found = values.pop("format")
        for former, name in FORMER.items():
            if former in values:
                values[name] = values.pop(former)
    except FileNotFoundError:
        raise FormatError(f"{folder}: holds no trained model. Run the train stage: `dvc repro train`.") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _malformed(file, error) from error
    if found != FORMAT:
        raise FormatError(
            f"{file}: model format {found!r}, but this Shardline reads format {FORMAT} only. "
            "Use the Shardline that wrote it, or train again with `dvc repro --force train`."
        )
    try:
        TypeAdapter(ModelConfig).validate_json(json.dumps(values))
        config = ModelConfig(**values)
        name, _ = str(config.model["name"]), dict(config.model["args"])
    except ValidationError as error:
        raise _malformed(file, explained(error)) from error
    except (TypeError, KeyError, ValueError) as error:
        raise _malformed(file, error) from error
    if fault := why_malformed(config.spec):
        raise _malformed(file, fault)
    own.check(name, file, config.code)
    return config


def _malformed(file: Path, error: Exception | str) -> FormatError:
    return FormatError(f"{file}: not a model's configuration ({error}). Restore it with `dvc checkout`.")


def check_weights(folder: Path) -> None:
    """Whether the weights in `folder` are as they were saved, without loading them: digested as they are mapped.
    Those without a digest beside them are taken as they are. Raises FormatError, DigestError, as `load_model`."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise _missing(file)
    _compare(file, lambda: digest_file(file))


def _read_weights(folder: Path) -> bytes:
    """The bytes of the weights, read once and digested in memory (a second for a few GB)."""
    file = folder / WEIGHTS
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise _missing(file) from None
    _compare(file, lambda: digest_bytes(data))
    return data


def _missing(file: Path) -> FormatError:
    return FormatError(f"{file}: missing. Restore it with `dvc checkout`, or train again.")


def _compare(file: Path, digest: Callable[[], str]) -> None:
    beside = file.with_name(DIGEST)
    if not beside.is_file():
        return
    line = _LINE.fullmatch(beside.read_text(errors="replace"))
    if line is None:
        raise FormatError(f"{beside}: not the digest of {WEIGHTS}. Restore it with `dvc checkout`.")
    if (found := digest()) != line[1]:
        raise DigestError(str(file), line[1], found, says=DIGEST)


def load_model(folder: Path, own: Own = NOBODY) -> tuple[nn.Module, ModelConfig]:
    """The model in `folder`, on the CPU and in evaluation mode. Its configuration may name Shardline's models and the
    user's `own` code (by default none), and nothing else is imported.

    Raises FormatError, DigestError (damaged weights), ParamsError (code that is gone, not to be imported, or not what
    it was trained with).
    """
    config = load_config(folder, own)
    file = folder / WEIGHTS
    try:
        model = config.build(folders=own.folders)
    except ParamsError as error:
        raise ParamsError(f"{folder / CONFIG}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # the model's own are ParamsErrors
        raise FormatError(
            f"{folder / CONFIG}: makes no model ({type(error).__name__}: {error}). Restore it with `dvc checkout`."
        ) from error
    try:
        tensors = load_tensors(_read_weights(folder))
        for name, mine in model.state_dict().items():
            if name in tensors and tensors[name].dtype is not mine.dtype:  # which torch would convert without a word
                raise RuntimeError(f"{name} is {tensors[name].dtype} there, and {mine.dtype} here.")
        model.load_state_dict(tensors)
    except SafetensorError as error:
        raise FormatError(f"{file}: not a safetensors file ({error}). Restore it with `dvc checkout`.") from error
    except RuntimeError as error:
        raise ParamsError(
            f"{file}: its weights don't fit model {config.model['name']!r}: the model's code changed after the "
            f"training. Train again, or go back to that code. {error}"
        ) from error
    return model.eval(), config
