import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from zfu_lib.lm import train as trainer
from zfu_lib.lm.train import CheckpointError, TrainConfig, learning_rate, random_slices, train

CONFIG = TrainConfig(steps=8, batch_size=4, seq_len=6, lr=0.05, warmup=2)
STREAM = np.tile(np.arange(5, dtype=np.uint8), 40)


class Bigram(nn.Module):
    """Next-token logits from the current token alone, with dropout between."""

    def __init__(self, vocabulary=8, width=6, dropout=0.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        return SimpleNamespace(logits=self.head(self.dropout(self.embed(tokens))))


class Tied(Bigram):
    def __init__(self, **options):
        super().__init__(**options)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, tokens):
        self.seen += 1
        return super().forward(tokens)


def batches(config=CONFIG):
    return random_slices(STREAM, config.seq_len, config.batch_size, seed=3)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_time(log):
    return dataclasses.asdict(dataclasses.replace(log, seconds=[]))


def test_a_stream_with_one_continuation_is_learnt():
    config = dataclasses.replace(CONFIG, steps=80)
    log = train(Bigram(), batches(), config)
    assert log.loss[0] > 1.5
    assert log.loss[-1] < 0.05
    assert log.tokens == [4 * 5] * 80
    assert len(log.seconds) == len(log.lr) == len(log.grad_norm) == 80


def test_the_first_loss_is_the_mean_over_scored_tokens():
    tokens = batches()(0)
    model = Bigram()
    with torch.no_grad():
        logits = model(tokens).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert train(model, batches(), CONFIG).loss[0] == pytest.approx(expected, rel=1e-6)
    targets = torch.full_like(tokens, -100)
    targets[:, 2] = 7
    model = Bigram()
    expected = F.cross_entropy(logits[:, 2], targets[:, 2]).item()
    log = train(model, lambda step: (tokens, targets), CONFIG)
    assert log.loss[0] == pytest.approx(expected, rel=1e-6)
    assert log.tokens[0] == 4


@pytest.mark.parametrize("make", [Tied, lambda: Bigram(dropout=0.3)], ids=["tied weights and a buffer", "dropout"])
@pytest.mark.parametrize("stopped_after", [3, 5])
def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path, make, stopped_after):
    config = dataclasses.replace(CONFIG, checkpoint_every=2)
    whole = make()
    log = train(whole, batches(), config)

    def stop(step, log):
        if step == stopped_after:
            raise KeyboardInterrupt

    file = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(make(), batches(), config, checkpoint=file, on_step=stop)
    resumed, steps = make(), []
    again = train(resumed, batches(), config, checkpoint=file, on_step=lambda step, log: steps.append(step))
    assert steps == list(range((stopped_after + 1) // 2 * 2, 8))
    assert same(weights(whole), weights(resumed))
    assert without_time(log) == without_time(again)
    finished = make()
    assert without_time(train(finished, lambda step: pytest.fail("trained"), config, checkpoint=file)) == without_time(
        log
    )
    assert same(weights(whole), weights(finished))


def test_the_seed_drives_dropout_and_the_callers_generator_is_left_alone():
    def run(seed):
        model = Bigram(dropout=0.5)
        torch.manual_seed(11)
        before = torch.get_rng_state()
        log = train(model, batches(), dataclasses.replace(CONFIG, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
        return log.loss

    assert run(0) == run(0) != run(1)


def test_micro_batches_change_only_rounding():
    one, parts = Bigram(), Bigram()
    log = train(one, batches(), CONFIG)
    split = train(parts, batches(), dataclasses.replace(CONFIG, micro_batch=3))
    assert split.loss == pytest.approx(log.loss, rel=1e-5)
    torch.testing.assert_close(one.state_dict(), parts.state_dict(), rtol=1e-4, atol=1e-5)


def test_two_ranks_equal_one(tmp_path):
    (tmp_path / "text").write_bytes(bytes(range(60, 90)) * 20)
    results = {}
    for ranks in (1, 2):
        config = {
            "train": {"steps": 6, "batch_size": 4, "seq_len": 16, "lr": 0.01, "warmup": 2},
            "output": str(tmp_path / f"out{ranks}"),
            "arguments": {
                "text": str(tmp_path / "text"),
                "model": {"model_type": "llama", "vocab_size": 128, "hidden_size": 16, "intermediate_size": 32}
                | {"num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": True},
            },
        }
        file = tmp_path / f"{ranks}.json"
        file.write_text(json.dumps(config))
        if ranks == 1:
            assert trainer.main([str(file)]) == 0
        else:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            done = subprocess.run(
                [*launch, "-m", "zfu_lib.lm.train", str(file)],
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        log = json.loads((tmp_path / f"out{ranks}/log.json").read_text())
        results[ranks] = log, load_file(tmp_path / f"out{ranks}/checkpoint.safetensors")
        assert (tmp_path / f"out{ranks}/model/model.safetensors").is_file()
    (log_1, state_1), (log_2, state_2) = results[1], results[2]
    assert log_1["tokens"] == log_2["tokens"] == [4 * 15] * 6
    assert log_2["loss"] == pytest.approx(log_1["loss"], rel=1e-4)
    assert log_2["grad_norm"] == pytest.approx(log_1["grad_norm"], rel=1e-3)
    assert log_1["loss"][-1] < log_1["loss"][0]
    state_1.pop("log.seconds"), state_2.pop("log.seconds")
    torch.testing.assert_close(state_1, state_2, rtol=1e-3, atol=1e-4)


def test_the_rate_rises_to_its_peak_and_ends_at_its_floor():
    config = TrainConfig(steps=100, batch_size=1, seq_len=2, lr=2.0, warmup=10, min_lr_ratio=0.25)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.5)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[10 + 89 // 2] == pytest.approx((2.0 + 0.5) / 2, abs=0.02)
    assert train(Bigram(), batches(), CONFIG).lr == [learning_rate(step, CONFIG) for step in range(8)]
    assert learning_rate(0, TrainConfig(steps=1, batch_size=1, seq_len=2, lr=1.0, warmup=0)) == 1.0
    assert learning_rate(2, TrainConfig(steps=3, batch_size=1, seq_len=2, lr=1.0, warmup=3)) == 1.0


@pytest.mark.parametrize("clip", [0.01, None])
def test_gradients_are_clipped_to_the_global_norm_and_only_matrices_decay(clip):
    applied, decay = [], {}

    def look(optimizer, *_):
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        applied.append(math.sqrt(sum(p.grad.square().sum().item() for p in everything)))
        decay.update({p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]})

    handle = register_optimizer_step_pre_hook(look)
    try:
        log = train(Bigram(), batches(), dataclasses.replace(CONFIG, clip=clip))
    finally:
        handle.remove()
    assert min(log.grad_norm) > 0.05
    assert applied == pytest.approx([clip] * 8 if clip else log.grad_norm, rel=1e-3)
    assert decay == {2: 0.1, 1: 0.0}


def test_a_step_that_is_not_finite_stops_the_run_before_it_is_applied(tmp_path):
    class Explodes(Bigram):
        def forward(self, tokens):
            out = super().forward(tokens)
            return SimpleNamespace(logits=out.logits * torch.where(tokens == 7, math.inf, 1.0).unsqueeze(-1))

    def batch_fn(step):
        return torch.full((4, 6), 7) if step == 3 else batches()(step)

    model, last = Explodes(), {}
    file = tmp_path / "c.safetensors"
    log = train(model, batch_fn, CONFIG, checkpoint=file, on_step=lambda step, log: last.update(weights(model)))
    assert log.diverged
    assert len(log.loss) == len(log.lr) == 3
    assert np.isfinite(log.loss).all()
    assert same(weights(model), last)
    assert without_time(
        train(Explodes(), lambda step: pytest.fail("went on"), CONFIG, checkpoint=file)
    ) == without_time(log)


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, checkpoint_every=4)
    file = tmp_path / "c.safetensors"
    save, calls = trainer.save_file, []

    def fails_the_second_time(tensors, name, metadata):
        calls.append(name)
        save(tensors, name, metadata=metadata)
        if len(calls) == 2:
            with open(name, "r+b") as stream:
                stream.truncate(100)
            raise OSError("disk full")

    monkeypatch.setattr(trainer, "save_file", fails_the_second_time)
    with pytest.raises(OSError, match="disk full"):
        train(Bigram(), batches(), config, checkpoint=file)
    assert list(tmp_path.iterdir()) == [file]
    assert load_file(file)["log.loss"].shape == (4,)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    file = tmp_path / "c.safetensors"
    train(Bigram(), batches(), CONFIG, checkpoint=file)
    with pytest.raises(CheckpointError, match=r"lr: 0.05 -> 0.1"):
        train(Bigram(), batches(), dataclasses.replace(CONFIG, lr=0.1), checkpoint=file)
    with pytest.raises(CheckpointError, match="another model"):
        train(Bigram(width=7), batches(), CONFIG, checkpoint=file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"c.safetensors is not a checkpoint"):
        train(Bigram(), batches(), CONFIG, checkpoint=file)


def test_bfloat16_computes_in_half_precision_and_keeps_float32_weights():
    kinds = set()

    class Looks(Bigram):
        def forward(self, tokens):
            out = super().forward(tokens)
            kinds.add(out.logits.dtype)
            return out

    model = Looks()
    log = train(model, batches(), dataclasses.replace(CONFIG, steps=40, dtype="bfloat16"))
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert log.loss[-1] < log.loss[0] / 2


def test_mode_and_cache_setting_come_back():
    class Configured(Bigram):
        config = SimpleNamespace(use_cache=True)

        def forward(self, tokens):
            assert self.training
            assert not self.config.use_cache
            return super().forward(tokens)

    model = Configured().eval()
    train(model, batches(), CONFIG)
    assert not model.training
    assert model.config.use_cache


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (torch.zeros(3, 6, dtype=torch.long), "a batch must be .4, up to 6."),
        (torch.zeros(4, 7, dtype=torch.long), "a batch must be"),
        ((torch.zeros(4, 6, dtype=torch.long), torch.zeros(4, 5, dtype=torch.long)), "a batch must be"),
        ((torch.zeros(4, 6, dtype=torch.long), torch.full((4, 6), -100)), "step 0 has nothing to predict"),
    ],
)
def test_a_wrong_batch_is_refused(batch, says):
    with pytest.raises(ValueError, match=says):
        train(Bigram(), lambda step: batch, CONFIG)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": 0}, {"warmup": 9}, {"dtype": "float16"}, {"clip": 0}])
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(CONFIG, **wrong)


def test_slices_are_windows_of_the_stream_and_a_function_of_the_step():
    stream = np.arange(50, dtype=np.uint8)
    batch_fn = random_slices(stream, 10, 64, seed=0)
    first = batch_fn(0)
    assert first.dtype == torch.int64
    assert (first.diff(dim=1) == 1).all()
    assert torch.equal(first, batch_fn(0))
    assert not torch.equal(first, batch_fn(1))
    assert not torch.equal(first, random_slices(stream, 10, 64, seed=1)(0))
    starts = {int(s) for step in range(20) for s in batch_fn(step)[:, 0]}
    assert starts == set(range(41))
    with pytest.raises(ValueError, match="windows of 51"):
        random_slices(stream, 51, 1, seed=0)


@pytest.mark.parametrize("content", ["not json", "{}", '{"train": {"steps": 1}, "output": "x"}'])
def test_the_command_explains_a_configuration_it_cannot_use(tmp_path, capsys, content):
    (tmp_path / "c.json").write_text(content)
    assert trainer.main([str(tmp_path / "c.json")]) == 2
    assert "usage" in capsys.readouterr().err


def test_the_command_runs_jobs_of_this_project_only(tmp_path, capsys):
    wanted = {"train": dataclasses.asdict(CONFIG), "output": str(tmp_path / "o"), "job": "os:system"}
    (tmp_path / "c.json").write_text(json.dumps(wanted))
    assert trainer.main([str(tmp_path / "c.json")]) == 2
    assert "not a module of zfu_lib" in capsys.readouterr().err
