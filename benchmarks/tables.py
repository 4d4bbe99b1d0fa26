"""The tables of benchmarks/README.md, made from the rows in ``results/``: no figure is typed in.

A table stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.

    python benchmarks/tables.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from timing import read

from crossdistill.report.results_csv import update_blocks
from crossdistill.report.table import markdown

Row = Mapping[str, str]
Cell = Callable[[Row], str]

RESULTS = Path("results")
README = Path(__file__).parent / "README.md"


def main() -> None:
    """Write every table whose rows are there."""
    blocks = {}
    for name, (file, columns) in TABLES.items():
        rows = [row for row in read(RESULTS / file) if SHOWN.get(name, bool)(row)]
        if rows:
            cells = tuple(tuple(cell(row) for cell in columns.values()) for row in rows)
            text = markdown(tuple(columns), cells, num_text_columns=2)
            blocks[f"<!-- {name}:begin -->", f"<!-- {name}:end -->"] = f"\n{text}\n"
    update_blocks(README, blocks)


def field(name: str) -> Cell:
    """The column as it is."""
    return lambda row: row[name] or "–"


def number(name: str, digits: int) -> Cell:
    """The column with so many digits after the point."""
    return lambda row: f"{float(row[name]):,.{digits}f}" if row[name] else "–"


def ratio(name: str, digits: int = 2) -> Cell:
    """A median with its 95 % interval."""
    shown = [number(one, digits) for one in (name, f"{name}_low", f"{name}_high")]

    def cell(row: Row) -> str:
        median, low, high = (one(row) for one in shown)
        return f"{median} ({low} to {high})" if row[name] else median

    return cell


def percent(name: str) -> Cell:
    """A share in percent."""
    return lambda row: f"{100 * float(row[name]):.1f} %" if row[name] else "–"


def spread(name: str) -> Cell:
    """A mean over seeds in percent, with its standard deviation."""
    return lambda row: f"{100 * float(row[f'{name}_mean']):.1f} ± {100 * float(row[f'{name}_sd'] or 0):.1f} %"


def pair(row: Row) -> str:
    """Teacher and student, without what their names say of patches and sizes."""
    return " → ".join(row[one].partition("_patch")[0].removesuffix("_224") for one in ("teacher", "student"))


def goal(kind: str) -> Cell:
    """The goal, and whether the whole interval meets it (yes), misses it (no), or neither (open)."""
    return lambda row: f"{row[f'goal_{kind}']}: {row[f'met_{kind}']}" if row[f"goal_{kind}"] else "–"


SHOWN: dict[str, Callable[[Row], bool]] = {
    "growth": lambda row: row["answers"] == "stored",
    "projection": lambda row: row["epochs"] in ("", "100"),
    "federated-scale": lambda row: row["measure"] == "fusion",
    "federated-bytes": lambda row: row["network"] in ("mobilenetv3_small_100", "resnet18"),
}
"""Of long files the rows that a table shows."""

TABLES: dict[str, tuple[str, dict[str, Cell]]] = {
    "step": (
        "speed/step.csv",
        {
            "Pair": pair,
            "Method": field("method"),
            "Student, ms": number("plain_ms", 0),
            "Teacher, ms": number("teacher_ms", 0),
            "Our loop / PyTorch": ratio("ratio_loop"),
            "Online / (student + teacher)": ratio("ratio_online"),
            "Goal": goal("online"),
            "Stored / student": ratio("ratio_stored"),
            "Goal, stored": goal("stored"),
            "Top 10 / student": number("ratio_top_k", 2),
        },
    ),
    "memory": (
        "speed/step.csv",
        {
            "Pair": pair,
            "Method": field("method"),
            "Student alone, MiB": number("plain_mib", 0),
            "Online, MiB": number("online_mib", 0),
            "Stored, MiB": number("stored_mib", 0),
        },
    ),
    "peers": (
        "speed/peers.csv",
        {
            "Pair": pair,
            "px": field("image_size"),
            "Step": field("step"),
            "ms": number("ms", 1),
            "/ (student + teacher)": ratio("ratio_parts"),
            "Ours / this": ratio("ratio_ours"),
            "Ours, stored / this": ratio("ratio_stored"),
            "MiB": number("mib", 0),
        },
    ),
    "end-to-end": (
        "speed/end_to_end.csv",
        {
            "Images": lambda row: f"{row['images']}, {row['image_size']} px, {row['transforms']}",
            "Batch": field("batch_size"),
            "Ours": field("ours_are"),
            "Beside": field("peer"),
            "Images/s": number("ours", 0),
            "Theirs": number("peer_speed", 0),
            "Ratio": ratio("ratio"),
            "First epoch, ours": number("first_epoch_ours", 0),
            "Theirs, first": number("first_epoch_peer", 0),
            "We wait": lambda row: f"{float(row['ours_wait']):.1%}",
            "They wait": lambda row: f"{float(row['peer_waits']):.1%}",
        },
    ),
    "store": (
        "speed/store.csv",
        {
            "Classes": field("num_classes"),
            "Kept": field("keep"),
            "Embedding": field("embedding_dim"),
            "Shards": field("num_shards"),
            "Bytes an image": field("bytes_formula"),
            "In files": number("bytes_file", 1),
            "Written, images/s": number("write_images_s", 0),
            "Read in order": number("ordered_images_s", 0),
            "At random": number("random_images_s", 0),
        },
    ),
    "store-error": (
        "checks/store-error.csv",
        {
            "Network": field("network"),
            "Classes": field("num_classes"),
            "Kept": field("keep"),
            "Mean divergence, temperature 1": field("mean_t1"),
            "Largest": field("largest_t1"),
            "Of no answer": field("uniform_t1"),
            "Mean, temperature 4": field("mean_t4"),
        },
    ),
    "growth": (
        "speed/growth.csv",
        {
            "Axis": field("axis"),
            "Value": field("value"),
            "Method": field("method"),
            "Answers": field("answers"),
            "Step / student": ratio("ratio"),
            "Of the method, ms": number("method_ms", 2),
            "Slope, ns": field("slope_ns"),
            "Per image and": field("per"),
            "r²": field("slope_r2"),
        },
    ),
    "parts": (
        "speed/parts.csv",
        {
            "Part": field("part"),
            "Case": field("case"),
            "Batch": field("batch_size"),
            "First": field("first"),
            "Second": field("second"),
            "Second / first": ratio("ratio"),
        },
    ),
    "pretraining": (
        "selfsup/cifar100-coarse.csv",
        {
            "Arm": field("arm"),
            "Student": field("student"),
            "Epochs": field("epochs"),
            "k-NN": spread("knn"),
            "Linear probe": spread("linear"),
            "k-NN of the averaged teacher": percent("teacher_knn_mean"),
            "Its own classifier": percent("classifier_mean"),
            "Images/s": field("images_per_second"),
        },
    ),
    "pretraining-step": (
        "speed/pretraining.csv",
        {
            "Network": field("model"),
            "Views": field("views"),
            "Words": field("num_words"),
            "Batch": field("batch_size"),
            "Step, ms": number("step_ms", 0),
            "Plain passes, ms": number("plain_ms", 0),
            "Step / plain": ratio("ratio"),
            "Goal": lambda row: f"{row['goal']}: {row['met']}" if row["goal"] else "–",
            "Of operations": number("flops_ratio", 2),
            "Step, MiB": number("step_mib", 0),
            "Plain, MiB": number("plain_mib", 0),
        },
    ),
    "startup": (
        "speed/startup.csv",
        {
            "Process": field("process"),
            "Seconds": ratio("seconds"),
            "Goal": lambda row: f"{row['goal_seconds']}: {row['met']}" if row["goal_seconds"] else "–",
        },
    ),
    "projection": (
        "speed/projection.csv",
        {
            "Projection of": field("quantity"),
            "Teacher": field("teacher"),
            "Student": field("student"),
            "Kept": field("keep"),
            "Epochs": field("epochs"),
            "Runs": field("runs"),
            "Value": lambda row: f"{row['value']} {row['unit']}",
            "From": field("basis"),
        },
    ),
    **{
        f"federated-{name}": (
            f"federated/{name}.csv",
            {
                "Alpha": field("alpha"),
                "Variant": field("variant"),
                "Images": field("samples"),
                "Seeds": field("seeds"),
                "ALMA": spread("alma"),
                "All classes": percent("balanced_mean"),
                "Worst client": percent("worst_mean"),
                "Honest clients": percent("honest_mean"),
                "Went back": percent("went_back"),
                "Own weight": number("self_weight", 2),
                "Neighbours": number("neighbours", 1),
                "Epsilon": number("epsilon", 1),
                "Bytes up": number("bytes_up", 0),
            },
        )
        for name in ("digits", "mnist", "cifar100", "attacks", "transport", "noise", "fedavg")
    },
    "federated-scale": (
        "federated/scale.csv",
        {
            "Clients": field("clients"),
            "Guard": lambda row: "yes" if row["guard"] == "True" else "no",
            "Samples x classes": lambda row: f"{row['samples']} x {row['classes']}",
            "Fusion, s": lambda row: f"{number('seconds', 2)(row)} ({row['seconds_low']} to {row['seconds_high']})",
            "Processor, s": number("cpu_seconds", 2),
            "Peak, MiB": number("peak_mib", 0),
            "Goal": lambda row: f"60 s, 8,192 MiB: {row['met']}" if row["met"] else "–",
        },
    ),
    "federated-bytes": (
        "federated/scale.csv",
        {
            "Beside FedAvg of": field("network"),
            "Transport": lambda row: f"{row['transport']}{' ' + row['top_k'] if row['top_k'] else ''}",
            "Samples x classes": lambda row: f"{row['samples']} x {row['classes']}",
            "Bytes each way": number("bytes", 0),
            "FedAvg's bytes": number("fedavg_bytes", 0),
            "FedAvg / ours": number("ratio", 0),
        },
    ),
    "federated-simulation": (
        "federated/simulation.csv",
        {
            "Data": field("data"),
            "Clients": field("clients"),
            "Workers": field("workers"),
            "Rounds": field("rounds"),
            "Whole process, s": number("seconds", 0),
            "s a client and round": number("seconds_a_client_round", 2),
            "Peak, MiB": number("peak_mib", 0),
        },
    ),
}


if __name__ == "__main__":
    main()
