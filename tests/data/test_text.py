import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zfu_lib.data import catalogue, text
from zfu_lib.data.catalogue import DataError

PARTS = ("train", "validation", "ood")


def documents(corpus, part):
    return bytes(getattr(corpus, part)).split(text.SEPARATOR)


@pytest.fixture(scope="module")
def corpus():
    return text.standard_corpus()


def test_streams_are_large_read_only_bytes_that_the_record_describes(corpus):
    sizes = [len(getattr(corpus, part)) for part in PARTS]
    assert sizes[0] > 2_000_000
    assert sizes[1] > 300_000
    assert sizes[2] > 300_000
    for part, used in zip(PARTS, corpus.used, strict=True):
        stream = getattr(corpus, part)
        assert stream.dtype == "uint8"
        assert not stream.flags.writeable
        assert (used.sha256, used.bytes) == (hashlib.sha256(bytes(stream)).hexdigest(), len(stream))
        assert used.version == f"Python {sys.version.split()[0]}"


def test_no_document_is_in_two_streams_or_twice_in_one(corpus):
    sets = [documents(corpus, part) for part in PARTS]
    together = [document for stream in sets for document in stream]
    assert len(set(together)) == len(together)
    assert min(map(len, sets)) >= 20


def test_the_domains_differ(corpus):
    def share(part):
        stream = bytes(getattr(corpus, part))
        return (stream.count(b"self.") + stream.count(b"def ")) / len(stream)

    assert share("validation") == pytest.approx(share("train"), rel=0.7)
    assert share("ood") < share("train") / 4


def test_another_process_with_another_locale_and_hash_seed_reads_the_same(corpus):
    code = (
        "import json; from zfu_lib.data import text; print(json.dumps([u.sha256 for u in text.standard_corpus().used]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [used.sha256 for used in corpus.used]


def test_modules_are_read_in_order_whatever_the_file_system_says(tmp_path, monkeypatch):
    package = tmp_path / "json"
    (package / "tests").mkdir(parents=True)
    (package / "b.py").write_bytes(b"two\r\n")
    (package / "a.py").write_bytes(b"\xef\xbb\xbfone\n")
    (package / "tests" / "t.py").write_text("left out")
    (tmp_path / "abc.py").write_text("zero\n")
    (tmp_path / "ast.py").write_bytes(b"\xff\xfe not UTF-8")
    (tmp_path / "cmd.py").symlink_to(tmp_path / "gone.py")
    (tmp_path / "mine.py").write_text("not a module of Python")
    expected = {"abc": [b"zero\n"], "json": [b"one\n", b"two\n"]}
    assert text._standard_library(tmp_path) == expected
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(listed(self, pattern))))
    assert list(text._standard_library(tmp_path).items()) == list(expected.items())


def test_a_held_out_copy_of_a_training_document_is_dropped(monkeypatch):
    held_out = next(name for name in sorted(sys.stdlib_module_names) if text._tenth(name))
    trained = next(name for name in sorted(sys.stdlib_module_names) if not text._tenth(name))
    large = b"x = 1\n" * 200_000
    modules = {held_out: [b"own", large, b"own"], trained: [large, large, b" \n"]}
    monkeypatch.setattr(text, "_standard_library", lambda root: modules)
    corpus = text.standard_corpus.__wrapped__()
    assert documents(corpus, "train") == [large]
    assert documents(corpus, "validation") == [b"own"]
    modules[trained] = [b"little"]
    with pytest.raises(DataError, match="only 6 bytes"):
        text.standard_corpus.__wrapped__()


START = b"*** START OF THIS PROJECT GUTENBERG EBOOK X ***"


@pytest.mark.parametrize(
    "end",
    [
        b"End of the Project Gutenberg EBook of X",
        b"***END OF THE PROJECT GUTENBERG EBOOK X***",
        b"End of Project Gutenberg's X",
    ],
)
def test_only_the_book_remains(end):
    content = (
        b"\xef\xbb\xbfThe Project Gutenberg EBook\r\n"
        + START
        + b"\r\n\r\nCall me.\r\nYes\r\n\r\n"
        + end
        + b"\r\nlicence"
    )
    assert text.strip_gutenberg(content, "x") == b"Call me.\nYes\n"


@pytest.mark.parametrize(
    "content", [b"no marks", START + b"\nno end", b"End of Project Gutenberg's X\n" + START + b"\n"]
)
def test_a_file_without_marks_is_refused(content):
    with pytest.raises(DataError, match=r"x.txt has no Project Gutenberg"):
        text.strip_gutenberg(content, "x.txt")


def test_whole_books_are_held_out(tmp_path, monkeypatch):
    books = {}
    for name in ("1_a.txt", *text.HELD_OUT_BOOKS, "2_b.txt"):
        books[name] = tmp_path / name
        books[name].write_bytes(START + b"\n" + name.encode() + b"\nEnd of Project Gutenberg's\n")
    (tmp_path / "w.txt").write_text("other")
    monkeypatch.setattr(
        catalogue, "get", lambda name: books if name == "gutenberg_books" else {f"{name}.txt": tmp_path / "w.txt"}
    )
    corpus = text.books_corpus()
    assert documents(corpus, "train") == [b"1_a.txt\n", b"2_b.txt\n"]
    assert documents(corpus, "validation") == [f"{name}\n".encode() for name in text.HELD_OUT_BOOKS]
    assert documents(corpus, "ood") == [b"other", b"other"]


def test_the_held_out_books_are_in_the_catalogue():
    entry = catalogue.entry("gutenberg_books")
    assert set(text.HELD_OUT_BOOKS) < {entry.key(file) for file in entry.files}
