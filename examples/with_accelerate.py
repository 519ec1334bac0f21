"""accelerate as the trainer: `train.entrypoint: with_accelerate:train` (docs/your-own-trainer.md)."""

import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from pipelines.training.trainer.job import TrainerJob


def train(job: TrainerJob, clip_norm: float = 1.0) -> None:
    settings = job.params.train
    accelerator = Accelerator(cpu=job.device.type == "cpu")
    model = job.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    model, optimizer = accelerator.prepare(model, optimizer)  # the loader is ready: it is not prepared again
    accelerator.register_for_checkpointing(job.train)  # so a checkpoint holds our place in the data
    step = restore(accelerator, job.checkpoint_folder)
    while step < job.steps:
        for batch in job.train:  # what is left of an epoch
            job.seed_step(step)
            loss = job.loss(model(batch["inputs"]), batch["targets"]) * batch["weight"]
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % settings.log_every == 0:
                mean = accelerator.reduce(loss.detach(), "mean")
                job.log({"train_loss": float(mean), "lr": settings.lr}, step)
            if step % settings.eval_every == 0 or step == job.steps:
                job.log(job.validate(model), step)
            stopping = job.stopping()
            if stopping or step % settings.checkpoint_every == 0:
                save(accelerator, job.checkpoint_folder, step)
            if stopping:
                return
            if step == job.steps:
                break
    job.save_model(accelerator.unwrap_model(model))


def save(accelerator: Accelerator, folder: Path, step: int) -> None:
    """accelerate writes file by file: a checkpoint gets its name once it is whole. The newest one stays."""
    accelerator.save_state(str(folder / "unfinished"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (folder / "unfinished").rename(folder / f"step-{step:08d}")
        for old in sorted(folder.glob("step-*"))[:-1]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint. Returns the steps that it had done; 0 without one."""
    if accelerator.is_main_process:
        shutil.rmtree(folder / "unfinished", ignore_errors=True)
    accelerator.wait_for_everyone()
    found = sorted(folder.glob("step-*"))
    if not found:
        return 0
    accelerator.load_state(str(found[-1]))
    return int(found[-1].name.removeprefix("step-"))
