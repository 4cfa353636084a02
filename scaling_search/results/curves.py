"""Every curve of a study as one table: exported from a run folder, and read back in its place.

The table is parquet, with one row per epoch of each run, or one row without an epoch for a run that
failed at once. Its columns are for people. What only this program reads travels in the file's
metadata: the study's facts and, compressed, each run's network, versions and right images, so that
the verdict and the report can be made again from a table alone.

Older tables are read too: they have the latter as columns of JSON and hex, and `val_acc` is a run's
in each of its rows, beside an epoch's `epoch_val_acc`.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Mapping, Sequence
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
from scaling_search.study.settings import Study, differences
from scaling_search.study.settings import check as check_settings
from scaling_search.training.trial import Epoch, Outcome

logger = logging.getLogger(__name__)

TABLE = "curves.parquet"  # in the folder of a recorded study
REPLAYED = "replayed"  # the fact that it was written by a replay, which may write it again
_METADATA = b"scaling-search"  # the key of the facts in the file's metadata
_DETAILS = b"scaling-search runs"  # and that of what else is known of each run
# Values of an epoch, in the order of its fields. `val_acc` is that of its row wherever it stands:
# after an epoch here, after a run in results.csv.
_EPOCH_COLUMNS = ["epoch", "train_loss", "val_loss", "val_acc", "epoch_seconds"]
_LOSS_COLUMNS = ("train_loss", "val_loss")
_EFFECTIVE = "effective_images"  # of a run's accuracy; no column where all images count alike
_LOSSES = "losses"  # of an epoch in more detail: a list; no column where no run has any
# pandas shows the first and the last few columns: what a network is, and how it went.
_COLUMNS = [
    "network", "blocks", "width", "resolution", tables.ACROSS, "role", "budget",
    "macs", "params", "acts", tables.LATENCY, "alpha", "beta", "gamma",
    "share_depth", "share_width", "share_resolution",
    "note", "seconds", "images_per_s", "peak_memory", "test_acc", _EFFECTIVE, _LOSSES,
    "run", "status", "epoch_seconds", "seed", "epochs",
    "epoch", "train_loss", "val_loss", "val_acc",
]  # fmt: skip
_OPTIONAL = (_LOSSES, tables.ACROSS, tables.LATENCY, _EFFECTIVE)
# Columns of the older form: how an epoch's are named now, and those of JSON and hex.
_OLD_NAMES = {"epoch_val_loss": "val_loss", "epoch_val_acc": "val_acc"}
_OLD_DETAILS = ("candidate", "versions", "right")
# What makes two trainings of one network comparable: fields of a study, as in its identity.
_TRAINING: tuple[str, ...] = (
    "recipe",
    "data.train_images",
    "data.epoch_images",
    "data.val_images",
    "data.channels",
    "equal",
    "device",
    "threads",
    "compile",
    "metric",
)
_MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Curves:
    """A recorded study: a table of runs, with the facts about it."""

    path: Path
    _facts: dict[str, Any]
    _records: tuple[Record, ...]

    def fact(self, name: str) -> Any:
        """One fact about the study; None where it is not known."""
        return self._facts.get(name)

    def facts(self) -> dict[str, Any]:
        """All that describes the study."""
        return dict(self._facts)

    def records(self) -> list[Record]:
        """Every run, in the order in which they were started."""
        return list(self._records)

    @property
    def study(self) -> Study:
        """The study that was recorded. Raises UserError where its settings are not known, or are
        of another release."""
        return check_settings(self._required("settings"), str(self.path))

    @property
    def data(self) -> Facts:
        """What the study was trained on. Its folder is empty: no image travels with the table.
        Raises UserError where that is not known, or is of another release."""
        known = self._required("data facts")
        try:
            return Facts(**known)
        except TypeError as error:
            raise _no_table(self.path, error) from error

    def _required(self, name: str) -> Any:
        """A fact without which nothing can be replayed. Raises UserError where it is not known."""
        try:
            return self._facts[name]
        except KeyError as error:
            raise _no_table(self.path, error) from error

    def by_key(self) -> dict[tuple[str, int, int], Record]:
        """(network, seed, epochs) → the run."""
        return {record.key: record for record in self._records}


def write(path: Path, records: Sequence[Record], facts: dict[str, Any]) -> int:
    """Write the runs that have an outcome as parquet; return the number of rows. Raises UserError
    where the file cannot be written."""
    finished = [record for record in records if record.outcome is not None]
    rows = frame(finished)
    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    # without Arrow's own schema: a reader would take its metadata in place of the file's
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(
            {_METADATA: json.dumps(facts).encode(), _DETAILS: _packed(finished)}
        )
    try:
        atomic.write(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; choose a file that can be written") from error
    logger.info("%s: %d runs, %d rows", path, len(finished), len(rows))
    return len(rows)


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return the table's columns: a row per epoch of each run that has an outcome, or one without
    an epoch."""
    rows: list[dict[str, Any]] = []
    finished = [record for record in records if record.outcome is not None]
    for number, record in enumerate(finished):
        rows += _rows_of_run(number, record)
    unused = {name for name in _OPTIONAL if not any(row.get(name) for row in rows)}
    if all(row[tables.ACROSS] == row["resolution"] for row in rows):
        unused.add(tables.ACROSS)
    columns = [name for name in _COLUMNS if name not in unused]
    # pandas' own integers, as a run that failed at once has no epoch
    return pd.DataFrame(rows, columns=columns).astype({"epoch": "Int64"})


def _rows_of_run(number: int, record: Record) -> list[dict[str, Any]]:
    """One row per epoch, or one without an epoch."""
    assert record.outcome is not None
    run = {
        **tables.row(record),
        **dict.fromkeys(_EPOCH_COLUMNS),
        "role": record.candidate.role,
        "budget": str(record.candidate.budget),
        "run": number,
        _EFFECTIVE: record.outcome.effective_images,
    }
    if not record.outcome.epochs:
        return [run]
    rows = []
    for epoch in record.outcome.epochs:
        values = (epoch.epoch, epoch.train_loss, epoch.val_loss, epoch.val_acc, epoch.seconds)
        of_epoch = dict(zip(_EPOCH_COLUMNS, values, strict=True))
        rows.append({**run, **of_epoch, _LOSSES: epoch.losses})
    return rows


@dataclass(frozen=True, slots=True)
class _Detail:
    """What no column has of a run."""

    candidate: Candidate
    versions: dict[str, str]
    right: str


def _packed(records: Sequence[Record]) -> bytes:
    """Return the details of runs as compressed JSON: networks and versions once each, and for every
    run {"key seed epochs": [its network's place, its versions' place, its right images]}."""
    networks: dict[str, int] = {}
    versions: dict[str, int] = {}
    runs: dict[str, tuple[int, int, str]] = {}
    for record in records:
        assert record.outcome is not None
        network = json.dumps(record.candidate.as_dict())
        version = json.dumps(record.outcome.versions)
        places = (
            networks.setdefault(network, len(networks)),
            versions.setdefault(version, len(versions)),
        )
        runs[_name(*record.key)] = (*places, record.outcome.right)
    details = {
        "networks": [json.loads(text) for text in networks],
        "versions": [json.loads(text) for text in versions],
        "runs": runs,
    }
    return zlib.compress(json.dumps(details, separators=(",", ":")).encode(), 9)


def _name(network: str, seed: int, epochs: int) -> str:
    return f"{network} {seed} {epochs}"


def _unpacked(packed: bytes) -> dict[str, _Detail]:
    """The inverse of `_packed`."""
    details = json.loads(zlib.decompress(packed))
    networks = [Candidate.from_dict(network) for network in details["networks"]]
    runs = {}
    for name, (network, version, right) in details["runs"].items():
        runs[name] = _Detail(networks[network], details["versions"][version], right)
    return runs


def _of_columns(rows: pd.DataFrame) -> dict[str, _Detail]:
    """The same from the columns of a table of the older form."""
    runs = {}
    for _, row in rows.drop_duplicates("run").iterrows():
        candidate = Candidate.from_dict(json.loads(row["candidate"]))
        name = _name(candidate.key, int(row["seed"]), int(row["epochs"]))
        runs[name] = _Detail(candidate, json.loads(row["versions"]), row["right"])
    return runs


def read(path: Path) -> Curves:
    """A table that `write` made, or an earlier release. Raises UserError for anything else."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; scaling-search export RUN --to curves.parquet makes one"
        )
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        facts = json.loads(metadata[_METADATA])
        if not isinstance(facts, dict):
            raise TypeError("its facts are no table")
        rows = table.to_pandas()
        if set(_OLD_DETAILS) <= set(rows):
            details = _of_columns(rows)
            rows = rows.drop(columns=["val_loss", "val_acc", *_OLD_DETAILS])
            rows = rows.rename(columns=_OLD_NAMES)
        else:
            details = _unpacked(metadata[_DETAILS])
        # a table of accuracies alone will do: the verdict goes on without losses
        for name in _LOSS_COLUMNS:
            if name not in rows:
                rows[name] = math.nan
        twice = int(rows.duplicated(["run", "epoch"]).sum())
        groups = rows.groupby("run", sort=True)
    except (OSError, pa.ArrowException, zlib.error, *_MALFORMED) as error:
        raise _no_table(path, error) from error
    if twice:
        raise UserError(
            f"{path}: {twice:,} rows are of an epoch that another row has; a table holds one "
            "study, so do not put several together"
        )
    records = []
    seen: set[tuple[str, int, int]] = set()
    for number, (_, of_run) in enumerate(groups):
        record = _read_run(path, number, of_run, details)
        if record.key in seen:
            network, seed, epochs = record.key
            raise UserError(
                f"{path}: the run of network {network}, seed {seed}, {epochs} epochs is there "
                "twice; a table holds one study, so do not put several together"
            )
        seen.add(record.key)
        records.append(record)
    return Curves(path, facts, tuple(records))


def _read_run(
    path: Path, number: int, rows: pd.DataFrame, details: Mapping[str, _Detail]
) -> Record:
    """The run of these rows. Raises UserError where they cannot be parsed."""
    first = rows.iloc[0]  # what is of the run is the same in each row
    try:
        seed, epochs = int(first["seed"]), int(first["epochs"])
        detail = details[_name(first["network"], seed, epochs)]
        outcome = Outcome(
            status=first["status"],
            epochs=_read_epochs(rows),
            right=detail.right,
            effective_images=int(first.get(_EFFECTIVE, 0)),
            seconds=float(first["seconds"]),
            images_per_s=_number_or(0.0, first["images_per_s"]),
            peak_memory=int(first["peak_memory"]),
            versions=detail.versions,
            note=first["note"],
        )
        test_acc = _number_or(None, first["test_acc"])
    except _MALFORMED as error:
        raise _no_table(path, error) from error
    return Record(number, detail.candidate, seed, epochs, outcome, test_acc)


def _read_epochs(rows: pd.DataFrame) -> tuple[Epoch, ...]:
    details: Sequence[Sequence[float]] = [()] * len(rows)
    if _LOSSES in rows:
        details = rows[_LOSSES].tolist()
    cells = rows[_EPOCH_COLUMNS].itertuples(index=False)
    epochs = []
    for (number, *values), losses in zip(cells, details, strict=True):
        if pd.isna(number):
            continue
        train_loss, val_loss, val_acc, seconds = (_number_or(math.nan, cell) for cell in values)
        detail = tuple(float(loss) for loss in losses)
        epochs.append(Epoch(int(number), train_loss, val_loss, val_acc, seconds, detail))
    return tuple(epochs)


def _number_or(default: Any, cell: Any) -> Any:
    """A cell as a float; `default` where it is empty, which is None or NaN by the column's type."""
    if cell is None or math.isnan(cell):
        return default
    return float(cell)


def _no_table(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: not a table of curves ({type(error).__name__}: {error}); scaling-search export "
        "RUN --to curves.parquet makes one"
    )


def check(curves: Curves, study: Study, networks: Sequence[Candidate]) -> None:
    """Raise UserError unless `study` can be replayed from this table: it was trained otherwise, or
    lacks some of the study's `networks` (which, and how many)."""
    _check_training(curves, study)
    lacking = _lacking(curves, study, networks)
    if lacking:
        labels = [candidate.label for candidate in lacking[:3]]
        if len(lacking) > 3:
            labels.append("...")
        advice = "Replay the study that it was exported from, or fewer --seeds"
        if curves.fact("state") not in (None, "finished"):
            advice = (
                "It was exported before the study had ended: fewer --seeds replay what is whole"
            )
        raise UserError(
            f"{curves.path}: lacks {len(lacking)} of the study's {len(networks)} networks, "
            f"or seeds or epochs of them: {'; '.join(labels)}. {advice}"
        )


def check_known(curves: Curves, study: Study, digest: str) -> None:
    """Raise UserError unless the table's runs may count as runs of `study` on data of this digest:
    they were trained alike."""
    _check_training(curves, study)
    if curves.data.digest != digest:
        raise UserError(
            f"{curves.path}: its runs are of other data ({curves.data.name}, digest "
            f"{curves.data.digest}; here it is {digest}): give the data that they were trained on"
        )


def _check_training(curves: Curves, study: Study) -> None:
    """Raise UserError where the table's runs were trained otherwise than those of `study`."""
    differing = differences(_of_training(curves.study), _of_training(study))
    if differing:
        raise UserError(
            f"{curves.path}: its runs were trained otherwise: {'; '.join(differing)}; train alike, "
            "or leave the table out"
        )


def _of_training(study: Study) -> dict[str, Any]:
    """The study's settings that its trainings depend on, but for the defaults."""
    settings = {}
    names = _TRAINING
    if study.equal == "training":  # then a network's images are by the budget and the baseline
        names = (*_TRAINING, "budgets", "baseline")
    # as the identity has them: a default that is written out is no difference
    for name, value in study.identity("").items():
        if name.startswith(names):
            settings[name] = value
    return settings


def _lacking(curves: Curves, study: Study, networks: Sequence[Candidate]) -> list[Candidate]:
    """The networks without all of the runs that the study is sure to need."""
    rungs, seeds = study.rungs, range(study.seed, study.seed + study.seeds)
    if study.allocation == "rungs":
        # which networks go on to the next rung is known only as the study is replayed
        rungs, seeds = rungs[:1], seeds[:1]
    known = curves.by_key()
    lacking = []
    for candidate in networks:
        needed = [(candidate.key, seed, epochs) for seed in seeds for epochs in rungs]
        if any(key not in known for key in needed):
            lacking.append(candidate)
    return lacking
