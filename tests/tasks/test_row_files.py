"""Rows as people give them: every form that is allowed, and one clear word for each that is not."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightship.data.rows import BadRow
from lightship.errors import InvalidData, InvalidInput, NotFound
from lightship.tasks import row_arrays, row_reader, row_tables
from lightship.tasks.image_classification import ImageClassification
from lightship.tasks.row_files import read_rows
from lightship.tasks.tensors import TensorRows
from lightship.types import Interface, TensorSpec

TOKENS = Interface(
    (TensorSpec("ids", "INT64", ("batch", "tokens")), TensorSpec("mask", "INT64", ("batch", "tokens"))),
    (TensorSpec("y", "FP32", ("batch", 3)),),
    proven={"batch": (1, 8), "tokens": (1, 16)},
)
TABLE = Interface((TensorSpec("x", "FP32", ("batch", 4)),), (TensorSpec("y", "FP32", ("batch", 2)),))
PICTURE = Interface((TensorSpec("x", "FP32", ("batch", 1, 2, 3)),), (TensorSpec("y", "FP32", ("batch", 2)),))
FIXED = Interface((TensorSpec("x", "FP32", (1, 4)),), (TensorSpec("y", "FP32", (1, 2)),))
WHOLE = Interface((TensorSpec("x", "FP32", ("n", 4)),), (TensorSpec("y", "FP32", ()),), proven={"n": (1, 9)})
TEXTS = Interface((TensorSpec("city", "BYTES", ("batch",)),), (TensorSpec("y", "BYTES", ("batch",)),))
X = np.arange(40, dtype=np.float32).reshape(10, 4)


def _read(path, interface=TABLE, **options):
    return read_rows(path, task=TensorRows(interface.inputs, interface.outputs), interface=interface, **options)


def test_an_npz_file_holds_arrays_by_name(tmp_path):
    """The first axis are rows; labels are classes by number."""
    np.savez(tmp_path / "rows.npz", x=X, label=np.arange(10) % 2)
    rows = _read(tmp_path / "rows.npz")

    assert len(rows) == 10
    assert list(rows.labels) == [0, 1] * 5
    np.testing.assert_array_equal(rows.row(3)["x"], X[3])
    np.testing.assert_array_equal(rows.stacked([2, 5])["x"], X[[2, 5]])
    assert rows.ids[0] == "rows.npz#1"


def test_rows_of_a_large_file_come_from_the_disk_one_by_one(tmp_path, monkeypatch):
    """The same values, and never the whole file in memory."""
    monkeypatch.setattr(row_arrays, "_WHOLE_BYTES", 100)
    monkeypatch.setattr(row_arrays, "read_npz", None)
    np.savez(tmp_path / "rows.npz", x=X.astype(">f4"), label=np.arange(10) % 2)
    rows = _read(tmp_path / "rows.npz")

    np.testing.assert_array_equal(np.stack([rows.row(i)["x"] for i in range(10)]), X)
    assert list(rows.labels) == [0, 1] * 5
    np.savez_compressed(tmp_path / "packed.npz", x=np.zeros((400, 4), np.float32))
    with pytest.raises(InvalidData, match=r"'x' is compressed\. Write it with `numpy\.savez`"):
        _read(tmp_path / "packed.npz")


def test_arrays_in_memory_are_rows_too():
    """For callers from Python."""
    rows = _read({"x": X, "label": np.array([1] * 10)})

    assert (len(rows), rows.ids[9]) == (10, "row#10")


@pytest.mark.parametrize("kind", ["list", "fixed", "tensor"])
def test_a_parquet_table_holds_columns_of_lists(tmp_path, kind):
    """Lists, lists of one length and Arrow's tensors are the same rows, over several row groups."""
    values = np.arange(60, dtype=np.float32).reshape(10, 1, 2, 3)
    column = {
        "list": lambda: pa.array(values.reshape(10, 6).tolist(), pa.list_(pa.float64())),
        "fixed": lambda: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 6),
        "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(values),
    }[kind]()
    pq.write_table(
        pa.table({"x": column, "label": [0, 1] * 5, "id": range(10)}), tmp_path / "r.parquet", row_group_size=3
    )
    rows = _read(tmp_path / "r.parquet", PICTURE)

    np.testing.assert_array_equal(rows.stacked(range(10))["x"], values)
    assert rows.row(9)["x"].dtype == np.float32
    assert list(rows.labels) == [0, 1] * 5


def test_rows_of_tokens_may_have_different_lengths(tmp_path):
    """As lists in a table, or as files of one row each."""
    ids = [[1, 2, 3], [4], [5, 6]]
    masks = [[1] * len(row) for row in ids]
    pq.write_table(pa.table({"ids": ids, "mask": masks}), tmp_path / "r.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, (row, mask) in enumerate(zip(ids, masks, strict=True)):
        np.savez(folder / f"{number}.npz", ids=np.array(row), mask=np.array(mask))
    np.savez(folder / "more.npz", ids=np.ones((2, 5), np.int32), mask=np.ones((2, 5), np.int32))
    table, files = _read(tmp_path / "r.parquet", TOKENS), _read(folder, TOKENS)

    assert [table.row(i)["ids"].tolist() for i in range(3)] == ids
    assert [files.row(i)["ids"].tolist() for i in range(3)] == ids
    assert files.ids == ["0.npz", "1.npz", "2.npz", "more.npz#1", "more.npz#2"]
    assert files.row(4)["mask"].dtype == np.int64


def test_a_graph_for_one_row_and_one_without_rows(tmp_path):
    """Of the first an array may hold many rows; the second takes whole inputs."""
    one = _read({"x": X}, FIXED)
    many = _read({"x": np.stack([X, X + 1])}, WHOLE)
    whole = _read({"x": X[:9]}, WHOLE)

    assert (len(one), one.row(4)["x"].shape) == (10, (1, 4))
    assert (len(many), many.ids[1]) == (2, "row#2")
    assert len(whole) == 1
    np.testing.assert_array_equal(whole.row(0)["x"], X[:9])
    with pytest.raises(InvalidData, match=r"n of the input 'x' was proven for 1 to 9\. Got 10; .* --upto n=10 or"):
        many.row(1)


def test_texts_are_inputs_too(tmp_path):
    """From numpy's texts and from a column of strings."""
    np.savez(tmp_path / "r.npz", city=np.array(["a", "bc"]))
    pq.write_table(pa.table({"city": ["a", "bc"]}), tmp_path / "r.parquet")

    for path in (tmp_path / "r.npz", tmp_path / "r.parquet"):
        assert [_read(path, TEXTS).row(i)["city"].item() for i in range(2)] == [b"a", b"bc"]


ONES = np.ones((1, 4), np.int64)
BAD_ROWS = {
    "too long": (np.ones((1, 17), np.int64), np.ones((1, 17), np.int64), r"tokens .* 1 to 16\. Got 17"),
    "unequal": (ONES, np.ones((1, 5), np.int64), "tokens of the input 'mask' is 5, and 4"),
    "rank": (np.ones((1, 4, 2), np.int64), ONES, r"'ids' takes rows of the shape \[tokens\]"),
    "floats": (np.full((1, 4), 1.5), ONES, "'ids' takes INT64. Got float64"),
    "truth": (np.ones((1, 4), bool), ONES, "'ids' takes INT64. Got bool"),
    "too big": (np.full((1, 4), 2**63, np.uint64), ONES, "Got values from 9223372036854775808"),
    "texts": (np.array([["a", "b", "c", "d"]]), ONES, "'ids' takes INT64. Got texts"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_does_not_fit_says_why(name):
    """Which input, what it takes, what came."""
    ids, mask, words = BAD_ROWS[name]

    with pytest.raises(InvalidInput, match=words):
        _read({"ids": ids, "mask": mask}, TOKENS).row(0)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": X}, r"Missing: 'x'\. Got 'y'"),
        ({"x": X, "labels": np.zeros(10, int)}, r"Got 'labels' besides; if these are the labels: `--label NAME`"),
        ({"x": X[:0]}, "0 rows"),
        ({"x": np.float32(1)}, "the first axis of all arrays are rows"),
        ({"x": X, "label": np.zeros(9, int)}, r"'label' must hold the label of each row, \[10, ...\]\. Got \[9\]"),
    ],
    ids=["missing", "unknown", "empty", "scalar", "labels"],
)
def test_arrays_that_are_no_rows_are_refused(arrays, words):
    """Before anything is run."""
    with pytest.raises(InvalidData, match=words):
        _read(arrays)


def test_cells_that_are_no_numbers_are_named(tmp_path):
    """The column, and what is wrong with it."""
    dates = pa.array([[1], [2]], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("s")))
    cases = {
        "empty cell": (pa.array([[1.0] * 4, None]), "has an empty cell"),
        "empty value": (pa.array([[1.0] * 4, [1.0, None, 1.0, 1.0]]), "has an empty value"),
        "ragged": (pa.array([[[1.0], [1.0]], [[1.0], [1.0, 2.0]]]), "lists of unequal lengths"),
        "dates": (dates, "the column 'x' holds"),
    }
    for name, (column, words) in cases.items():
        pq.write_table(pa.table({"x": column}), tmp_path / f"{name}.parquet")
        with pytest.raises(InvalidData, match=words):
            _read(tmp_path / f"{name}.parquet").row(1)


def test_files_that_are_something_else_are_refused(tmp_path):
    """By their bytes, not by their names."""
    (tmp_path / "a.npz").write_text("x,label\n1,2\n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "readme.txt").write_text("nothing")
    (tmp_path / "e.csv").write_text("x\n1\n")

    for name, words in {
        "a.npz": "begins with b'x,la'",
        "b.parquet": "not a readable Parquet file",
        "c.npz": r"must be a \.npz file",
        "d": r"must hold \.npz files.*'readme\.txt'",
        "e.csv": r"takes no \.csv file",
    }.items():
        with pytest.raises(InvalidInput, match=words):
            _read(tmp_path / name)
    with pytest.raises(NotFound, match="There are no rows at"):
        _read(tmp_path / "nothing.npz")


def test_a_pickle_in_a_file_is_never_loaded(tmp_path):
    """It could run any program."""
    np.savez(tmp_path / "r.npz", x=np.array([{"a": 1}], dtype=object))

    with pytest.raises(InvalidInput, match="dtype object"):
        _read(tmp_path / "r.npz")


def test_broken_files_of_a_folder_are_bad_rows(tmp_path):
    """They are named; the others stand, and labels must be there for all or none."""
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", x=X[number], label=np.int64(number % 2))
    (tmp_path / "z.npz").write_bytes(b"PK\x03\x04 cut short")
    rows = _read(tmp_path)

    assert list(rows.labels) == [0, 1, 0, None]
    with pytest.raises(InvalidData, match=r"must be a \.npz file"):
        rows.row(3)
    np.savez(tmp_path / "no-label.npz", x=X[0])
    with pytest.raises(InvalidData, match="Give labels for all of them, or for none"):
        _read(tmp_path)


def test_few_bad_rows_are_skipped_and_many_refuse_the_source(tmp_path):
    """Three, or five in a hundred; the first are named."""
    rows = _read({"x": X})
    bad = [BadRow(f"row#{number}", "is bad") for number in range(4)]

    rows.require_usable(bad[:3], of=10)
    rows.require_usable(bad, of=80)
    with pytest.raises(
        InvalidData, match=r"4 of 10 rows of arrays cannot be used; at most 3 may be bad.*row#0: is bad"
    ):
        rows.require_usable(bad, of=10)
    with pytest.raises(InvalidData, match="3 of 3 rows"):
        rows.require_usable(bad[:3], of=3)


def _png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((9, 9), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_a_model_of_images_takes_images_in_every_form(tmp_path):
    """A folder by class, one without classes, a table of bytes, a CSV file; all encoded by the task."""
    task = ImageClassification(labels=("a", "b"), channels=1, height=9, width=9, mean=("0",), std=("1",))
    interface = Interface(task.inputs, task.outputs, proven={"batch": (1, 8)})
    for label in "ab":
        (tmp_path / "classes" / label).mkdir(parents=True)
        (tmp_path / "classes" / label / "1.png").write_bytes(_png(ord(label)))
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.png").write_bytes(_png(51))
    (tmp_path / "flat" / "notes.txt").write_text("")
    pq.write_table(pa.table({"image": [_png(51)], "label": ["b"]}), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("image,label\nflat/1.png,b\nflat/1.png,c\n")

    def read(name):
        return read_rows(tmp_path / name, task=task, interface=interface)

    assert read("classes").labels == ["a", "b"]
    assert read("flat").labels is None
    assert read("t.parquet").labels == ["b"]
    assert read("t.csv").labels == ["b", "c"]
    for name in ("flat", "t.parquet", "t.csv"):
        np.testing.assert_allclose(read(name).row(0)["image"], np.full((1, 9, 9), 0.2), rtol=1e-6)
    with pytest.raises(InvalidData, match=r"suffix '\.txt'"):
        read("flat").row(1)


def test_labels_of_several_values_come_in_every_form(tmp_path):
    """An array of rows, lists in a table, and one file a row, whose label has no axis of rows."""
    labels = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.savez(tmp_path / "r.npz", x=X, label=labels)
    pq.write_table(pa.table({"x": X.tolist(), "label": labels.tolist()}), tmp_path / "r.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(10):
        np.savez(folder / f"{number}.npz", x=X[number], label=labels[number])

    for path in (tmp_path / "r.npz", tmp_path / "r.parquet", folder):
        np.testing.assert_array_equal(np.array(_read(path).labels), labels)


def _bomb(path, columns, rows):
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=rows)
    assert path.stat().st_size < 3_000_000
    return path


def test_a_small_file_of_a_great_many_rows_is_not_read(tmp_path, monkeypatch):
    """Its header says how many there are; nothing is unpacked."""
    rows = row_reader.MOST_GIVEN + 1
    np.savez_compressed(tmp_path / "r.npz", x=np.zeros((rows, 4), np.uint8))
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * rows, np.float32)), 4)
    table = _bomb(tmp_path / "r.parquet", {"x": column}, rows)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read_row_group", None)
        patch.setattr(pq.ParquetFile, "read", None)
        for path in (tmp_path / "r.npz", table):
            with pytest.raises(InvalidData, match=r"has 1,000,001 rows; at most 1,000,000 are read\. Give a part"):
                _read(path)


def test_what_a_few_bytes_unpack_to_is_bounded(tmp_path, monkeypatch):
    """A zip of zeros, a table of them, and a folder of either: refused by what their headers say."""
    monkeypatch.setattr(row_arrays, "_WHOLE_BYTES", 1 << 20)
    monkeypatch.setattr(row_tables, "_GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(row_reader, "_LEAST_REFUSED", 1 << 19)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    np.savez_compressed(tmp_path / "r.npz", x=np.zeros((1 << 17, 4), np.float32))
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1 << 19, np.float32)), 4)
    one_group = _bomb(tmp_path / "one.parquet", {"x": zeros}, 1 << 17)
    groups = _bomb(tmp_path / "many.parquet", {"x": zeros}, 1 << 15)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        np.savez_compressed(folder / f"{number}.npz", x=np.zeros((15_000, 4), np.float32))

    for path, words in (
        (tmp_path / "r.npz", "'x' is compressed"),
        (one_group, r"a row group may unpack to 1,048,576 bytes at most\. Number 0 has 2,097,152"),
        (groups, r"would unpack to 2,097,152; 100 times as many are allowed"),
        (folder, r"would unpack to [0-9,]+; 100 times as many"),
    ):
        with pytest.raises(InvalidData, match=words):
            _read(path)


@pytest.mark.parametrize("form", ["texts", "lists"])
def test_a_long_text_that_a_dictionary_repeats_is_bounded(tmp_path, monkeypatch, form):
    """A megabyte of text in the file would be a gigabyte in a thousand rows."""
    monkeypatch.setattr(row_tables, "_GROUP_BYTES", 1 << 24)
    interface = TEXTS
    column = pa.array(["a" * 100_000, "b"] * 500)
    if form == "lists":
        column = pa.ListArray.from_arrays(pa.array(range(0, 1001, 2)), column)
        specs = [TensorSpec(name, "BYTES", ("batch", 2)) for name in ("city", "y")]
        interface = Interface((specs[0],), (specs[1],))
    path = _bomb(tmp_path / "r.parquet", {"city": column}, 1000)

    with pytest.raises(InvalidData, match="'city' of row group 0 unpacks to 50,000,500 bytes"):
        _read(path, interface).row(0)
    monkeypatch.setattr(row_tables, "_GROUP_BYTES", 1 << 30)
    assert _read(path, interface).row(0)["city"].ravel()[0] == b"a" * 100_000


def test_rows_that_are_held_are_read_in_the_order_in_which_they_lie(tmp_path, monkeypatch):
    """Asked for by their hashes, each row would have its whole group unpacked again."""
    pq.write_table(pa.table({"x": X.tolist()}), tmp_path / "r.parquet", row_group_size=2)
    rows = _read(tmp_path / "r.parquet")
    groups = []
    honest = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **options: groups.append(group) or honest(self, group, **options),
    )

    rows.hold([9, 0, 5, 2, 8, 1])

    assert groups == [0, 1, 2, 4]
    np.testing.assert_array_equal(rows.stacked([9, 0, 5])["x"], X[[9, 0, 5]])
    assert groups == [0, 1, 2, 4]
