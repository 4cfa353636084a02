"""Every curve ever trained, as one table: exported from a run folder, and read back in its place.

Parquet, one row per epoch of each run (one row without an epoch for a run that failed at once). The
study's facts travel in the file's metadata, so that a table alone rebuilds the verdict and the
report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from effnet import atomic
from scaling_search import UserError
from scaling_search.data.dataset import Facts
from scaling_search.results import tables
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.settings import Study
from scaling_search.training.trial import Epoch, Outcome

TABLE = "curves.parquet"  # in the folder of a recorded study
_META = b"scaling-search"
_EPOCH = ["epoch", "train_loss", "epoch_val_loss", "epoch_val_acc", "epoch_seconds"]
# What else makes two trainings of one network comparable: fields of a study, as in its identity.
_TRAINING = ("recipe", "data.train_images", "data.val_images", "device", "threads", "compile")


@dataclass(frozen=True)
class Curves:
    """A table of runs; `records` and `fact` as in Store."""

    path: Path
    _facts: dict[str, Any]
    _records: tuple[Record, ...]

    def fact(self, name: str) -> Any:
        return self._facts.get(name)

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)

    def records(self) -> list[Record]:
        return list(self._records)

    @property
    def data(self) -> Facts:
        """Of the data set that was trained on. Its folder is nowhere: no image travels."""
        return Facts(**self._facts["data facts"])

    def by_key(self) -> dict[tuple[str, int, int], Record]:
        """(network, seed, epochs) → the run."""
        return {(r.candidate.key, r.seed, r.epochs): r for r in self._records}


def write(path: Path, records: Sequence[Record], facts: dict[str, Any]) -> int:
    """The runs that have an outcome, as parquet; the number of rows. Raises UserError where it
    cannot be written."""
    done = [r for r in records if r.outcome is not None]
    wide = tables.table(done)
    rows: list[dict[str, Any]] = []
    for number, r in enumerate(done):
        assert r.outcome is not None
        outcome = r.outcome.as_dict()
        run = {
            "run": number,
            "right": outcome.pop("right"),
            "candidate": json.dumps(r.candidate.as_dict()),
            "versions": json.dumps(outcome["versions"]),
        }
        for e in r.outcome.epochs or (None,):
            values = (e.epoch, e.train_loss, e.val_loss, e.val_acc, e.seconds) if e else (None,) * 5
            rows.append({**run, **dict(zip(_EPOCH, values, strict=True))})
    frame = pd.DataFrame(rows, columns=["run", *_EPOCH, "right", "candidate", "versions"])
    frame["epoch"] = frame["epoch"].astype("Int64")
    table = pa.Table.from_pandas(
        wide.iloc[frame["run"]].reset_index(drop=True).join(frame), preserve_index=False
    )
    table = table.replace_schema_metadata({_META: json.dumps(facts).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    try:
        atomic.write(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; choose a file that can be written") from None
    return len(frame)


def read(path: Path) -> Curves:
    """A table that `write` made. Raises UserError for anything else."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; scaling-search export RUN --to curves.parquet makes one"
        )
    try:
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[_META])
        records = []
        for number, (_, rows) in enumerate(table.to_pandas().groupby("run", sort=True)):
            head = rows.iloc[0]
            epochs = tuple(
                Epoch(int(e), *map(float, rest))
                for e, *rest in rows[_EPOCH].itertuples(index=False)
                if not pd.isna(e)
            )
            speed = 0.0 if pd.isna(head["images_per_s"]) else float(head["images_per_s"])
            outcome = Outcome(
                head["status"], epochs, head["right"], None,
                float(head["seconds"]), speed, int(head["peak_memory"]),
                json.loads(head["versions"]), head["note"],
            )  # fmt: skip
            candidate = Candidate.from_dict(json.loads(head["candidate"]))
            test = head["test_acc"]
            known = None if test is None or math.isnan(test) else float(test)
            records.append(
                Record(number, candidate, int(head["seed"]), int(head["epochs"]), outcome, known)
            )
        return Curves(path, facts, tuple(records))
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not a table of curves ({type(error).__name__}: {error}); scaling-search export RUN --to "
            "curves.parquet makes one"
        ) from None


def check(curves: Curves, study: Study, networks: Sequence[Candidate]) -> None:
    """Whether `study` can be replayed from this table. Raises UserError: another training, or
    networks that it lacks (which, and how many)."""
    a, b = Study.model_validate(curves.fact("settings")).changed(), study.changed()
    differing = [
        f"{name} is {a.get(name, 'the default')} there, {b.get(name, 'the default')} here"
        for name in sorted({*a, *b})
        if name.startswith(_TRAINING) and a.get(name) != b.get(name)
    ]
    if differing:
        raise UserError(f"{curves.path}: its runs were trained otherwise: {'; '.join(differing)}")
    runs = [(e, s) for e in study.rungs for s in range(study.seed, study.seed + study.seeds)]
    if study.allocation == "rungs":  # what is promoted is not known yet
        runs = [(study.rungs[0], study.seed)]
    have = curves.by_key()
    lacking = [c for c in networks if any((c.key, s, e) not in have for e, s in runs)]
    if lacking:
        named = "; ".join(c.label for c in lacking[:3]) + ("; ..." if len(lacking) > 3 else "")
        raise UserError(
            f"{curves.path}: lacks {len(lacking)} of the study's {len(networks)} networks, or seeds or epochs of them: "
            f"{named}. Replay the study that it was exported from, or fewer --seeds"
        )
