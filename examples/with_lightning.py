"""PyTorch Lightning as the trainer: `train.entrypoint: with_lightning:train` (docs/your-own-trainer.md)."""

import signal
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from pipelines.training.trainer.job import TrainerJob


def train(job: TrainerJob, clip_norm: float = 1.0) -> None:
    settings = job.params.train
    module = Module(job)
    checkpoints = ModelCheckpoint(
        job.checkpoint_folder,
        filename="{step:08d}",
        monitor="step",
        mode="max",
        save_top_k=1,
        every_n_train_steps=settings.checkpoint_every,
    )
    trainer = pl.Trainer(
        max_steps=job.steps,
        max_epochs=-1,
        devices=job.world,
        accelerator="cpu" if job.device.type == "cpu" else "gpu",
        strategy="ddp" if job.world > 1 else "auto",
        gradient_clip_val=clip_norm,
        callbacks=[checkpoints, StopOnSignal(job)],
        default_root_dir=job.checkpoint_folder,
        logger=False,  # job.log tells MLflow and the curves
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # The loader has state_dict and load_state_dict, so Lightning keeps our place in the data in its checkpoints.
    newest = max(job.checkpoint_folder.glob("*.ckpt"), default=None)
    trainer.fit(module, train_dataloaders=job.train, ckpt_path=newest, weights_only=True)
    job.save_model(module.model)


class Module(pl.LightningModule):
    def __init__(self, job: TrainerJob) -> None:
        super().__init__()
        self.job, self.model = job, job.build_model()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.job.params.train
        return torch.optim.AdamW(self.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.job.seed_step(self.global_step)
        return self.job.loss(self(batch["inputs"]), batch["targets"]) * batch["weight"]

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        job, settings, step = self.job, self.job.params.train, self.global_step
        if step % settings.log_every == 0:
            mean = self.trainer.strategy.reduce(outputs["loss"], reduce_op="mean")
            job.log({"train_loss": float(mean), "lr": settings.lr}, step)
        if step % settings.eval_every == 0 or step == job.steps:
            job.log(job.validate(self.model), step)


class StopOnSignal(pl.Callback):
    """Leaves after the step in which a rank was told to, with a checkpoint of that step."""

    def __init__(self, job: TrainerJob) -> None:
        self.job = job

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self.job.stop.note)  # Lightning's own handler would end in the middle of a step

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self.job.stopping():
            trainer.save_checkpoint(self.job.checkpoint_folder / f"step={trainer.global_step:08d}.ckpt")
            trainer.should_stop = True
