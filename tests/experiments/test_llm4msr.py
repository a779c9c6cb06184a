"""The measurements of the LLM4MSR chapter on cases whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zfu_lib.data import ctr as logs
from zfu_lib.data.catalogue import DataError
from zfu_lib.experiments import ctr, llm4msr, msr_reader
from zfu_lib.lm.tokenizer import byte_tokenizer
from zfu_lib.prediction import ctr_metrics
from zfu_lib.prediction.llm4msr import Choices
from zfu_lib.report import claims, statistics, verdicts

TINY = replace(
    llm4msr.QUICK, seeds=2, users=120, items=40, rows=5000, test_rows=3000, epochs=5, batch=256, text=16,
    strengths=(0.0,), thresholds=(5,), channels=6, held_out=2, channel_rows=3000, reader_steps=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def lab():
    return llm4msr.Lab(TINY, device="cpu")


def test_strengths_share_one_log_and_differ_in_texts(lab):
    silent, told = lab.task("world", 0, 0.0), lab.task("world", 0, 1.0)
    assert np.array_equal(silent.train.ids, told.train.ids)
    assert np.array_equal(silent.test.label, told.test.label)
    assert silent.user_texts != told.user_texts
    # What the backbone alone learns cannot depend on the texts.
    a, b = (lab.outcome("world", "bare", 0, strength=at).p_N for at in (0.0, 1.0))
    assert np.array_equal(a, b)


def verdict_of_gain(lab, arm):
    """With intervals as wide as those of a run."""
    table, bare, full = lab.table_auc("world"), lab.auc("world", "bare"), lab.auc("world", arm)
    measured = {}
    for name, x in (("skill_full", full - table), ("l1_gain", full - bare)):
        measured[name] = statistics.exact(x.mean())._replace(low=x.mean() - 0.03, high=x.mean() + 0.03)
    (claim,) = [c for c in claims.load("llm4msr").claims if c.id == "llm4msr.L1"]
    return verdicts.judge(claim, "quick", measured).verdict


def test_a_method_that_reads_the_wrong_texts_loses_its_verdict(lab):
    assert verdict_of_gain(lab, "full") == "direction holds"
    assert verdict_of_gain(lab, "shuffled") in ("not reproduced", "inconclusive")


def test_scores_stay_below_the_ceiling_and_the_table_is_its_formula(lab):
    assert (lab.ceiling("world") > lab.auc("world", "full") - 0.02).all()
    task = lab.task("world", 0)
    train, test = task.train, task.test
    score = np.zeros(len(test))
    for n, (s, i) in enumerate(zip(test.scenario, test.ids[:, 1])):
        of_item = train.ids[:, 1] == i
        rate = (train.label[of_item].sum() + 10 * train.label.mean()) / (of_item.sum() + 10)
        cell = of_item & (train.scenario == s)
        score[n] = (train.label[cell].sum() + 10 * rate) / (cell.sum() + 10)
    expected = np.mean([ctr_metrics.auc(test.label[test.scenario == s], score[test.scenario == s]) for s in range(4)])
    assert lab.table_auc("world")[0] == pytest.approx(expected)


def test_prompts_read_training_rows_only():
    """Were the test rows' clicks others, the texts would be the same; were a training row's, they would not."""
    rng = np.random.default_rng(0)
    n = 400
    whole = logs.Log(("user", "item"), (20, 30), ("a", "b"), np.c_[rng.integers(0, 20, n), rng.integers(0, 30, n)],
                     rng.integers(0, 2, n), rng.integers(0, 2, n), rng.random(n))  # fmt: skip
    train, validation, test = whole.split(0)

    def texts(flipped):
        label = np.where(np.isin(whole.time, flipped.time), 1 - whole.label, whole.label)
        lab = llm4msr.Lab(replace(TINY, logs=("mine",)), device="cpu")
        lab._logs["mine"] = (replace(whole, label=label), [f"item{i}" for i in range(30)])
        task = lab.task("mine", 0)
        return task.user_texts, task.scenario_texts

    untouched = texts(test.take(np.array([], dtype=int)))
    assert texts(test) == texts(validation) == untouched
    assert texts(train.take(np.arange(1))) != untouched
    assert f"{(train.scenario == 0).sum()} interactions" in untouched[1][0]


def test_a_threshold_takes_texts_from_users_with_few_rows(lab):
    train = lab.task("world", 0).train
    rows = np.bincount(train.ids[:, 0], minlength=TINY.users)
    users, _ = llm4msr.texts(train, [{"s": ["w"]}] * TINY.users, ["d"] * 4, least=20)
    assert [text is not None for text in users] == (rows >= 20).tolist()


def test_controls_of_text(lab):
    own, shuffled, random = (lab.vectors("world", 0, 1.0, kind) for kind in ("own", "shuffled", "random"))
    assert torch.equal(own[0].sort(0).values, shuffled[0].sort(0).values)
    assert not (own[1] == shuffled[1]).all(1).any()  # no scenario keeps its text
    assert (own[0] == shuffled[0]).all(1).float().mean() < 0.1
    assert random[0].shape == own[0].shape
    kept = lab.vectors("world", 0, 1.0, "shuffled scenarios")
    assert torch.equal(kept[0], own[0])
    assert torch.equal(kept[1], shuffled[1])


def test_vectors_keep_their_spectrum_and_their_number():
    x = np.random.default_rng(0).normal(size=(50, 8)) * np.array([9, 1, 1, 1, 1, 1, 1, 1]) + 5
    found = llm4msr.standardised(x, 3).numpy()
    assert found.shape == (50, 3)
    assert np.allclose(found.mean(0), 0, atol=1e-6)
    assert (found**2).mean() == pytest.approx(1, rel=1e-5)
    assert found[:, 0].std() > 5 * found[:, 1].std()
    assert llm4msr.standardised(x, 0).shape == (50, 8)


def test_every_arm_builds_and_wide_has_the_parameters_of_the_method(lab):
    task, vectors = lab.task("world", 0), lab.vectors("world", 0, 1.0, "own")
    ids, s = torch.from_numpy(task.test.ids[:5]), torch.from_numpy(task.test.scenario[:5])
    sizes = {}
    for name, arm in llm4msr.ARMS.items():
        model = lab.build(arm, task, vectors, 0)
        assert model(ids, s).shape == (5,)
        sizes[name] = sum(p.numel() for p in model.parameters())
    assert sizes["full"] <= sizes["bare_wide"] < 1.1 * sizes["full"]
    assert max(sizes["dot"], sizes["film"]) < sizes["full"]
    concat = llm4msr.Arm("", choices=Choices(fusion="concat"))
    assert lab.build(concat, task, vectors, 0)(ids, s).shape == (5,)


def test_held_out_scenarios_are_not_trained_on(lab):
    task = lab.task("channels", 0)
    assert task.train.scenario.max() < 4 <= task.test.scenario.min()
    ids = lab.outcome("channels", "cold_ids", 0).model.net.vectors_SH
    assert torch.allclose(ids[4:], ids[:4].mean(0).expand(2, -1), atol=1e-6)
    assert np.isnan(lab.by_scenario("channels", "cold_text")[:, :4]).all()


def test_forms_of_a_gain():
    found = llm4msr.forms(np.array([0.52]), np.array([0.528]))
    assert found == pytest.approx({"absolute": 0.008, "relative": 0.008 / 0.52, "over_chance": 0.4})


def test_audit_of_the_quoted_cells():
    found = llm4msr.audit(llm4msr.quoted())
    assert found == pytest.approx({"a1_cells": 14, "a1_improved": 14, "a1_least": 0.0001, "a1_largest": 0.0030})
    worse = llm4msr.audit({"rerun_ctr_auc": {"x": [0.7, 0.69], "y": [0.7, 0.72]}})
    assert worse["a1_improved"] == 1


def test_serving_times_three_ways(lab):
    found = lab.serving(candidates=7, repeats=3)
    assert {way: len(times) for way, times in found.items()} == {"bare": 3, "generated": 3, "cached": 3}


def test_full_profile_says_how_far_a_cpu_scales_it_down():
    found = llm4msr.Lab(llm4msr.FULL, device="cpu").description()
    assert "Scaled down for a CPU: on real logs 8 of 12 epochs" in found
    assert "Scaled down" not in llm4msr.Lab(llm4msr.QUICK, device="cpu").description()


# The reader


def test_what_a_prompt_prefers_is_counted_from_its_words():
    prompt = msr_reader.spaced("In feed: oven; guitar; recipe; oven. Question: what?")
    assert prompt.split()[:5] == ["In", "feed", ":", "oven", ";"]
    assert msr_reader.preferred(prompt) == ["cooking", "music"]
    assert msr_reader.preferred("striker oven")[0] == "cooking"  # a tie goes to the earlier topic


def test_the_reader_is_taught_only_its_answer():
    encode = msr_reader.tokenizer()
    inputs, targets = msr_reader.batches(encode, 4)(0)
    for row, target in zip(inputs, targets):
        scored = target[target != -100]
        assert len(scored) == 3
        assert scored[-1] == encode.eos_token_id
        text = encode.decode(row[row != encode.pad_token_id], skip_special_tokens=True)
        answer = encode.decode(scored[:2]).split()
        assert text.split()[-2:] == answer == msr_reader.preferred(text.rsplit(" ", 2)[0])
    assert torch.equal(inputs, msr_reader.batches(encode, 4)(0)[0])


# Training


def test_an_epoch_is_plain_adam_on_the_rows_in_order(lab):
    task, vectors = lab.task("world", 0), lab.vectors("world", 0, 1.0, "own")
    a, b = (lab.build(llm4msr.ARMS["full_shared_bottom"], task, vectors, 0) for _ in range(2))
    data, config = ctr.resident(task.train), ctr.FitConfig(rate=1e-2, decay=1e-3)
    order = torch.randperm(512)
    ctr.epoch(a, data, ctr.optimiser(a, config), 128, order)
    plain = torch.optim.Adam(b.parameters(), lr=1e-2, weight_decay=1e-3)
    for rows in order.split(128):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            b(data.ids_NF[rows], data.s_N[rows]), data.y_N[rows]
        )
        plain.zero_grad()
        loss.backward()
        plain.step()
    # Adam divides by the root of tiny second moments, which magnifies rounding.
    assert all(torch.allclose(p, q, atol=2e-3) for p, q in zip(a.parameters(), b.parameters()))


def test_fit_keeps_its_best_epoch_and_says_when_it_diverges(lab):
    done = lab.outcome("world", "full", 0)
    task = lab.task("world", 0)
    held = task.validation
    chance = ctr.predict(done.model, ctr.resident(held))
    score = ctr_metrics.evaluate(held.label, chance, held.ids[:, 0], held.scenario, 4).mean_auc
    assert score == pytest.approx(max(done.fit.validation))
    assert done.fit.best == int(np.argmax(done.fit.validation))
    model = lab.build(llm4msr.ARMS["bare"], task, lab.vectors("world", 0, 1.0, "own"), 0)
    model.embedding.table.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged"):
        ctr.fit(model, task.train, task.validation, ctr.FitConfig(epochs=1))


def test_paper_path_in_miniature(tmp_path, monkeypatch):
    """The code path of the published scale: KuaiSAR's files, and a causal language model that answers the prompts."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<user>{{ m['content'] }}<answer>{% endfor %}"
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, eos_token_id=257, bos_token_id=256)  # fmt: skip
    for part in (LlamaForCausalLM(config), tokenizer):
        part.save_pretrained(tmp_path / "model")
    folder = tmp_path / "data" / "recsys" / "kuaisar"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    users, items, clicks = rng.integers(0, 8, 400), rng.integers(0, 12, 400), rng.integers(0, 2, 400)
    rows = [f"{u},{i},{t},{c}" for t, (u, i, c) in enumerate(zip(users, items, clicks))]
    (folder / "rec_inter.csv").write_text("user_id,item_id,timestamp,click\n" + "\n".join(rows[:250]))
    (folder / "src_inter.csv").write_text(
        "user_id,item_id,search_session_timestamp,click_cnt\n" + "\n".join(rows[250:])
    )
    features = "\n".join(f"{i},Food,Kind{i}" for i in range(12))
    (folder / "item_features.csv").write_text(
        f"item_id,first_level_category_name,second_level_category_name\n{features}"
    )
    profile = replace(
        llm4msr.PAPER, seeds=2, log_seeds=2, log_epochs=1, rates=(1e-3,), reader=str(tmp_path / "model"),
        logs=("kuaisar",), minilm=False,
    )  # fmt: skip
    with pytest.raises(DataError, match="put it at"):
        llm4msr.Lab(profile, device="cpu").task("kuaisar", 0)
    monkeypatch.setenv("ZFU_DATA", str(tmp_path / "data"))
    lab = llm4msr.Lab(profile, device="cpu")
    lab.reader.new_tokens = 3
    found = lab.real_logs()
    assert "ml_l2_gain_ple" in found.measurements
    assert lab.vectors("kuaisar", 0, 1.0, "own")[0].shape == (8, 16)
    assert any("recommendation" in (text or "") for text in lab.task("kuaisar", 0).user_texts)
