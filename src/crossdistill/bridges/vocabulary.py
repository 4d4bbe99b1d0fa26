"""A vocabulary of visual words: a queue of a teacher's latest local features, and bags of words made with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.bridges.gather import gather_rows, summed
from crossdistill.errors import InputError
from crossdistill.losses.bow import Pool, bag_of, chunks, inner, squared_distances
from crossdistill.losses.inputs import widen

Queue = Literal["local_average", "location", "global_average"]
"""What of a map becomes a word: a 3 x 3 average at a random place, the feature of one place, or the map's mean."""

DISTANCE_MOMENTUM = 0.99
USED_RATE = 0.1
"""How fast the share of words that were used follows the words that leave the queue."""

KEPT_BYTES = 512 * 2**20
"""Distances of a batch up to this size are kept from one look to the next; larger ones are computed twice."""

_AVERAGED = 3


class Vocabulary(nn.Module):
    """K words of one level; all of it is buffers, and so state that a checkpoint holds.

    A step looks at the words as they were when it began (``snapshot``), so that targets and predictions mean the same
    words, and writes the batch's own words to the queue for the steps that follow. No image meets its own word.

    Args:
        num_words: K.
        channels: C of the level.
        inverse_delta: how sharply locations choose their words; ``None`` is the nearest alone.
        pool: how a bag is made of its locations.
        border: rows and columns at each edge of a map that do not count.
        queue: what becomes a word.
        words_per_step: of the images of a step, so many give a word; ``None`` all of them.
        initial_distance: where the mean distance to the nearest word starts, with a constant momentum (0.5 as
            published); ``None`` starts it at the first batch's, with a momentum that grows to the published 0.99.
        cosine: features and words are scaled to length 1 first.
    """

    words: Tensor
    snapshot: Tensor
    mean_distance: Tensor
    num_written: Tensor
    num_updates: Tensor
    hits: Tensor
    used: Tensor

    def __init__(
        self,
        num_words: int,
        channels: int,
        *,
        inverse_delta: float | None,
        pool: Pool = "max",
        border: int = 1,
        queue: Queue = "local_average",
        words_per_step: int | None = None,
        initial_distance: float | None = None,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        self.inverse_delta, self.pool, self.border, self.queue = inverse_delta, pool, border, queue
        self.words_per_step, self.initial_distance, self.cosine = words_per_step, initial_distance, cosine
        first = torch.randn(num_words, channels).clamp_(min=0)  # as published; gone once the queue has turned over
        self.register_buffer("words", F.normalize(first, dim=1) if cosine else first)
        self.register_buffer("snapshot", self.words.clone(), persistent=False)
        self.register_buffer("mean_distance", torch.tensor(initial_distance or 0.0))
        self.register_buffer("num_written", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("hits", torch.zeros(num_words))
        self.register_buffer("used", torch.ones(()))
        self._share, self._left = 1.0, words_per_step
        self.register_load_state_dict_post_hook(lambda *_: self.begin_step(1))  # type: ignore[no-untyped-call]

    def begin_step(self, num_micro_batches: int) -> None:
        """A step of so many micro-batches begins: from now on the words are those of this moment."""
        self.snapshot.copy_(self.words)
        self._share, self._left = 1 / num_micro_batches, self.words_per_step

    @torch.no_grad()
    def bags(self, features: Tensor, draws: Tensor) -> Tensor:
        """Bags ``(B, K)`` of the snapshot's words, in float32; in training the queue and the mean distance move on.

        In this order: distances to the words as they are, the mean distance, new words, bags with the *new* mean.

        Args:
            features: ``(B, C, H, W)``, a level of the teacher.
            draws: uniform ``(B,)``, where each image's new word is taken from.
        """
        features = F.normalize(widen(features), dim=1) if self.cosine else widen(features)
        locations = inner(features, self.border)
        parts = list(chunks(locations, num_words=len(self.words), itemsize=self.words.element_size()))
        kept = [squared_distances(part, self.snapshot) for part in parts] if self._fits(locations) else None
        if self.training:
            self._observe(kept or (squared_distances(part, self.snapshot) for part in parts))
            self._write(features, draws)
        scale = None if self.inverse_delta is None else self.inverse_delta / self._distance()
        each = kept or (squared_distances(part, self.snapshot) for part in parts)
        return torch.cat([bag_of(distances, scale, self.pool) for distances in each])

    @torch.no_grad()
    def nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of each location inside the border of maps ``(B, C, H, W)``: squared distance to, and number of, its word.

        ``(B, L)`` each, row by row, by the words as they are now.
        """
        features = F.normalize(widen(features), dim=1) if self.cosine else widen(features)
        parts = chunks(inner(features, self.border), num_words=len(self.words), itemsize=self.words.element_size())
        looks = [squared_distances(part, self.words).min(dim=2) for part in parts]
        return torch.cat([look.values for look in looks]), torch.cat([look.indices for look in looks])

    def figures(self) -> dict[str, Tensor]:
        """Scalars: the mean distance, and of the words that have left the queue the share that some location chose.

        That is an average over the latest steps; it stands at 1 until the queue has turned over.
        """
        return {"mean_distance": self.mean_distance.detach().clone(), "words_used": self.used.detach().clone()}

    @property
    def is_full(self) -> Tensor:
        """Whether every word is one of the teacher's features, as a tensor."""
        return self.num_written >= len(self.words)

    def _distance(self) -> Tensor:
        """The mean distance, or 1 before any was measured."""
        smallest = torch.finfo(self.mean_distance.dtype).tiny
        return torch.where(self.mean_distance > 0, self.mean_distance, 1.0).clamp(min=smallest)

    def _fits(self, locations: Tensor) -> bool:
        return locations.shape[0] * locations.shape[1] * len(self.words) * self.words.element_size() <= KEPT_BYTES

    def _observe(self, parts: Iterable[Tensor]) -> None:
        """Move the mean distance on, and count which words were chosen; with several processes over all of them.

        Args:
            parts: squared distances ``(b, L, K)`` of some images each.
        """
        looks = [distances.min(dim=2) for distances in parts]
        values = torch.cat([look.values for look in looks])
        numbers = torch.cat([look.indices for look in looks])
        hits = torch.zeros_like(self.hits).index_add_(0, numbers.flatten(), torch.ones_like(values.flatten()))
        mine = torch.stack([values.sum(), values.new_full((), values.numel())])
        total = summed(torch.cat([mine.to(hits.dtype), hits]))
        mean = total[0] / total[1]
        self.hits += total[2:]
        self._move(torch.where(mean.isfinite(), mean, self.mean_distance))

    def _move(self, mean: Tensor) -> None:
        """The mean distance towards that of this micro-batch, which counts as its share of a step."""
        momentum = mean.new_full((), DISTANCE_MOMENTUM)
        if self.initial_distance is None:  # the younger the average, the less of it is left: nothing at first
            num_steps = self.num_updates * self._share
            momentum = torch.minimum(momentum, num_steps / (num_steps + 10))
        kept = momentum**self._share
        self.mean_distance.copy_(kept * self.mean_distance + (1 - kept) * mean)
        self.num_updates += 1

    def _write(self, features: Tensor, draws: Tensor) -> None:
        """Replace the oldest words by the batch's, those of all processes in order of rank; of too many the last stay.

        Nothing is written where a new word is not finite: such a step (one that overflowed in float16) is skipped.
        """
        (new,), _ = gather_rows([candidates(features, draws, border=self.border, queue=self.queue)])
        if self.cosine:
            new = F.normalize(new, dim=1)
        new = new[: self._left].to(self.words.dtype)
        if self._left is not None:  # of all micro-batches of a step together
            self._left -= len(new)
        num_words, first = len(self.words), max(len(new) - len(self.words), 0)
        places = (self.num_written + torch.arange(first, len(new), device=new.device)) % num_words
        sound = new.isfinite().all()
        if len(places):
            share = (self.hits[places] > 0).to(self.used.dtype).mean()
            self.used.lerp_(share, USED_RATE * (sound & self.is_full))
        self.words[places] = torch.where(sound, new[first:], self.words[places])
        self.hits[places] = torch.where(sound, 0.0, self.hits[places])
        self.num_written += len(new) * sound


def candidates(features: Tensor, draws: Tensor, *, border: int, queue: Queue) -> Tensor:
    """One possible word of each map ``(B, C)``.

    Args:
        features: ``(B, C, H, W)``, its border not yet left out.
        draws: uniform ``(B,)`` from [0, 1), which of the places.
        border: rows and columns at each edge that do not count.
        queue: a 3 x 3 average (inside the border) at a place, one place's feature, or the mean of the map.
    """
    height, width = features.shape[-2:]
    features = features[..., border : height - border, border : width - border]
    if queue == "global_average":
        return features.mean(dim=(2, 3))
    if queue == "local_average":
        features = F.avg_pool2d(features, _AVERAGED, stride=1)
    flat = features.flatten(2)
    places = (draws.to(features.device) * flat.shape[2]).long().clamp(max=flat.shape[2] - 1)
    return flat.gather(2, places[:, None, None].expand(-1, flat.shape[1], 1))[..., 0]


def fitting(
    grid: tuple[int, int], where: str, *, border: int | None = None, queue: Queue | None = None
) -> tuple[int, Queue]:
    """Border and queue for a map, as published where it has 5 x 5 locations or more; smaller maps make do with less.

    What is left open is chosen: a border of 1 and 3 x 3 averages; on 3 x 3 or 4 x 4 locations no border; on fewer
    neither border nor averages.

    >>> fitting((7, 7), "level 4"), fitting((4, 4), "level 4"), fitting((1, 1), "level 4")
    ((1, 'local_average'), (0, 'local_average'), (0, 'location'))

    Args:
        grid: (height, width) of the map.
        where: names level and network, for messages.
        border: rows and columns at each edge that do not count; ``None`` leaves it open.
        queue: what becomes a word; ``None`` leaves it open.

    Raises:
        InputError: the map is too small for what is asked.
    """
    side = min(grid)
    least_inside = _inside(queue or "local_average")
    if border is None:
        border = 1 if side >= 2 + max(least_inside, _AVERAGED) else 0
    if queue is None:
        queue = "local_average" if side >= 2 * border + _AVERAGED else "location"
    least = 2 * border + _inside(queue)
    if side < least:
        raise InputError(
            f"{where}, whose map has {grid[0]}x{grid[1]} locations, with border={border} and queue={queue}",
            f"at least {least}x{least} locations",
            "raise the image size, choose an earlier level (method.levels), or leave method.border and method.queue "
            "out: small maps then go without",
        )
    return border, queue


def _inside(queue: Queue) -> int:
    """Locations a side that such a word needs."""
    return _AVERAGED if queue == "local_average" else 1
