"""Training samples in a fixed random order, from any step on, prepared by worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fastscnn.media.frames import ImageError

_T = TypeVar("_T")


def derive(*parts: int) -> int:
    """A seed that follows from the given numbers."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass
class Batch:
    """One step's samples: uint8 images N x 3 x h x w, targets, colour factors N x 3."""

    images: Tensor
    targets: Tensor
    factors: Tensor
    #: What could not be read, and was replaced by the next image.
    skipped: list[str]
    #: Why there is no batch; such an error ends the run.
    error: str = ""

    def pin_memory(self) -> Batch:
        """Called by the DataLoader."""
        for name in ("images", "targets", "factors"):
            setattr(self, name, getattr(self, name).pin_memory())
        return self


class Order(Sampler[list[tuple[int, int]]]):
    """(epoch, index) of each of this process's samples, batch by batch, for a whole run.

    Every epoch is a permutation that follows from (seed, epoch); what does not fill a batch is left
    out. With several `groups` of indices an epoch has as many samples, each group's share the same;
    an image that comes again has another number for its epoch, so another augmentation.
    `batch` counts the samples of all processes together; raises ValueError where it does not fit
    their number or `count`.
    """

    def __init__(
        self, count: int, batch: int, epochs: int, seed: int, rank: int = 0, world: int = 1,
        groups: Sequence[Sequence[int]] = (),
    ) -> None:  # fmt: skip
        if count < batch:
            raise ValueError(
                f"batch {batch} is larger than the {count} training images; use a batch of at most "
                f"{count}"
            )
        if batch % world or batch // world < 2:
            raise ValueError(
                f"batch {batch} for {world} processes: expected a multiple of {world}, with 2 or "
                f"more images each; use --batch {max(2, round(batch / world)) * world}"
            )
        self.count, self.batch, self.epochs, self.seed = count, batch, epochs, seed
        self.rank, self.world = rank, world
        self.first_step = 0
        self.groups = groups or [range(count)]
        self._shuffled: tuple[int, list[tuple[int, int]]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.batch

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.epochs * self.steps_per_epoch):
            yield self.at(step)[self.rank :: self.world]

    def at(self, step: int) -> list[tuple[int, int]]:
        """(epoch, index) of all samples of one step of the run."""
        epoch, step = divmod(step, self.steps_per_epoch)
        if self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(derive(self.seed, epoch))
            self._shuffled = epoch, self._epoch(epoch, generator)
        return self._shuffled[1][step * self.batch :][: self.batch]

    def _epoch(self, epoch: int, generator: torch.Generator) -> list[tuple[int, int]]:
        def shuffled(count: int) -> list[int]:
            order: list[int] = torch.randperm(count, generator=generator).tolist()
            return order

        if len(self.groups) == 1:
            return [(epoch, i) for i in shuffled(self.count)]
        samples = []
        for group in self.groups:
            wanted = -(-self.count // len(self.groups))
            for again in range(-(-wanted // len(group))):
                chosen = shuffled(len(group))[: wanted - again * len(group)]
                samples += [(epoch + again * self.epochs, group[i]) for i in chosen]
        return [samples[i] for i in shuffled(len(samples))]


class Samples(Dataset[Any]):
    """Augmented samples; each has its own generator, so neither order nor workers change it.

    `make(index, generator)` gives (image, target, factors). An unreadable file is replaced by the
    next one and reported in the batch; any other ValueError ends the run.
    """

    def __init__(self, make: Callable[[int, torch.Generator], Any], count: int, seed: int) -> None:
        self.make, self.count, self.seed = make, count, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, list[str], str]:
        epoch, index = key
        skipped: list[str] = []
        for i in range(min(self.count, 10)):
            generator = torch.Generator().manual_seed(derive(self.seed, epoch, index))
            try:
                return self.make((index + i) % self.count, generator), skipped, ""
            except ImageError as error:
                skipped.append(str(error))
            except (ValueError, OSError) as error:
                return None, skipped, str(error)
        return None, skipped, f"{len(skipped)} files in a row cannot be read; first: {skipped[0]}"

    def loader(self, order: Order, workers: int, device: torch.device) -> DataLoader[Batch]:
        """Batches in that order; workers go on preparing while the model is validated."""
        return DataLoader(
            self,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
        )


def _collate(samples: Sequence[tuple[Any, list[str], str]]) -> Batch:
    skipped = [message for _, messages, _ in samples for message in messages]
    errors = [error for _, _, error in samples if error]
    if errors:
        nothing = torch.empty(0)
        return Batch(nothing, nothing, nothing, skipped, errors[0])
    images, targets, factors = zip(*(sample for sample, _, _ in samples), strict=True)
    return Batch(
        torch.stack(images), torch.stack([torch.as_tensor(t) for t in targets]),
        torch.stack(factors), skipped,
    )  # fmt: skip


def ahead(get: Callable[[int], _T], indices: Iterable[int], workers: int) -> Iterator[_T]:
    """`get` of each index in order, some of them in advance in threads."""
    if workers < 1:
        yield from map(get, indices)
        return
    with ThreadPoolExecutor(workers) as pool:
        rest = iter(indices)
        waiting: list[Future[_T]] = [pool.submit(get, i) for i in islice(rest, 2 * workers)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(get, i) for i in islice(rest, 1)]
