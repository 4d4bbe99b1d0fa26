"""What must be known of a run's teacher and images to read its table: sentences that stand below it."""

from __future__ import annotations

from collections.abc import Iterator

from crossdistill.engine import DEFAULT_EPOCHS
from crossdistill.report.results import Results, StoreFacts


def notes(results: Results) -> list[str]:
    """The sentences; none where the teacher answers in every step and each run draws its own images."""
    return list(_notes(results))


def _notes(results: Results) -> Iterator[str]:
    if results.store is not None:
        yield (
            f"Teacher: answers stored in {results.store.path} ({what_is_stored(results.store)}). "
            "Its accuracy and latency were measured when the store was made."
        )
    data, train = (results.settings.get(key) or {} for key in ("data", "train"))
    seeds = {run.seed for row in results.rows for run in row.runs if row.role != "teacher"}
    if data.get("seed") is not None and len(seeds) > 1:
        yield "All seeds saw the same images in the same order: the spread is that of first weights only."
    cycle, steps = data.get("cycle_epochs"), train.get("steps")
    epochs = train.get("epochs") or DEFAULT_EPOCHS
    if cycle is not None and (steps is not None or epochs > cycle):
        length = _counted(steps, "step") if steps is not None else str(epochs)
        yield f"Images of {_counted(cycle, 'epoch')}, shown again and again for {length}."


def what_is_stored(store: StoreFacts) -> str:
    """What is kept of each answer, and to which images."""
    classes = store.num_classes
    kept = (
        f"all {classes} logits"
        if store.top_k is None
        else f"the {'largest' if store.top_k == 1 else f'{store.top_k} largest'} of {classes} logits and the mass of "
        "the others"
    )
    with_embeddings = ", with embeddings" if store.embeddings else ""
    images = f"images of seed {store.seed}; {_counted(store.num_epochs, 'epoch')}"
    return f"{kept}{with_embeddings}; {store.precision}; {images}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
