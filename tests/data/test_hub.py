"""Token streams of the `paper` profile, from files in the hub's schema and a tokenizer saved in the hub's layout."""

import json

import numpy as np
import pytest

from zfu_lib.data.catalogue import DataError
from zfu_lib.data.hub import hub_corpus
from zfu_lib.lm.tokenizer import byte_tokenizer

DOCUMENTS = [f"document {i}: " + "lorem ipsum " * i for i in range(1, 30)]


@pytest.fixture
def options(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = "\n".join(json.dumps({"text": text, "id": f"<urn:uuid:{i}>"}) for i, text in enumerate(DOCUMENTS))
    (tmp_path / "part.jsonl").write_text(rows)
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "another book " * 20}))
    files = {"train": str(tmp_path / "part.jsonl")}
    return {
        "dataset": "json", "data_files": files, "split": "train", "tokenizer": str(tmp_path / "tokenizer"),
        "train_tokens": 1000, "held_out_tokens": 200, "ood": "json",
        "ood_options": {"data_files": {"test": str(tmp_path / "other.jsonl")}, "split": "test"},
        "folder": tmp_path / "tokens",
    }  # fmt: skip


def test_streams_are_the_documents_in_order(options):
    corpus = hub_corpus(**options)
    end = byte_tokenizer().eos_token_id
    expected = [t for text in DOCUMENTS for t in [*text.encode(), end]][:1200]
    assert np.concatenate([corpus.validation, corpus.train]).tolist() == expected
    assert len(corpus.train) == 1000
    assert len(corpus.validation) == len(corpus.ood) == 200
    assert corpus.vocabulary == len(byte_tokenizer())
    assert not corpus.train.flags.writeable


def test_second_call_reads_what_the_first_wrote(options):
    first = hub_corpus(**options)
    (files,) = options["data_files"].values()
    with open(files, "w") as gone:
        gone.write("")
    assert np.array_equal(hub_corpus(**options).train, first.train)


def test_too_short_leaves_nothing_behind(options):
    with pytest.raises(DataError, match=r"has only \d+ tokens, 1000200 were asked for"):
        hub_corpus(**options | {"train_tokens": 1_000_000})
    assert list(options["folder"].iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [({"text_field": "content"}, "no field 'content'"), ({"tokenizer": "no/such-tokenizer"}, "tokenizer no/such")],
)
def test_errors_name_what_is_missing(options, change, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=message):
        hub_corpus(**options | change)
