"""Tasks and replies as Flower's records: the only place where what crosses the network is packed and unpacked."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from crossdistill.federated.client import Reply, Task
from crossdistill.federated.knowledge import Knowledge, Refused, pack, unpack
from crossdistill.federated.settings import FederateSettings

TASK, TEACHER, WEIGHTS, KNOWLEDGE, FIGURES, FACTS, HISTOGRAM = (
    *("task", "teacher", "weights"),
    *("knowledge", "figures", "facts", "histogram"),
)
"""Names of records; ``histogram`` names both a record and its array."""

LARGEST = {"seconds": 1e9, "epsilon": 1e9}
"""Of figures that are no shares of one; any other than these is one."""

MOST_NOTES = 8
LONGEST_NOTE = 300


def record_of(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays as a record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def arrays_of(record: ArrayRecord, *, most_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays of a record, none of which is made before its size is checked.

    Raises:
        Refused: more bytes than this can be, pickled objects, or bytes that are no array.
    """
    size = sum(len(array.data) for array in record.values())
    if size > most_bytes:
        raise Refused(f"{size:,} bytes, where {most_bytes:,} are the most that was asked for")
    try:
        return {str(name): _loaded(array) for name, array in record.items()}
    except Exception as error:  # whatever numpy makes of bytes that a client has written
        raise Refused(f"bytes that are no array ({type(error).__name__})") from error


def _loaded(array: Array) -> NDArray[Any]:
    """The array, if its header announces as many bytes as follow; numpy would make room for what is announced."""
    file = io.BytesIO(array.data)
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = header(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(array.data) - file.tell():
        raise ValueError("another size than announced")
    return array.numpy()


def pack_task(task: Task, settings: FederateSettings, run: str) -> RecordDict:
    """A task as records; ``run`` names the run."""
    facts = {
        "settings": settings.model_dump_json(),
        "run": run,
        "round": task.round,
        "temperature": task.temperature,
        "wants": sorted(task.wants),
        "closing": task.closing,
        "test": task.test,
    }
    records = RecordDict({TASK: ConfigRecord(facts)})  # type: ignore[arg-type]
    if task.teacher is not None:
        records[TEACHER] = record_of(pack(task.teacher, settings.transport.kind, top_k=settings.transport.top_k))
    if task.weights is not None:
        records[WEIGHTS] = record_of(task.weights)
    return records


def unpack_task(records: RecordDict, *, num_samples: int, num_classes: int) -> Task:
    """The task of these records; a server's arrays are checked as a client's are."""
    facts: Any = records[TASK]
    teacher = weights = None
    if TEACHER in records:
        arrays = arrays_of(records[TEACHER], most_bytes=most_bytes(num_samples, num_classes))  # type: ignore[arg-type]
        teacher = unpack(arrays, num_samples=num_samples, num_classes=num_classes)
    if WEIGHTS in records:
        weights = {name: array.numpy() for name, array in records[WEIGHTS].items()}  # type: ignore[union-attr]
    return Task(
        round=int(facts["round"]),
        temperature=float(facts["temperature"]),
        wants=frozenset(facts["wants"]),
        teacher=teacher,
        weights=weights,
        closing=bool(facts["closing"]),
        test=bool(facts["test"]),
    )


def read_reply(records: RecordDict) -> tuple[int, list[str], dict[str, float]]:
    """(client, notes, figures) of a reply, whatever a client may have written there.

    Raises:
        Refused: it does not say whose it is.
    """
    facts = records.config_records.get(FACTS, ConfigRecord())
    client, notes = facts.get("client"), facts.get("notes", [])
    if not isinstance(client, int):
        raise Refused("an answer that does not say whose it is")
    told = notes if isinstance(notes, list) else []
    given = records.metric_records.get(FIGURES, MetricRecord())
    figures = {str(name): float(value) for name, value in given.items() if isinstance(value, int | float)}
    return (
        client,
        [str(note)[:LONGEST_NOTE] for note in told[:MOST_NOTES]],
        {name: value for name, value in figures.items() if 0 <= value <= LARGEST.get(name, 1.0)},
    )


def pack_reply(reply: Reply, client: int, settings: FederateSettings) -> RecordDict:
    """A client's reply as records."""
    notes = [note[:LONGEST_NOTE] for note in reply.notes[:MOST_NOTES]]
    records = RecordDict(
        {FACTS: ConfigRecord({"client": client, "notes": notes}), FIGURES: MetricRecord({**reply.figures})}
    )
    if reply.knowledge is not None:
        records[KNOWLEDGE] = record_of(pack(reply.knowledge, settings.transport.kind, top_k=settings.transport.top_k))
    if reply.weights is not None:
        records[WEIGHTS] = record_of(reply.weights)
    if reply.histogram is not None:
        records[HISTOGRAM] = record_of({HISTOGRAM: reply.histogram})
    return records


def size_of(records: RecordDict) -> int:
    """Bytes of all arrays in these records, each with its header of some 130 bytes."""
    return sum(len(array.data) for record in records.array_records.values() for array in record.values())


def unpack_knowledge(records: RecordDict, *, num_samples: int, num_classes: int) -> Knowledge:
    """What a client says of the transfer set.

    Raises:
        Refused: there is none, or it is not what was asked for.
    """
    if KNOWLEDGE not in records.array_records:
        raise Refused("no answers to the transfer set")
    arrays = arrays_of(records.array_records[KNOWLEDGE], most_bytes=most_bytes(num_samples, num_classes))
    return unpack(arrays, num_samples=num_samples, num_classes=num_classes)


def unpack_weights(records: RecordDict, like: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, NDArray[Any]]:
    """A client's network, of exactly these shapes and types by name; an empty mapping takes any, as of the first one.

    Raises:
        Refused: other shapes or types, or values that are not finite.
    """
    if WEIGHTS not in records.array_records:
        raise Refused("no weights")
    arrays = arrays_of(records.array_records[WEIGHTS], most_bytes=2**34)
    shapes = shapes_of(arrays)
    if like and shapes != dict(like):
        odd = next(name for name in {**shapes, **like} if shapes.get(name) != like.get(name))
        raise Refused(f"weights {odd!r} of {shapes.get(odd)}, where {like.get(odd)} was expected")
    if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
        raise Refused("weights that are not finite")
    return arrays


def shapes_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each array."""
    return {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}


def unpack_histogram(records: RecordDict, num_classes: int) -> NDArray[np.int64]:
    """A client's label counts.

    Raises:
        Refused: none, or no counts.
    """
    if HISTOGRAM not in records.array_records:
        raise Refused("no label counts")
    arrays = arrays_of(records.array_records[HISTOGRAM], most_bytes=64 * num_classes + 1024)
    counts = arrays.get(HISTOGRAM)
    if counts is None or counts.shape != (num_classes,) or counts.dtype.kind not in "iu" or counts.sum() < 1:
        raise Refused("label counts of another form")
    return counts.astype(np.int64)


def most_bytes(num_samples: int, num_classes: int) -> int:
    """The most that answers to so many samples may take: single precision, a mask and headers."""
    return 4 * num_samples * num_classes + num_samples + 4096
