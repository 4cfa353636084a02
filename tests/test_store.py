"""One suite for every database: SQLite in the run folder, PostgreSQL where a server is
installed."""

import fcntl
import json
import multiprocessing
import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from scaling_search import UserError
from scaling_search.results.locks import FolderLock, describe_owner, folder_is_held
from scaling_search.results.reader import StoreReader
from scaling_search.results.reading import open_results
from scaling_search.results.store import Store
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study
from scaling_search.training.trial import Epoch, Outcome
from tests.records import done, read_records
from tests.users import as_another_user

FACTS = {"settings": {"rungs": [1]}, "data": "x"}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("postgres")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / f"run-{tmp_path.name}"  # a study's name on a server that all tests share


@pytest.fixture
def store(folder: Path, url: str | None) -> Store:
    return Store.create(folder, {"a": 1}, FACTS, url)


def raw(folder: Path, url: str | None) -> optuna.Study:
    """The study as any other program of Optuna's sees it."""
    if url is None:
        return optuna.load_study(
            study_name="scaling-search", storage=f"sqlite:///{folder}/study.db"
        )
    return optuna.load_study(study_name=folder.name, storage=url)


def test_results_survive_and_runs_are_unique(
    store: Store, study: Study, folder: Path, url: str | None
) -> None:
    todo = plan(study, 10, 64).everything
    first, second = (store.start(c, 0, 1) for c in todo[:2])
    assert (first, second) == (0, 1)
    store.epoch(first, Epoch(1, 1.0, 1.0, 0.5, 0.1))
    store.finish(first, done(0.5))
    store.close()  # the driver dies here, the second run in progress
    again = Store.create(folder, {"a": 1}, {}, url)
    assert again.recorded((todo[0].key, 0, 1)).outcome == done(0.5)
    assert again.recorded((todo[1].key, 0, 1)).outcome is None
    assert again.recorded((todo[2].key, 0, 1)) is None
    assert again.start(todo[1], 0, 1) == second
    records = again.records()
    assert [r.candidate for r in records] == list(todo[:2])
    assert records[0].val_acc == 0.5
    assert records[0].again == ()
    assert records[1].outcome is None
    assert records[1].again == ("after epoch 0: its driver ended",)
    with pytest.raises(ValueError, match="no final accuracy"):
        _ = records[1].val_acc
    assert again.fact("data") == "x"
    assert read_records(folder, url) == records
    best = raw(folder, url).best_trial
    assert best.value == 0.5
    assert best.params["alpha"] == 1.0
    assert best.intermediate_values == {1: 0.5}
    again.close()


def test_outcome_recorded_but_not_told_is_finished_on_opening(
    store: Store, study: Study, folder: Path, url: str | None
) -> None:
    """A driver killed between recording an outcome and telling Optuna."""
    baseline = plan(study, 10, 64).baseline
    number = store.start(baseline, 0, 1)
    storage = store._database.storage
    storage.set_trial_user_attr(store._trial_ids[number], "outcome", done(0.25).as_dict())
    store.close()
    again = Store.create(folder, {"a": 1}, {}, url)
    assert again.recorded((baseline.key, 0, 1)).outcome == done(0.25)
    assert raw(folder, url).trials[0].state == optuna.trial.TrialState.COMPLETE
    assert raw(folder, url).best_value == 0.25
    again.close()


def test_failures_are_rows(store: Store, study: Study) -> None:
    todo = plan(study, 10, 64).everything
    for candidate, status in zip(
        todo, ("diverged", "out-of-memory", "crashed", "timeout"), strict=False
    ):
        number = store.start(candidate, 0, 1)
        store.finish(number, Outcome(status, note="why"))
        assert store.records()[number].outcome.status == status
    store.set_test(0, 0.75)
    assert store.records()[0].test_acc == 0.75
    store.close()


def test_why_a_run_starts_again_is_kept(
    store: Store, study: Study, folder: Path, url: str | None
) -> None:
    number = store.start(plan(study, 10, 64).baseline, 0, 2)
    store.again(number, "worker killed by SIGKILL")
    store.epoch(number, Epoch(1, 1.0, 1.0, 0.5, 0.1))
    store.again(number, "worker killed by SIGSEGV")
    assert store.epochs_of(number) == 1
    reasons = ("after epoch 0: worker killed by SIGKILL", "after epoch 1: worker killed by SIGSEGV")
    assert store.records()[0].again == reasons
    assert read_records(folder, url)[0].again == reasons
    store.close()


def test_a_result_is_told_once(store: Store, study: Study) -> None:
    number = store.start(plan(study, 10, 64).baseline, 0, 1)
    store.finish(number, done(0.5))
    with pytest.raises(Exception, match="finished|already"):
        store.finish(number, done(0.9))
    assert store.records()[number].val_acc == 0.5
    store.close()


def test_a_run_set_free_is_started_again_as_a_new_trial(
    store: Store, study: Study, folder: Path, url: str | None
) -> None:
    todo = plan(study, 10, 64).everything
    crashed = store.start(todo[0], 0, 1)
    store.finish(crashed, Outcome("crashed", note="ImportError"))
    kept = store.start(todo[1], 0, 1)
    store.finish(kept, done(0.5))
    running = store.start(todo[2], 0, 1)
    store.free(crashed, "the program's fault")
    assert store.recorded((todo[0].key, 0, 1)) is None
    assert [r.number for r in store.records()] == [kept, running]
    for number in (kept, running):
        with pytest.raises(ValueError, match="has not failed"):
            store.free(number, "why")
    store.close()
    again = Store.create(folder, {"a": 1}, FACTS, url)
    assert again.recorded((todo[0].key, 0, 1)) is None
    assert [r.number for r in again.records()] == [kept, running]
    number = again.start(todo[0], 0, 1)
    assert number == 3
    again.finish(number, done(0.75))
    assert again.recorded((todo[0].key, 0, 1)).val_acc == 0.75
    again.close()
    assert [r.number for r in read_records(folder, url)] == [kept, running, number]
    states = [trial.state.name for trial in raw(folder, url).trials]
    assert states == ["FAIL", "COMPLETE", "RUNNING", "COMPLETE"]
    assert raw(folder, url).user_attrs["freed 0"] == "the program's fault"
    with StoreReader.open(folder, url) as reader:
        assert not any(name.startswith("freed") for name in reader.facts())


def test_another_study_is_refused_and_left_alone(
    store: Store, folder: Path, url: str | None
) -> None:
    store.close()
    before = raw(folder, url).user_attrs
    with pytest.raises(
        UserError,
        match="belongs to a different study: a is 1 there, 2 here; b is the default there, 3 here",
    ):
        Store.create(folder, {"a": 2, "b": 3}, {"more": 1}, url)
    assert raw(folder, url).user_attrs == before
    Store.create(folder, {"a": 1}, {}, url).close()


def _hold(folder: str, url: str | None, ready: "multiprocessing.Queue[int]") -> None:
    store = Store.create(Path(folder), {"a": 1}, {}, url)
    ready.put(os.getpid())
    time.sleep(1000)
    store.close()


def test_second_writer_is_told_who_holds_it_and_a_dead_owner_holds_nothing(
    folder: Path, url: str | None
) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=_hold, args=(str(folder), url, ready))
    process.start()
    pid = ready.get(timeout=120)
    with pytest.raises(UserError, match=rf"in use by process {pid} on \S+ since .* \(for 0 min\)"):
        Store.create(folder, {"a": 1}, {}, url)
    if url is not None:  # the same study from another folder, as from another machine
        elsewhere = folder.parent / "elsewhere" / folder.name
        with pytest.raises(
            UserError, match=rf"study {folder.name} on .* is in use by process {pid} on "
        ):
            Store.create(elsewhere, {"a": 1}, {}, url)
    with StoreReader.open(folder, url) as reader:
        glance = reader.glance()
        assert glance.runs == []
        assert glance.alive
        assert glance.owner is not None
        assert glance.owner.pid == pid
        process.kill()
        process.join()
        assert reader.glance().alive is False
    Store.create(folder, {"a": 1}, {}, url).close()


def test_a_driver_whose_server_has_let_go_of_its_lock_stops(
    postgres: str, study: Study, tmp_path: Path
) -> None:
    """Another may hold the study by then: restarted, or its network was cut for long."""
    psycopg = pytest.importorskip("psycopg")
    store = Store.create(tmp_path / "dropped", {"a": 1}, FACTS, postgres)
    number = store.start(plan(study, 10, 64).everything[0], 0, 1)
    with psycopg.connect(postgres) as server:
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    other = Store.create(tmp_path / "elsewhere" / "dropped", {"a": 1}, FACTS, postgres)
    with pytest.raises(
        UserError,
        match="every result recorded before is intact: mend it, and the same command goes",
    ):
        store.finish(number, done(0.5))
    store.close()
    assert other.records()[0].outcome is None
    other.close()


def test_a_driver_does_not_mistake_a_reader_for_another(tmp_path: Path) -> None:
    """Whoever looks whether a folder is held locks its file itself, for a moment."""
    FolderLock(tmp_path).close()
    with (tmp_path / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        glance = threading.Timer(0.01, fcntl.flock, (file, fcntl.LOCK_UN))
        glance.start()
        lock = FolderLock(tmp_path)
        glance.join()
    assert folder_is_held(tmp_path)
    lock.close()
    assert folder_is_held(tmp_path) is False


def test_a_holder_in_words() -> None:
    begun = time.time() - 125
    text = describe_owner(json.dumps({"pid": 7, "host": "far", "since": begun}))
    assert text.startswith("process 7 on far since ")
    assert text.endswith(" (for 2 min)")
    assert describe_owner("") == describe_owner("{}") == "another process"


def test_readers_and_the_writer_never_wait_for_each_other(study: Study, tmp_path: Path) -> None:
    """A reader in the middle of a transaction, a writer in the middle of one: both go on at
    once."""
    store = Store.create(tmp_path, {"a": 1}, FACTS)
    todo = plan(study, 10, 64).everything
    reader = sqlite3.connect(tmp_path / "study.db", timeout=0)
    reader.execute("begin")
    assert reader.execute("select count(*) from trials").fetchone() == (0,)
    store.finish(store.start(todo[0], 0, 1), done(0.5))  # would be "database is locked" after 60 s
    assert reader.execute("select count(*) from trials").fetchone() == (0,), (
        "a reader sees one moment"
    )
    reader.close()
    writer = sqlite3.connect(tmp_path / "study.db", timeout=0, isolation_level=None)
    writer.execute("begin immediate")
    writer.execute("delete from trial_values")
    assert read_records(tmp_path)[0].val_acc == 0.5
    writer.execute("rollback")
    writer.close()
    store.close()
    assert not list(tmp_path.glob("study.db-*")), "closed, the study is one file"


def test_a_server_is_remembered_without_its_password(
    postgres: str, tmp_path: Path, study: Study
) -> None:
    folder = tmp_path / f"remembered-{os.getpid()}"
    store = Store.create(folder, {"a": 1}, FACTS, postgres.replace("tests@", "tests:secret@"))
    store.finish(store.start(plan(study, 10, 64).baseline, 0, 1), done(0.5))
    store.close()
    assert "secret" not in "".join(p.read_text() for p in folder.iterdir())
    assert not (folder / "study.db").exists()
    assert read_records(folder)[0].val_acc == 0.5
    again = Store.create(folder, {"a": 1}, {})
    assert len(again.records()) == 1
    again.close()


def test_wrong_servers(postgres: str, tmp_path: Path) -> None:
    for url in ("mysql://u:secret@h/d", "nonsense", "postgresql://host"):
        with pytest.raises(
            UserError, match="--store .*: wanted is postgresql://user@host/database"
        ) as caught:
            Store.create(tmp_path / "run", {}, {}, url)
        assert "secret" not in str(caught.value)
    absent = postgres.rpartition("/")[0] + "/absent"
    with pytest.raises(
        UserError, match='--store postgresql.*://.*database "absent" does not exist'
    ):
        Store.create(tmp_path / "run", {}, {}, absent)
    with pytest.raises(UserError, match="--store .*refused"):
        Store.create(tmp_path / "run", {}, {}, "postgresql://tests@127.0.0.1:1/postgres")
    Store.create(tmp_path / "run", {}, {}).close()  # nothing was left held


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study.db there"):
        StoreReader.open(tmp_path)
    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("create table mine (x)")
    other.commit()
    other.close()
    with pytest.raises(UserError, match="not a readable study"):
        StoreReader.open(tmp_path)
    (tmp_path / "study.db").unlink()
    (tmp_path / "study.db").write_bytes(b"SQLite format 3\0" + b"nonsense" * 100)
    with pytest.raises(UserError, match="not a readable study"):
        StoreReader.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose one that can be written"):
        Store.create(tmp_path / "file" / "run", {}, {})


def test_reading_makes_no_tables_in_a_database_of_others(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("create table mine (x)")
    other.commit()
    with pytest.raises(UserError, match="not a readable study"):
        StoreReader.open(tmp_path)
    assert other.execute("select name from sqlite_master").fetchall() == [("mine",)]
    other.close()


# Where a study keeps its networks, its facts, what a run is and how it ended; and what of it can no
# longer be parsed: by Optuna (no JSON at all), or by us.
@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("study_user_attributes", "network %"),
        ("trial_user_attributes", "run"),
        ("trial_user_attributes", "outcome"),
    ],
)
@pytest.mark.parametrize("damage", ["{", "[]", '{"arch": 3}', "7"])
def test_a_damaged_record_is_one_line_with_its_cause(
    study: Study, tmp_path: Path, table: str, key: str, damage: str
) -> None:
    with Store.create(tmp_path, {"a": 1}, FACTS) as store:
        store.finish(store.start(plan(study, 10, 64).baseline, 0, 1), done(0.5))
    database = sqlite3.connect(tmp_path / "study.db")
    altered = database.execute(
        f"update {table} set value_json = ? where key like ?", (damage, key)
    ).rowcount
    assert altered == 1
    database.commit()
    database.close()
    for attempt in (StoreReader.open, lambda folder: Store.create(folder, {"a": 1}, {})):
        with pytest.raises(UserError) as caught, attempt(tmp_path) as opened:
            opened.records()
        assert str(caught.value).startswith(f"{tmp_path / 'study.db'}: not a readable study (")
        assert str(caught.value).endswith("restore it, or use another folder")
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is not None


def test_a_fault_of_our_own_is_no_damaged_study(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.create(tmp_path, {"a": 1}, FACTS) as store:
        store.finish(store.start(plan(study, 10, 64).baseline, 0, 1), done(0.5))
        with pytest.raises(AttributeError, match="'str' object has no attribute 'key'"):
            store.start("no candidate", 0, 1)
    monkeypatch.setattr("scaling_search.results.encoding.Record", lambda: None)
    with pytest.raises(TypeError, match="arguments"):
        read_records(tmp_path)


@pytest.mark.parametrize("driver", ["at work", "gone", "killed"])
def test_another_users_study_is_read(study: Study, other_users_folder: Path, driver: str) -> None:
    """Whoever cannot write to a run folder reads it all the same, whatever its driver has left."""
    folder, baseline = other_users_folder, plan(study, 10, 64).baseline
    if driver == "killed":
        child = os.fork()
        if child == 0:
            store = Store.create(folder, {"a": 1}, FACTS)
            store.finish(store.start(baseline, 0, 1), done(0.5))
            os._exit(0)
        os.waitpid(child, 0)
    else:
        store = Store.create(folder, {"a": 1}, FACTS)
        store.finish(store.start(baseline, 0, 1), done(0.5))
        if driver == "gone":
            store.close()
    before = sorted(path.name for path in folder.iterdir())
    assert ("study.db-wal" in before) == (driver != "gone")

    def read() -> str:
        with open_results(folder) as results:
            return f"{results.fact('data')} {results.records()[0].val_acc}"

    assert as_another_user(folder, read) == "x 0.5"
    assert sorted(path.name for path in folder.iterdir()) == before
    if driver == "at work":
        store.close()
    assert read_records(folder)[0].val_acc == 0.5


def test_another_users_study_is_not_written(other_users_folder: Path) -> None:
    folder = other_users_folder
    Store.create(folder, {"a": 1}, FACTS).close()

    def write() -> str:
        with Store.create(folder, {"a": 1}, {}):
            return "opened"

    said = as_another_user(folder, write)
    assert said == (
        f"UserError: run folder {folder}: Permission denied; choose one that can be written "
        "with --out"
    )
    # the folder, but not the study in it: copied there with its owner's rights, say
    folder.chmod(0o777)
    (folder / "lock").unlink()
    if os.getuid() == 0:
        said = as_another_user(folder, write)
        assert said == (
            f"UserError: {folder}/study.db: cannot be written by this user; choose another folder "
            "with --out"
        )


def open_files(folder: Path) -> list[str]:
    """The files of a folder that this process holds open."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            path = descriptor.readlink()
        except FileNotFoundError:  # that of this listing
            continue
        if path.is_relative_to(folder):
            names.append(path.name)
    return names


def test_a_closed_store_holds_no_file_open(study: Study, tmp_path: Path) -> None:
    with Store.create(tmp_path, {"a": 1}, FACTS) as store:
        store.start(plan(study, 10, 64).baseline, 0, 1)
        assert "study.db" in open_files(tmp_path)
        assert "lock" in open_files(tmp_path)
    assert open_files(tmp_path) == []
    with pytest.raises(UserError, match="different study"):
        Store.create(tmp_path, {"a": 2}, {})
    assert open_files(tmp_path) == []
    with open_results(tmp_path) as results:
        results.records()
    assert open_files(tmp_path) == []


def test_a_reader_leaves_nothing_behind_and_cannot_write(study: Study, tmp_path: Path) -> None:
    with Store.create(tmp_path, {"a": 1}, FACTS) as store:
        store.start(plan(study, 10, 64).baseline, 0, 1)
    before = (tmp_path / "study.db").read_bytes()
    with StoreReader.open(tmp_path) as reader:
        assert len(reader.records()) == 1
        with pytest.raises(UserError, match="attempt to write a readonly database"):
            reader._database.set_attribute("data", "y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "study.db"]
    assert (tmp_path / "study.db").read_bytes() == before


def test_a_database_that_takes_no_study_is_not_left_open(tmp_path: Path) -> None:
    Store.create(tmp_path, {}, {}).close()
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute("UPDATE studies SET study_name = 'another'")
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON studies BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        database.commit()
    with pytest.raises(UserError, match="study.db: not a readable study"):
        Store.create(tmp_path, {}, {})
    assert "study.db" not in open_files(tmp_path)
