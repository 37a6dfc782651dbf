"""Training as in section 3.1, for one process or many, resumable at every step.

A run is a folder. All randomness follows from (seed, epoch, image) and (seed, step), so a run that
was killed and continued ends with the same weights on a CPU as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import save
from fastscnn.training import distributed
from fastscnn.training.data import check_bad
from fastscnn.training.learner import Learner
from fastscnn.training.loading import Batch, Order, Samples, derive
from fastscnn.training.optimize import learning_rate
from fastscnn.training.progress import Progress
from fastscnn.training.recipe import Recipe
from fastscnn.training.report import Report, commit, machine
from fastscnn.training.run_folder import Board, RunFolder, size_on_disk
from fastscnn.training.tasks import Score, make_task


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here decides its result."""

    device: str = "cpu"
    #: Processes that prepare samples, per training process; 0 prepares them in it.
    workers: int = 0
    #: CPU threads of torch; 0 is torch's setting.
    threads: int = 0
    compile: bool = False
    #: Steps between two writings of `last.pth`, which the end of an epoch writes too.
    save_every: int = 500
    #: Epochs between two sets of pictures of validation images; 0 draws none.
    overlays_every: int = 0
    tensorboard: bool = False
    #: Draw `curves.png` after every validation.
    plot: bool = False
    quiet: bool = False


class Trainer:
    """One run in one folder; `run()` trains to the end, from `last.pth` where there is one.

    `train` and `val` are `SegmentationData`, or `ImageFolders` for a recipe of task "classify".
    `init` is a checkpoint whose weights a fresh run starts from.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: Any,
        val: Any,
        folder: str | Path,
        *,
        options: Options | None = None,
        init: str | Path | None = None,
    ) -> None:
        self.recipe, self.options = recipe, options or Options()
        self.device = distributed.start(self.options.device)
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        torch.manual_seed(recipe.seed)
        self.task = make_task(recipe, train, val, self.options.workers)
        self.order = Order(
            len(self.task.train), recipe.batch, recipe.epochs, recipe.seed,
            distributed.rank(), distributed.world(), self.task.groups(),
        )  # fmt: skip
        self.init = "fresh weights" if init is None else self.task.initialise(init)
        self.learner = Learner(
            recipe, self.task.model, self.task.losses(), self.device, compile=self.options.compile
        )
        self.folder = RunFolder(Path(folder))
        self.progress = Progress()
        self._unchecked: list[Tensor] = []
        self._board = Board(None)
        shown = distributed.rank() == 0 and not self.options.quiet
        self.report = Report(recipe, self.order.steps_per_epoch, shown)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.recipe.epochs * self.order.steps_per_epoch

    def _lr(self) -> float:
        """Learning rate of the last step."""
        return learning_rate(self.recipe, self.progress.step - 1, self.steps)

    # The run

    def run(self) -> float:
        """Trains to the recipe's last epoch; returns the best validation score."""
        self._prepare()
        self._announce()
        p = self.progress
        try:
            for batch, waited, begin in self._batches():
                self._step(batch)
                took = time.perf_counter() - begin
                p.count(took, waited)
                self.report.step(p.step, p.loss, self._lr(), took, waited)
                if p.step % self.order.steps_per_epoch == 0:
                    self._finish_epoch()
                elif p.step % self.options.save_every == 0:
                    self._save()
        except KeyboardInterrupt:
            self.report.say(f"interrupted; the same command continues from {self.folder.state}")
            raise
        finally:
            self.report.end_bar()
            self._board.close()
        self.report.end(self.task.score_name, p.best, str(self.folder.best))
        return p.best

    def _announce(self) -> None:
        parameters = sum(p.numel() for p in self.learner.model.parameters())
        world, workers = distributed.world(), self.options.workers
        processes = f"{workers} workers" + (f" for each of {world} processes" * (world > 1))
        self.report.plan(
            self.task.describe(),
            f"{parameters / 1e6:.2f} M parameters; {self.init}",
            self.progress.step,
            self.order.count % self.order.batch,
            f"{machine(self.device)}; {processes}",
            str(self.folder.path),
        )

    def _prepare(self) -> None:
        """Resumes if there is something to resume; checks the folder before time is spent."""
        state = None
        if distributed.rank() == 0:
            self.folder.prepare(8 * size_on_disk(self.learner.model) + 16_000_000)
            if self.options.plot:
                from fastscnn.training.plots import require_matplotlib

                require_matplotlib()
            state = self.folder.read_state(torch.device("cpu"))
        state = distributed.from_first(state)
        if state is not None:
            self._restore(state)
        if distributed.rank() == 0:
            folder = self.folder.path if self.options.tensorboard else None
            self._board = Board(folder, self.progress.step)
        self.order.first_step = self.progress.step

    def _batches(self) -> Iterator[tuple[Batch, float, float]]:
        """Batches with the seconds that each was waited for and the time when that began."""
        samples = Samples(self.task.sample, len(self.task.train), derive(self.recipe.seed, 1))
        loader = samples.loader(self.order, self.options.workers, self.device)
        batches = iter(loader)
        self.learner.train()
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            if batch.error:
                raise ValueError(f"data {self.task.train.name}: {batch.error}")
            self._note_skipped(batch.skipped)
            yield batch, time.perf_counter() - begin, begin

    def _step(self, batch: Batch) -> None:
        """One step of the optimizer."""
        self._unchecked.append(self.learner.step(batch, self.progress.step, self.steps))
        if self.device.type == "cpu" or len(self._unchecked) >= 10:  # reading a loss stops a GPU
            self._check_losses(self.progress.step)

    # Watching over it

    def _check_losses(self, last_step: int) -> None:
        """Adds up the losses since the last check; one that is not finite ends the run."""
        if not self._unchecked:
            return
        values = distributed.total(torch.stack(self._unchecked)) / distributed.world()
        first = last_step - len(self._unchecked) + 1
        self._unchecked = []
        for step, value in enumerate(values.tolist(), first):
            if value != value or abs(value) == float("inf"):
                raise FloatingPointError(self._diverged(f"the loss is {value}", step))
            self.progress.loss_sum += value
            self.progress.losses += 1

    def _check_weights(self) -> None:
        if not self.learner.is_finite():
            step = self.progress.step - 1
            raise FloatingPointError(self._diverged("weights are no longer finite", step))

    def _diverged(self, what: str, step: int) -> str:
        epoch, within = divmod(step, self.order.steps_per_epoch)
        names = ", ".join(self.task.file(index) for _, index in self.order.at(step)[:4])
        kept = (
            f"{self.folder.state} holds the last good state"
            if self.folder.state.exists()
            else "nothing was saved yet"
        )
        advice = ["a lower --lr"]
        advice += [] if self.recipe.clip_norm else ["--clip-norm 1"]
        advice += [] if self.recipe.amp == "none" else ["--amp none"]
        start = f"--init {self.folder.best} and " if self.folder.best.exists() else ""
        return (
            f"{what} at epoch {epoch + 1}, step {within + 1} of {self.order.steps_per_epoch} "
            f"(images {names}, ...); {kept}. Try {' or '.join(advice)}, with {start}another --out"
        )

    def _note_skipped(self, messages: list[str]) -> None:
        known = self.progress.skipped
        for message in messages:
            if message not in known:
                known.append(message)
                self.report.say(f"skipped: {message}")
                check_bad(known, len(self.task.train), self.task.train.name)

    # The end of an epoch

    def _finish_epoch(self) -> None:
        p, r = self.progress, self.recipe
        self._check_losses(p.step - 1)
        self._check_weights()
        epoch = p.step // self.order.steps_per_epoch
        begin = time.perf_counter()
        score = None
        if epoch % r.val_every == 0 or epoch == r.epochs:
            score = self.task.validate(self.learner.evaluated())
        often = self.options.overlays_every
        if often and (epoch % often == 0 or epoch == r.epochs):
            self._draw(epoch)
        scores = {} if score is None else score.values
        row = p.finish_epoch(epoch, r.batch, self._lr(), scores, time.perf_counter() - begin)
        self._write(row, score)
        self.learner.train()

    def _draw(self, epoch: int) -> None:
        if distributed.rank() == 0:
            folder = self.folder.path / "overlays" / f"epoch_{epoch:04d}"
            for _ in self.task.pictures(self.learner.deployed.eval(), folder):
                pass

    def _write(self, row: dict[str, Any], score: Score | None) -> None:
        """Best weights, state, log, curves and a line for the reader, in that order."""
        p = self.progress
        better = score is not None and score.best_by > p.best
        if better and score is not None:
            p.best = score.best_by
        if distributed.rank() == 0:
            if better:
                save(self.learner.deployed, self.folder.best, self._card(row))  # type: ignore[arg-type]
            self._save()
            self.folder.write_log(p.rows)
            self._board.add({k: v for k, v in row.items() if k not in ("epoch", "step")}, p.step)
            if self.options.plot and score is not None:
                from fastscnn.training.plots import plot_curves

                picture = self.folder.path / "curves.png"
                plot_curves([self.folder.path], picture, self.task.score_name)
        values, unreadable = (score.values, score.unreadable) if score else ({}, 0)
        self.report.epoch(row, values, p.best, unreadable, p.total_seconds)

    def _card(self, row: Mapping[str, Any]) -> Card:
        metrics = {k: row[k] for k in (self.task.score_name, "pixel_accuracy", "top5") if k in row}
        return replace(
            self.task.card(),
            recipe=self.recipe.to_dict(),
            epochs=row["epoch"],
            commit=commit(),
            metrics={"split": "val", **metrics},
            machine=machine(self.device),
            wall_time=round(self.progress.total_seconds, 1),
        )

    def _save(self) -> None:
        self._check_losses(self.progress.step - 1)
        self._check_weights()
        if distributed.rank() != 0:
            return
        self.folder.write_state(
            {
                **self.learner.state(),
                "progress": vars(self.progress),
                "recipe": self.recipe.to_dict(),
                "data": self._identity(),
                "card": self.task.card().to_dict(),
            }
        )

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to continue."""
        return {
            "data": self.task.train.name,
            "classes": list(self.task.class_names),
            "training images": len(self.task.train),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.folder.check_same(state, self._identity(), self.recipe)
        self.learner.restore(state)
        self.progress = Progress(**state["progress"])
        self.init = f"continued from epoch {self.progress.step / self.order.steps_per_epoch:.4g}"
