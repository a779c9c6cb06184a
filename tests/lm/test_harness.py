import json
import socket

import lm_eval.tasks
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zfu_lib.lm import harness
from zfu_lib.lm.harness import HarnessError
from zfu_lib.lm.tokenizer import VOCABULARY, byte_tokenizer


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def refuse(*arguments):
        raise ConnectionError("the network is blocked in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def model_that_says(byte: str):
    """No layers, one-hot embeddings: only ``byte`` is likely, after anything."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=VOCABULARY + 1,
        intermediate_size=1,
        num_hidden_layers=0,
        num_attention_heads=1,
        max_position_embeddings=128,
        bos_token_id=256,
        eos_token_id=257,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY, VOCABULARY + 1))
        model.lm_head.weight.zero_()
        model.lm_head.weight[ord(byte)] = 1.0
    return model


def write(file, answers):
    rows = [{"question": f"Item {i}?", "choices": ["n", "y", "o"], "answer": a} for i, a in enumerate(answers)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_model_that_always_says_y_scores_where_y_is_right(tmp_path, capfd):
    task = harness.multiple_choice(
        "toy", write(tmp_path / "t.jsonl", [1, 1, 0, 2, 1, 1, 0]), text="{{question}} Answer:"
    )
    found = harness.evaluate(model_that_says("y"), byte_tokenizer(), [task])
    assert found["items"]["toy"]["acc"] == [1, 1, 0, 0, 1, 1, 0]
    assert found["scores"]["toy"]["acc"]["value"] == pytest.approx(4 / 7)
    assert found["scores"]["toy"]["acc"]["n"] == 7
    assert found["scores"]["toy"]["acc"]["stderr"] > 0
    assert found["versions"]["toy"] == 1.0
    assert capfd.readouterr().err == ""
    assert harness.evaluate(model_that_says("n"), byte_tokenizer(), [task])["items"]["toy"]["acc"] == [
        0,
        0,
        1,
        0,
        0,
        0,
        1,
    ]


TASK = """
task: beside
dataset_path: json
dataset_kwargs: {data_files: {test: data/t.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 1, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 2.0}
"""


def test_a_task_file_finds_its_data_from_any_folder_and_can_generate(tmp_path, monkeypatch):
    (tmp_path / "tasks/data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "tasks/data/t.jsonl", [1, 0, 1])
    (tmp_path / "tasks/t.yaml").write_text(TASK)
    monkeypatch.chdir(tmp_path / "elsewhere")
    task = harness.local_task(tmp_path / "tasks/t.yaml")
    found = harness.evaluate(model_that_says("y"), byte_tokenizer(), [task], limit=2)
    assert found["items"]["beside"]["exact_match"] == [1, 0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (TASK, "task beside: no file t.jsonl"),
        (TASK.replace('"{{question}}"', "!function code.run"), "is not a task"),
        ("- a list", "has no field 'task'"),
        ("task: x\ndataset_path: json", "data_files must name"),
    ],
)
def test_a_task_file_that_cannot_run_is_explained(tmp_path, content, says):
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(HarnessError, match=says):
        harness.local_task(tmp_path / "t.yaml")


def test_no_tasks_and_unknown_names_are_refused(monkeypatch):
    # The real index of built-in names takes ten seconds to read.
    real = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda include_defaults: real(include_defaults=False))
    with pytest.raises(HarnessError, match="no task"):
        harness.evaluate(None, None, [])
    with pytest.raises(HarnessError, match="lm-eval has no task not_a_task"):
        harness.evaluate(None, None, ["not_a_task"])
