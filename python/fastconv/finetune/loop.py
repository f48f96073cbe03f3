"""Training that can be stopped at any moment and goes on with the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._progress import Progress
from .checkpoint import Checkpoints
from .data import FinetuneError

_WARM_UP = 0.05  # of all steps


@dataclass(frozen=True)
class Options:
    """How to train.

    Args:
        patience: epochs without a better accuracy after which it stops; 0 for never
        checkpoint_every: seconds between checkpoints inside an epoch
    """

    epochs: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    seed: int
    dtype: str
    patience: int
    workers: int
    checkpoint_every: float


class Trainer:
    """A model, its optimizer, and how far it is.

    Args:
        model: what is trained; put it in the mode of training by `prepare`
        prepare: called with the model before each epoch
        train, held: data sets of inputs and classes
        facts: what must be the same when a training goes on, by name
        best: called when the accuracy is better than ever
    """

    def __init__(
        self,
        model: nn.Module,
        prepare: Callable[[nn.Module], object],
        train: Any,
        held: Any,
        options: Options,
        checkpoints: Checkpoints,
        facts: dict[str, Any],
        best: Callable[[nn.Module], object],
    ) -> None:
        self._model, self._prepare, self._options = model, prepare, options
        self._train, self._held, self._checkpoints = train, held, checkpoints
        self._facts, self._best = facts, best
        trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(
            trained, options.lr, options.momentum, weight_decay=options.weight_decay
        )
        self._per_epoch = math.ceil(len(train) / options.batch)
        self._epoch = self._step = self._since_best = 0
        self._sums = [0.0, 0]  # of this epoch: loss, images
        self.history: list[dict[str, float]] = []
        self._saved_at = time.monotonic()
        torch.manual_seed(options.seed)

    @property
    def best_accuracy(self) -> float:
        return max((line["accuracy"] for line in self.history), default=-1.0)

    def resume(self) -> bool:
        """Goes on from the last checkpoint, if there is one.

        Raises:
            FinetuneError: if it is of a training with other arguments.
        """
        state = self._checkpoints.load()
        if state is None:
            return False
        before = state["facts"]
        names = sorted({*before, *self._facts})
        changed = [n for n in names if before.get(n) != self._facts.get(n)]
        if changed:
            shown = ", ".join(f"{n}: {before.get(n)}, now {self._facts.get(n)}" for n in changed)
            raise FinetuneError(
                f"--out must be a new folder for other arguments, got a training with {shown}"
            )
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._epoch, self._step, self._since_best = state["at"]
        self._sums, self.history = state["sums"], state["history"]
        torch.set_rng_state(state["random"])
        return True

    def save(self) -> None:
        self._checkpoints.save(
            {
                "facts": self._facts,
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "at": [self._epoch, self._step, self._since_best],
                "sums": self._sums,
                "history": self.history,
                "random": torch.get_rng_state(),
            }
        )
        self._saved_at = time.monotonic()

    def run(self, progress: Progress, show: Callable[[dict[str, float]], object]) -> None:
        """Trains to the end; `show` gets a line for each epoch."""
        options = self._options
        while self._epoch < options.epochs and not self._is_over():
            start, first = time.monotonic(), self._step
            self._train_epoch(progress)
            seconds = time.monotonic() - start
            images = len(self._train) * (1 - first / self._per_epoch)
            before = self.best_accuracy
            line = {
                "epoch": self._epoch + 1,
                "loss": self._sums[0] / max(1, self._sums[1]),
                "accuracy": self._accuracy(progress),
                "images_per_second": images / max(seconds, 1e-9),
            }
            self.history.append(line)
            if line["accuracy"] > before:
                self._since_best = 0
                self._best(self._model)
            else:
                self._since_best += 1
            self._epoch, self._step, self._sums = self._epoch + 1, 0, [0.0, 0]
            self.save()
            show(line)

    def _is_over(self) -> bool:
        return 0 < self._options.patience <= self._since_best

    def _train_epoch(self, progress: Progress) -> None:
        options = self._options
        self._prepare(self._model)
        generator = torch.Generator().manual_seed(options.seed * 1009 + self._epoch)
        order = torch.randperm(len(self._train), generator=generator)
        if hasattr(self._train, "epoch"):
            self._train.epoch = self._epoch
        progress.task(f"epoch {self._epoch + 1} of {options.epochs}", self._per_epoch - self._step)
        for inputs, classes in self._loader(self._train, order[self._step * options.batch :]):
            loss = self._one(inputs, classes)
            self._sums = [self._sums[0] + loss * len(classes), self._sums[1] + len(classes)]
            self._step += 1
            progress.step()
            if time.monotonic() - self._saved_at > options.checkpoint_every:
                self.save()

    def _one(self, inputs: Tensor, classes: Tensor) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._options.dtype == "bfloat16"):
            output = self._model(inputs)
        smoothing = self._options.label_smoothing
        loss = F.cross_entropy(output.float(), classes, label_smoothing=smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise FinetuneError(f"the loss must stay finite: lower --lr, got {value}")
        return value

    def _rate(self) -> float:
        """A linear start, then a cosine to zero (https://arxiv.org/abs/1608.03983)."""
        total = self._options.epochs * self._per_epoch
        at = self._epoch * self._per_epoch + self._step
        warm = max(1, round(_WARM_UP * total))
        if at < warm:
            return self._options.lr * (at + 1) / warm
        return self._options.lr * 0.5 * (1 + math.cos(math.pi * (at - warm) / max(1, total - warm)))

    def _loader(self, data: Any, order: Tensor) -> Any:
        own = torch.utils.data.Subset(data, order.tolist())
        # With a generator of its own: else it would draw from that of dropout.
        return torch.utils.data.DataLoader(
            own,
            self._options.batch,
            num_workers=self._options.workers,
            generator=torch.Generator(),
        )

    def _accuracy(self, progress: Progress) -> float:
        self._model.eval()
        right = 0
        loader = self._loader(self._held, torch.arange(len(self._held)))
        progress.task("validation", len(loader))
        with torch.inference_mode():
            for inputs, classes in loader:
                right += int((self._model(inputs).argmax(1) == classes).sum())
                progress.step()
        return right / len(self._held)
