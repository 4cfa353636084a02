"""Made-up records of real plans, for tests of what is concluded from them."""

from pathlib import Path

from scaling_search.results.reader import StoreReader
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.plan import plan
from scaling_search.study.settings import preset_path, read
from scaling_search.training.trial import Epoch, Outcome

STUDY = read(preset_path("quick-b0-s4"), {"rungs": [1]})


TWO = read(preset_path("quick-b0-s4"), {"rungs": [1, 2]})


TODO = plan(STUDY, 10, 28)


def record(
    c: Candidate,
    seed: int,
    accuracy: float | None,
    test: float | None = None,
    epochs: int = 1,
    speed: float = 100.0,
) -> Record:
    if accuracy is None:
        return Record(0, c, seed, epochs, Outcome("diverged"))
    outcome = Outcome(
        "done", (Epoch(epochs, 1.0, 1.0, accuracy, 0.1),), "f" * 250, images_per_s=speed
    )
    return Record(0, c, seed, epochs, outcome, test)


def done(accuracy: float) -> Outcome:
    return Outcome("done", (Epoch(1, 1.0, 1.0, accuracy, 0.1),), "ff", seconds=1.0)


def read_records(folder: Path, url: str | None = None) -> list[Record]:
    """The runs in a folder's store, as another program sees them now."""
    with StoreReader.open(folder, url) as reader:
        return reader.records()


def dominates(q: tuple[float, float], p: tuple[float, float]) -> bool:
    """Whether `q` (cost, accuracy) costs at most what `p` does, is no worse, and differs."""
    return q != p and q[0] <= p[0] and q[1] >= p[1]
