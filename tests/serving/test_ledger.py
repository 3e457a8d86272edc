"""The book of what was predicted."""

from pathlib import Path

import pyarrow as pa

from serving import ledger
from serving.ledger import FOLDER, SCHEMA, Ledger
from serving.storage import LocalStorage


def _write(storage: LocalStorage, chunk: int, *entries: tuple[int, int, list[int]], schema: pa.Schema = SCHEMA) -> str:
    """A part of (path key, content key, codes), of a run of its own."""
    run = ledger.next_run(storage)
    rows = [
        {
            "path_key": path,
            "content_key": content,
            "file": f"/in/{path}.jpg".encode(),
            "codes": codes,
            "probabilities": [0.5] * len(codes),
            "error": None if codes else "EmptyImage",
            "message": None if codes else "0 bytes",
            "result_key": ledger.result_key(_result(path)),
        }
        for path, content, codes in entries
    ]
    ledger.write_part(storage, pa.Table.from_pylist(rows, schema=schema), run=run, chunk=chunk)
    return run


def _result(path: int) -> bytes:
    return b'{"file": "/in/%d.jpg"}' % path


def test_a_picture_is_found_by_place_and_content(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    _write(storage, 0, (2**64 - 1, 7, [3, 1]), (5, 8, [2]))

    book = Ledger.load(storage)

    assert book.find(2**64 - 1, 7) == 3
    assert book.find(5, 8) == 2
    assert book.find(5, 7) is None, "another content"
    assert book.find(6, 8) is None, "another place"
    assert len(book) == 2


def test_the_newest_entry_counts_before_and_after_merging(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    _write(storage, 9, (1, 100, [0]), (2, 100, [0]))
    _write(storage, 0, (1, 200, [1]))
    run = _write(storage, 5, (2, 0, []))

    for when in ("before", "after"):
        book = Ledger.load(storage)
        assert book.find(1, 100) is None, when
        assert book.find(1, 200) == 1, when
        assert book.find(2, 100) is None, f"it became unreadable; {when}"
        table = ledger.merge(storage, run=run)
        assert table["file"].to_pylist() == [b"/in/1.jpg", b"/in/2.jpg"], when
    assert len(storage.names(FOLDER)) == 1


def test_a_ledger_of_an_earlier_version_is_read_and_merged(tmp_path: Path) -> None:
    """It does not state the results' bytes: then a result counts for the picture that it names."""
    storage = LocalStorage(str(tmp_path))
    earlier = pa.schema([field for field in SCHEMA if field.name != "result_key"])
    _write(storage, 0, (1, 100, [0]), (2, 100, [0]), schema=earlier)
    run = _write(storage, 0, (2, 200, [1]), (3, 100, [0]))

    for when in ("before", "after"):
        book = Ledger.load(storage)
        assert [book.find(1, 100), book.find(2, 200), book.find(3, 100)] == [0, 1, 0], when
        assert book.wrote(1, b'{"file": "/in/1.jpg", "other": 1}', file="/in/1.jpg"), when
        for other in (_result(2), b"", b"[]", b'"file"', b"{}", b"\xff"):
            assert not book.wrote(1, other, file="/in/1.jpg"), (when, other)
        assert book.wrote(2, _result(2), file="/in/2.jpg"), when
        assert not book.wrote(2, b'{"file": "/in/2.jpg", "other": 1}', file="/in/2.jpg"), when
        ledger.merge(storage, run=run)


def test_killed_while_merging_nothing_is_lost(tmp_path: Path) -> None:
    """The merged part is written before the old ones go, and outranks those that are still there."""
    storage = LocalStorage(str(tmp_path))
    _write(storage, 0, (1, 100, [0]))
    run = _write(storage, 0, (1, 200, [1]))
    old = {name: storage.read(f"{FOLDER}/{name}") for name in storage.names(FOLDER)}
    ledger.merge(storage, run=run)

    storage.write_all((f"{FOLDER}/{name}", data) for name, data in old.items())

    assert Ledger.load(storage).find(1, 200) == 1


def test_a_torn_part_is_passed_over(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    _write(storage, 0, (1, 100, [0]))
    _write(storage, 0, (2, 100, [0]))
    name = storage.names(FOLDER)[-1]
    file = tmp_path / FOLDER / name
    file.write_bytes(file.read_bytes()[:-20])

    book = Ledger.load(storage)

    assert book.find(1, 100) == 0
    assert book.find(2, 100) is None


def test_a_run_comes_after_all_before_it(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    runs = [_write(storage, 0, (number, 1, [0])) for number in range(12)]

    assert sorted(runs) == runs


def test_content_model_and_top_k_make_the_content_key() -> None:
    settings = ledger.settings_key(model_digest="sha256:a", top_k=3)
    others = [
        ledger.content_key(b"other", settings),
        ledger.content_key(b"data", ledger.settings_key(model_digest="sha256:b", top_k=3)),
        ledger.content_key(b"data", ledger.settings_key(model_digest="sha256:a", top_k=2)),
    ]

    assert len({ledger.content_key(b"data", settings), *others}) == 4
    assert ledger.content_key(b"data", settings) == ledger.content_key(b"data", settings)
