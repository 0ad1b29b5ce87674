"""Trains the autoencoder or the diffusion transformer, on CPU or GPU, in slices of any length.

    python -m models.train vae   --total-steps 3000
    python -m models.train stdit --total-steps 20000 [--minutes 30]

The two stages follow each other: the transformer learns on latents of the exported autoencoder. A run may be stopped
at any moment and started again with the same command: the state file is replaced atomically, and all random numbers
of a step come from a generator seeded with (seed, step), so a resumed run draws what an unbroken one would have.
Resuming with another --total-steps is allowed: it stretches or shortens what is left of the schedule.
Exports (EMA weights as fp16 safetensors, loss curve as CSV) go to models/checkpoints/.
"""

import argparse
import copy
import csv
import io
import json
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import Tensor, nn

from models.errors import ModelError
from models.objectives import Objective, StditObjective, VaeObjective
from models.store import write_atomically

CHECKPOINT_DIR = Path(__file__).parent / "checkpoints"
STATE_DIR = Path("build") / "train"
SAVE_SECONDS = 60.0
EXPORT_SECONDS = 600.0
LOG_STEPS = 50
CLIP_NORM = 1.0
EMA_DECAY = 0.999


@dataclass(frozen=True)
class Settings:
    """What defines a training run. A state file of other settings is refused, total_steps excepted.

    Attributes:
        stage: "vae" or "stdit".
        total_steps: length of the cosine schedule.
        batch: examples per step (frames for vae, clips for stdit).
        peak_lr: learning rate after warm-up.
        warmup_steps: linear warm-up.
        seed: seeds the weights and, with the step number, everything drawn in a step.
    """

    stage: str
    total_steps: int
    batch: int = 16
    peak_lr: float = 8e-4
    warmup_steps: int = 200
    seed: int = 0


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up, then a cosine to zero at `total_steps`."""
    if step < settings.warmup_steps:
        return settings.peak_lr * (step + 1) / settings.warmup_steps
    span = max(1, settings.total_steps - settings.warmup_steps)
    return settings.peak_lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - settings.warmup_steps) / span)))


class Trainer:
    """Model, its moving average, the optimizer, and the loss curve of one run.

    Raises:
        ModelError: if the state file is unreadable or belongs to a run with other settings.
    """

    def __init__(self, settings: Settings, objective: Objective, state_path: Path, device: torch.device) -> None:
        self.settings = settings
        self.objective = objective
        self.state_path = state_path
        self.device = device
        torch.manual_seed(settings.seed)
        self.model: nn.Module = objective.build().to(device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.peak_lr, betas=(0.9, 0.99))
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        if state_path.exists():
            self._load()

    def _load(self) -> None:
        try:
            state = torch.load(self.state_path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch.load raises many kinds, by the kind of damage
            raise ModelError(f"{self.state_path}: not a readable training state ({_first_line(error)})") from error
        try:
            self._restore(state)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ModelError(f"{self.state_path}: is no state of this training ({_first_line(error)})") from error

    def _restore(self, state: dict[str, Any]) -> None:
        for field, value in vars(self.settings).items():
            if field != "total_steps" and state["settings"][field] != value:
                raise ModelError(
                    f"{self.state_path}: belongs to a run with {field}={state['settings'][field]}, not {value}; "
                    "give the same value or delete the file"
                )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
        self.curve = [(int(step), float(loss)) for step, loss in state["curve"]]

    def save(self) -> None:
        """Replaces the state file atomically; raises ModelError if it cannot be written."""
        state = {
            "settings": vars(self.settings),
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "curve": [list(point) for point in self.curve],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.state_path, buffer.getvalue())

    def train_step(self) -> Tensor:
        """One optimizer step; returns the detached loss."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.objective.loss(self.model, self.settings.batch, generator, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))  # a fresh average follows quickly
        parameters = [parameter.detach() for parameter in self.model.parameters()]
        torch._foreach_lerp_(list(self.ema.parameters()), parameters, 1.0 - decay)
        return loss.detach()

    def export(self, out_dir: Path) -> None:
        """Writes the averaged weights (fp16 safetensors) and the loss curve (CSV) of the run so far.

        Raises:
            ModelError: a file cannot be written.
        """
        tensors = self.objective.export(self.ema)
        metadata = {
            "config": json.dumps(self.objective.config()),
            "data_sha256": self.objective.data_sha256,
            "training": json.dumps({**vars(self.settings), "step": self.step}),
        }
        write_atomically(out_dir / f"{self.objective.name}.safetensors", save(tensors, metadata=metadata))
        curve = io.StringIO(newline="")
        writer = csv.writer(curve, lineterminator="\n")
        writer.writerow(("step", f"mean_loss_of_last_{LOG_STEPS}_steps"))
        writer.writerows((step, f"{loss:.5f}") for step, loss in self.curve)
        write_atomically(out_dir / f"{self.objective.name}_curve.csv", curve.getvalue().encode())


def _first_line(error: Exception) -> str:
    """Kind and first line: torch's messages run over many lines, a KeyError's is the bare key."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def run(trainer: Trainer, out_dir: Path, seconds: float, console: Console) -> None:
    """Trains until the schedule ends or the time is up, saving every minute and exporting every ten."""
    total = trainer.settings.total_steps
    trainer.model.train()
    start = time.monotonic()
    last_save = last_export = start
    losses: list[Tensor] = []
    columns = (TextColumn(trainer.settings.stage), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, TextColumn("loss {task.fields[loss]}"), console=console)
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task("train", total=total, completed=trainer.step, loss="-")
        while trainer.step < total and time.monotonic() - start < seconds:
            losses.append(trainer.train_step())
            if trainer.step % LOG_STEPS == 0 or trainer.step == total:
                mean = torch.stack(losses).mean().item()
                losses.clear()
                trainer.curve.append((trainer.step, mean))
                if not console.is_terminal:
                    console.print(f"step {trainer.step}/{total} loss {mean:.4f} {time.monotonic() - start:.0f} s")
                bar.update(task, loss=f"{mean:.4f}")
            bar.update(task, completed=trainer.step)
            now = time.monotonic()
            if now - last_save > SAVE_SECONDS:
                trainer.save()
                last_save = now
            if now - last_export > EXPORT_SECONDS:
                trainer.export(out_dir)
                last_export = now
    trainer.save()
    trainer.export(out_dir)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("vae", "stdit"))
    parser.add_argument("--total-steps", type=int, required=True, help="length of the cosine schedule, in steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time (resume later)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; on shared cores one is fastest")
    parser.add_argument("--out", type=Path, default=CHECKPOINT_DIR, help="folder of the exports")
    parser.add_argument("--state-dir", type=Path, default=STATE_DIR, help="folder of the resumable state")
    return parser.parse_args(arguments)


def pick_device(name: str) -> torch.device:
    """Resolves "auto" to cuda where there is one; raises ModelError if cuda is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda: no CUDA device is available; allowed here: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code (2 on a user error, 130 on Ctrl-C)."""
    options = parse_arguments(arguments)
    console = Console(soft_wrap=True)
    try:
        for field in ("total_steps", "batch", "threads"):
            if getattr(options, field) < 1:
                raise ModelError(f"--{field.replace('_', '-')} {getattr(options, field)}: must be at least 1")
        torch.set_num_threads(options.threads)
        device = pick_device(options.device)
        settings = Settings(options.stage, options.total_steps, options.batch, seed=options.seed)
        objective = VaeObjective() if options.stage == "vae" else StditObjective(options.out, options.state_dir, device)
        trainer = Trainer(settings, objective, options.state_dir / f"{options.stage}.pt", device)
        run(trainer, options.out, options.minutes * 60.0, console)
    except ModelError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last saved state")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
