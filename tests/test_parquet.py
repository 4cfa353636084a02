"""Parquet files: columns, labels, splits."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaling_search import UserError
from scaling_search.data import sources
from scaling_search.data.dataset import Dataset
from scaling_search.data.source import AS_THEY_ARE, Options
from tests.conftest import write_images
from tests.parquet_files import cells, write


def class_label(*names: str) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def parquet_file(path: Path, count: int, seed: int, image: str = "image") -> None:
    columns = {image: cells(count, seed), "label": pa.array(np.arange(count) % 3)}
    write(path, columns, {"label": class_label("x", "y", "z")})


def refusal(path: Path | str, options: Options = AS_THEY_ARE) -> str:
    with pytest.raises(UserError) as caught:
        sources.load(str(path), options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def every_label(data: Dataset) -> list[int]:
    return np.concatenate([data.train_labels, data.test_labels]).tolist()


# ---- columns


def test_the_metadata_say_which_column_is_the_label(tmp_path: Path) -> None:
    """Not the number of the row before it, nor its width."""
    columns = {
        "image_id": np.arange(60),
        "image": cells(60),
        "width": [32] * 60,
        "labels": np.arange(60) % 2,
    }
    features = {"image": {"_type": "Image"}, "labels": class_label("cat", "dog")}
    loaded = sources.load(write(tmp_path / "a.parquet", columns, features))
    assert loaded.classes == ("cat", "dog")
    assert np.bincount(every_label(loaded)).tolist() == [30, 30]


@pytest.mark.parametrize("name", ["label", "labels", "Class", "target", "y", "category"])
def test_usual_names_of_the_label(name: str, tmp_path: Path) -> None:
    columns = {"id": np.arange(60), "n": np.arange(60) % 7, "image": cells(60)}
    columns[name] = np.arange(60) % 2
    loaded = sources.load(write(tmp_path / "a.parquet", columns))
    assert loaded.classes == ("0", "1")


def test_labels_of_text(tmp_path: Path) -> None:
    labels = np.array(["dog", "cat", "bird"])[np.arange(60) % 3]
    for name, column in (("a", pa.array(labels)), ("b", pa.array(labels).dictionary_encode())):
        path = write(tmp_path / f"{name}.parquet", {"image": cells(60), "label": column})
        assert sources.load(path).classes == ("bird", "cat", "dog")


def test_ambiguous_columns_are_refused_and_a_flag_settles_it(tmp_path: Path) -> None:
    columns = {"img": cells(60), "fine": np.arange(60) % 6, "coarse": np.arange(60) % 2}
    features = {"fine": class_label(*"abcdef"), "coarse": class_label("x", "y")}
    path = write(tmp_path / "a.parquet", columns, features)
    said = refusal(path)
    assert "fine, coarse may each be the label column; name it with --label-column" in said
    assert "its columns are img, fine, coarse" in said
    assert sources.load(path, Options(label_column="coarse")).classes == ("x", "y")
    assert sources.load(path, Options(label_column="fine")).classes == tuple("abcdef")

    path = write(
        tmp_path / "b.parquet",
        {"before": cells(60), "after": cells(60, 1), "label": columns["fine"]},
    )
    assert "before, after may each be the image column; name it with --image-column" in refusal(
        path
    )
    first, second = (sources.load(path, Options(image_column=c)) for c in ("before", "after"))
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"image_id": "numbers"}, AS_THEY_ARE, "no label column (whole numbers or text)"),
        ({"x": "numbers"}, AS_THEY_ARE, "x has another value in each row, so that it holds no"),
        ({"label": "same"}, AS_THEY_ARE, "only one class in its label column label"),
        ({"label": "pairs"}, Options(label_column="lable"), "no column lable; its columns are"),
        ({"label": "pairs"}, Options(image_column="label"), "is of type int64; wanted is a struct"),
        ({"label": "floats"}, AS_THEY_ARE, "label is of type double; wanted is whole numbers or"),
        ({"label": "floats", "fold": "pairs"}, AS_THEY_ARE, "label is of type double; wanted is"),
        ({"species": "words", "fold": "pairs"}, AS_THEY_ARE, "species, fold may each be the label"),
        (
            {"category_id": "pairs", "iscrowd": "pairs"},
            AS_THEY_ARE,
            "category_id, iscrowd may each be the label",
        ),
        (
            {"class_id": "pairs", "class_name": "words", "site": "pairs"},
            AS_THEY_ARE,
            "class_id, class_name, site may each be the label",
        ),
        ({"label": "binary", "fold": "pairs"}, AS_THEY_ARE, "label is of type binary; wanted is"),
        ({"label": "pairs", "Usage": "words"}, AS_THEY_ARE, "has a column Usage, which is not"),
        ({"label": "pairs", "data_split": "words"}, AS_THEY_ARE, "has a column data_split, which"),
        (
            {"label": "pairs", "split": "words"},
            AS_THEY_ARE,
            "has a column split, which is not read",
        ),
    ],
)
def test_refused_columns(
    columns: dict[str, str], options: Options, message: str, tmp_path: Path
) -> None:
    values = {
        "numbers": np.arange(60),
        "same": np.zeros(60, dtype=int),
        "pairs": np.arange(60) % 2,
        "words": np.array(["x", "y"])[np.arange(60) % 2],
        "floats": np.arange(60) / 2,
        "binary": pa.array([b"x", b"y"] * 30),
    }
    table = {"image": cells(60)} | {name: values[kind] for name, kind in columns.items()}
    assert message in refusal(write(tmp_path / "a.parquet", table), options)


def test_a_label_beside_one_that_the_metadata_name_is_refused(tmp_path: Path) -> None:
    columns = {"image": cells(60), "gender": np.arange(60) % 2, "label": np.arange(60) % 3}
    path = write(tmp_path / "a.parquet", columns, {"gender": class_label("f", "m")})
    assert "gender, label may each be the label column" in refusal(path)
    assert sources.load(path, Options(label_column="gender")).classes == ("f", "m")
    columns["y"] = columns.pop("label")  # a coordinate, as like as not
    path = write(tmp_path / "b.parquet", columns, {"gender": class_label("f", "m")})
    assert sources.load(path).classes == ("f", "m")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("image", ["a.png"] * 40, "image is of type string; wanted is a struct with 'bytes'"),
        ("image", [{"bytes": "iVBO"}] * 40, "image is of type struct<bytes: string>; wanted is"),
        ("label", [[0]] * 40, "wanted is whole numbers or text, as in the other files"),
        ("label", ["0", "1"] * 20, "has the label '0', and those of training are of another type"),
        ("img", None, "no column image; its columns are label, img"),
    ],
)
def test_files_of_other_types_than_the_first_are_refused(
    column: str, values: list[Any] | None, message: str, tmp_path: Path
) -> None:
    good: dict[str, Any] = {"image": cells(40), "label": np.arange(40) % 2}
    write(tmp_path / "train.parquet", good)
    other = {name: cell for name, cell in good.items() if values is not None or name != "image"}
    write(tmp_path / "test.parquet", other | {column: values or good["image"]})
    assert message in refusal(tmp_path)


def test_columns_of_a_named_set_are_refused() -> None:
    assert "data shapes: a named set has no columns; leave out --label-column" in refusal(
        "shapes", Options(label_column="coarse")
    )


def test_refused_files(tmp_path: Path) -> None:
    text = write(tmp_path / "text.parquet", {"text": ["a"], "label": [0]})
    assert "no image column (a struct with 'bytes'" in refusal(text)
    assert "its columns are text, label" in refusal(text)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    assert "not a readable parquet file" in refusal(tmp_path / "bad.parquet")
    (tmp_path / "x.zip").write_bytes(b"PK")
    assert "a file must be .parquet" in refusal(tmp_path / "x.zip")
    path_only = [{"bytes": None, "path": "gone.png"}] * 6
    path = write(tmp_path / "p.parquet", {"image": path_only, "label": np.arange(6) % 2})
    assert "row 0 has no image, only a path (gone.png)" in refusal(path)
    path = write(tmp_path / "e.parquet", {"image": cells(6), "label": [0, 1, None, 0, 1, 0]})
    assert "row 2 has no label; remove it" in refusal(path)


@pytest.mark.parametrize("metadata", [b"null", b"[]", b"no JSON", b'{"info": null}', b"\xff"])
def test_metadata_that_say_nothing(metadata: bytes, tmp_path: Path) -> None:
    table = pa.table({"image": cells(60), "label": np.arange(60) % 2})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet")
    assert sources.load(str(tmp_path / "a.parquet")).classes == ("0", "1")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_kinds_of_binary_columns(kind: pa.DataType, tmp_path: Path) -> None:
    images = pa.array([cell["bytes"] for cell in cells(60)], kind)
    path = write(tmp_path / "a.parquet", {"image": images, "label": np.arange(60) % 2})
    assert len(every_label(sources.load(path))) == 60


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    labels = pa.array(np.arange(60) % 2)
    table = pa.Table.from_arrays([pa.array(cells(60)), labels, labels], ["image", "label", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "two columns are called label; rename one" in refusal(tmp_path / "a.parquet")


# ---- labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, None] * 20, "row 2 has no label; remove it"),
        ([0, 1, -1] * 20, "row 2 has the label -1, which stands for none; remove it"),
        (["a", "b", ""] * 20, "row 2 has no label; remove it"),
    ],
)
def test_rows_without_label(labels: list[Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": cells(60), "label": labels})
    assert message in refusal(path)


def test_minus_one_and_one_are_two_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": cells(60), "label": [-1, 1] * 30})
    assert sources.load(path).classes == ("-1", "1")


def test_files_that_name_their_classes_otherwise_are_refused(tmp_path: Path) -> None:
    for name, names in (("train", ("cat", "dog")), ("test", ("dog", "cat"))):
        columns = {"image": cells(40), "label": np.arange(40) % 2}
        write(tmp_path / f"{name}.parquet", columns, {"label": class_label(*names)})
    assert "its classes have other names than those of" in refusal(tmp_path)


def test_files_with_labels_of_several_types_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", {"image": cells(40), "label": np.arange(40) % 2})
    write(tmp_path / "train-1.parquet", {"image": cells(40), "label": ["a", "b"] * 20})
    assert "the labels of label are of several types" in refusal(tmp_path)


def test_labels_with_gaps_become_classes_in_order(tmp_path: Path) -> None:
    labels = np.array([90_000, 17, 18])[np.arange(60) % 3]
    path = write(tmp_path / "a.parquet", {"image": cells(60), "label": labels})
    assert sources.load(path).classes == ("17", "18", "90000")
    names = [f"class {i}" for i in range(100)]
    columns = {"image": cells(60), "label": np.array([7, 42])[np.arange(60) % 2]}
    path = write(tmp_path / "b.parquet", columns, {"label": class_label(*names)})
    assert sources.load(path).classes == ("class 7", "class 42")


def test_a_test_split_without_labels_is_none(tmp_path: Path) -> None:
    parquet_file(tmp_path / "train.parquet", 60, 0)
    write(tmp_path / "test.parquet", {"image": cells(12, 1), "label": [-1] * 12})
    loaded = sources.load(str(tmp_path))
    assert len(every_label(loaded)) == 60
    assert "a tenth held out as test" in loaded.describe()
    assert loaded.notes == ("left out: the split test, whose images have no label",)
    assert_split_column_is_refused(tmp_path)


@pytest.mark.parametrize("label", [None, pa.nulls(12), pa.nulls(12, pa.float64())])
def test_a_test_split_without_any_label_is_none(label: pa.Array | None, tmp_path: Path) -> None:
    """Without the column, or without anything in it."""
    parquet_file(tmp_path / "train.parquet", 60, 0)
    columns = {"image": cells(12, 1)} | ({} if label is None else {"label": label})
    write(tmp_path / "test.parquet", columns)
    loaded = sources.load(str(tmp_path))
    assert len(every_label(loaded)) == 60
    assert loaded.notes == ("left out: the split test, whose images have no label",)
    assert_split_column_is_refused(tmp_path)


def assert_split_column_is_refused(folder: Path) -> None:
    """Without a test split, training data may not say that some of their rows are for testing."""
    split = {"image": cells(40), "label": np.arange(40) % 2, "split": ["train", "test"] * 20}
    write(folder / "train.parquet", split)
    assert "has a column split, which is not read" in refusal(folder)


def test_a_label_that_only_the_test_split_has(tmp_path: Path) -> None:
    parquet_file(tmp_path / "train.parquet", 60, 0)
    write(tmp_path / "test.parquet", {"image": cells(12), "label": np.arange(12)})
    assert "row 3 has the label '3', which no training image has" in refusal(tmp_path)


# ---- splits


def test_parquet_folder(tmp_path: Path) -> None:
    parquet_file(tmp_path / "train-00000-of-00002.parquet", 45, 0, "img")
    parquet_file(tmp_path / "train-00001-of-00002.parquet", 45, 1, "img")
    parquet_file(tmp_path / "test-00000-of-00001.parquet", 12, 2, "img")
    loaded = sources.load(str(tmp_path))
    assert (len(loaded.train_labels), len(loaded.test_labels)) == (90, 12)
    assert loaded.classes == ("x", "y", "z")
    assert loaded.test_labels.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(
    "names",
    [
        ("train/0000", "test/0000"),
        ("cifar-train", "cifar_test"),
        ("data/train-1", "data/val-1"),
        ("a/b/c/training", "a/b/c/dev"),
        ("train.parquet/part-0", "test.parquet/part-0"),  # as Spark writes them
    ],
)
def test_splits_by_folder_or_name(names: tuple[str, str], tmp_path: Path) -> None:
    parquet_file(tmp_path / f"{names[0]}.parquet", 60, 0)
    parquet_file(tmp_path / f"{names[1]}.parquet", 12, 1)
    loaded = sources.load(str(tmp_path))
    assert (len(loaded.train_labels), len(loaded.test_labels)) == (60, 12)


@pytest.mark.parametrize("name", ["all", "test", "train"])
def test_single_file(name: str, tmp_path: Path) -> None:
    """Whoever names one file means it, whatever it is called."""
    parquet_file(tmp_path / f"{name}.parquet", 60, 0)
    loaded = sources.load(str(tmp_path / f"{name}.parquet"))
    assert len(every_label(loaded)) == 60
    assert len(loaded.test_labels) > 0


def test_several_data_sets_are_refused(tmp_path: Path) -> None:
    for name in ("small", "large"):
        parquet_file(tmp_path / name / "train.parquet", 60, 0)
    assert "holds several data sets (large, small); give the folder of one" in refusal(tmp_path)


def test_files_of_several_folders_that_say_no_split_are_refused(tmp_path: Path) -> None:
    for seed, name in enumerate(("cars", "flowers")):
        columns = {"image": cells(60, seed), "label": np.arange(60) % 3}
        write(tmp_path / "sets" / name / "part-0.parquet", columns)
    assert "lie in several folders (cars, flowers) and may be several data sets" in refusal(
        tmp_path / "sets"
    )
    (tmp_path / "sets").rename(tmp_path / "train")
    assert len(every_label(sources.load(str(tmp_path)))) == 120


@pytest.mark.parametrize("folders", [("year=2020", "year=2021"), ("a", "b")])
def test_folders_of_one_table(folders: tuple[str, str], tmp_path: Path) -> None:
    """Parts that say which they are; and whatever they are called, where labels say the class."""
    for seed, name in enumerate(folders):
        labels = np.arange(40) % 2 if "=" in name else np.array(["cat", "dog"])[np.arange(40) % 2]
        write(tmp_path / name / "0.parquet", {"image": cells(40, seed), "label": labels})
    assert len(every_label(sources.load(str(tmp_path)))) == 80


def test_a_column_split_of_files_that_are_splits(tmp_path: Path) -> None:
    for seed, kind in enumerate(("train", "test")):
        columns = {"image": cells(40, seed), "label": np.arange(40) % 2, "split": [kind] * 40}
        write(tmp_path / f"{kind}.parquet", columns)
    assert len(every_label(sources.load(str(tmp_path)))) == 80


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    parquet_file(tmp_path / "TRAIN.PARQUET", 60, 0)
    parquet_file(tmp_path / "test.Parquet", 12, 1)
    assert len(sources.load(str(tmp_path)).test_labels) == 12


def test_files_with_and_without_a_split_are_refused(tmp_path: Path) -> None:
    parquet_file(tmp_path / "train.parquet", 60, 0)
    parquet_file(tmp_path / "other.parquet", 60, 1)
    assert "name the parquet files train*" in refusal(tmp_path)


def test_a_stray_file_beside_class_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 24)
    write(tmp_path / "table.parquet", {"text": ["a"], "label": [0]})
    loaded = sources.load(str(tmp_path))
    assert loaded.classes == ("cat", "dog")
    assert loaded.notes == ("left out: 1 file of other kinds (1 .parquet)",)
    parquet_file(tmp_path / "table.parquet", 60, 0)
    assert f"give --data {tmp_path / 'table.parquet'} for the file" in refusal(tmp_path)
