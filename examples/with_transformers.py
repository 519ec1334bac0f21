"""The Hugging Face Trainer and a Llama made from scratch, without a hub: `train.entrypoint: with_transformers:train`,
`model.name: with_transformers:Llama` (docs/your-own-trainer.md)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")  # read when transformers is imported

from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

if TYPE_CHECKING:  # a packaged model brings this module, and needs no trainer
    from pipelines.training.data.loader import Loader
    from pipelines.training.trainer.job import TrainerJob


class Llama(nn.Module):
    """tokens int64 [B, T] → logits [B, T, vocab_size]: the contract of a model of ours, so it can be evaluated and
    packaged like any other."""

    def __init__(self, vocab_size: int, seq_len: int, dim: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=dim,
                intermediate_size=4 * dim,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                max_position_embeddings=seq_len,
                use_cache=False,
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.llama(input_ids=tokens).logits


def train(job: TrainerJob) -> None:
    settings = job.params.train
    arguments = TrainingArguments(
        output_dir=str(job.checkpoint_folder),
        max_steps=job.steps,
        learning_rate=settings.lr,
        lr_scheduler_type="constant",
        weight_decay=settings.weight_decay,
        save_steps=settings.checkpoint_every,
        save_total_limit=1,
        logging_steps=settings.log_every,
        ignore_data_skip=True,  # our loader goes to its place by itself: no batch is read again to be skipped
        use_cpu=job.device.type == "cpu",
        report_to="none",  # job.log tells MLflow and the curves
        disable_tqdm=True,
        seed=job.params.seed % 2**32,
    )
    trainer = OurTrainer(job, model=job.build_model(), args=arguments, callbacks=[Place(job.train), Follow(job)])
    trainer.train(resume_from_checkpoint=newest(job))
    job.save_model(trainer.accelerator.unwrap_model(trainer.model))


class OurTrainer(Trainer):
    def __init__(self, job: TrainerJob, **options: Any) -> None:
        super().__init__(**options)
        self.job = job

    def get_train_dataloader(self) -> Loader:
        return self.job.train

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        self.job.seed_step(self.state.global_step)
        return self.job.loss(model(inputs["inputs"]), inputs["targets"]) * inputs["weight"]


class Place(TrainerCallback, ExportableState):
    """Keeps our place in the data in trainer_state.json, which the Trainer writes last."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": self.loader.state_dict()}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.loader.load_state_dict(state.stateful_callbacks["Place"]["attributes"])


class Follow(TrainerCallback):
    """Logs, validates, and leaves after the step in which a rank was told to, with a checkpoint of that step."""

    def __init__(self, job: TrainerJob) -> None:
        self.job = job

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.job.log({"train_loss": logs["loss"], "lr": logs["learning_rate"]}, state.global_step)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> TrainerControl:
        step, every = state.global_step, self.job.params.train.eval_every
        if step % every == 0 or step == self.job.steps:
            self.job.log(self.job.validate(model), step)
        if self.job.stopping():
            control.should_save = control.should_training_stop = True
        return control


def newest(job: TrainerJob) -> str | None:
    """The newest checkpoint that is whole."""
    found = [file.parent for file in job.checkpoint_folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(found, key=lambda folder: int(folder.name.split("-")[1]))) if found else None
