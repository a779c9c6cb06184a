"""Tandem, a large model's insights and a small model's reasoning, in the order of the method. arXiv 2604.23623.

A mentor L (large) writes insights about a question in stages, I^1 < I^2 < ... < I^T, each a beginning of the next; an
intern S (small) reads question and insights, reasons and answers. How sure the intern is while it reads decides when
the mentor may stop.

1. Insights and how they reach the intern: :mod:`zfu_lib.reasoning.insights`.
2. The intern's uncertainty on an insight, 16 numbers: :func:`uncertainty`.
3. Is this insight sufficient? s^t in (0, 1): :class:`SufficiencyClassifier`.
4. Stop at the first t with s^t >= tau^t, else answer from argmax_t s^t: :func:`tandem`. The same rule for whole tables,
   the cost law and all baselines: :mod:`zfu_lib.reasoning.routing`, on what :func:`collect` caches.

The body of the paper could not be read. What follows comes from its abstract, public notes on it and the authors'
public code; "not confirmed" marks what these leave open, and such a choice has a named option.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from zfu_lib.lm.protocol import GenRequest, GenResult, LanguageModel, Ledger, ScoreResult, Unsupported
from zfu_lib.reasoning.insights import TRANSPORTS, ChatFormat, Format, Prompt, Question, Transport
from zfu_lib.reasoning.routing import EarlyEnd, Table, paper_cost, thresholds

BUDGETS = (100, 500, 1000)  # low, medium, high: cumulative tokens of the mentor
PAPER_SAMPLING: Mapping[str, Any] = {"temperature": 0.0, "top_p": 1.0}
CODE_SAMPLING: Mapping[str, Any] = {"temperature": 0.7, "top_p": 0.95}  # default of the public scripts

Grader = Callable[[Question, str], bool]

# Uncertainty

PPL_CAP = 1000.0
TREND = 20  # tokens at either end

_SUMMARIES = ("mean", "std", "median", "max", "min", "q25", "q75")
FEATURES = (
    *(f"ppl {name}" for name in _SUMMARIES),
    *(f"entropy {name}" for name in _SUMMARIES),
    "ppl trend",
    "entropy trend",
)


def uncertainty(score: ScoreResult) -> np.ndarray:
    """The 16 ``FEATURES`` of a text that the intern has read.

    Per token PPL_i = min(1 / p_i, 1000) and the entropy H_i in bits (the middle of its bounds where a server tells the
    top tokens only); of each the mean, standard deviation (divisor n), median, maximum, minimum and quartiles, and last
    the trend, mean(last 20) - mean(first 20), 0 below 40 tokens. The names are the notes' list; cap, base and trend are
    those of a co-author's code, which also drops probabilities below 1e-10 before it takes the entropy (we do not).

    Returns:
        fp64 ``[16]``.

    Raises:
        ValueError: a text without tokens.
    """
    if not len(score.logprob):
        raise ValueError("no token was measured; for an empty insight measure the question's")
    ppl = np.exp(np.minimum(-np.asarray(score.logprob, float), math.log(PPL_CAP)))
    entropy = np.asarray(score.entropy, float)
    return np.array([*_summary(ppl), *_summary(entropy), _trend(ppl), _trend(entropy)])


def _summary(z: np.ndarray) -> list[float]:
    q25, median, q75 = np.quantile(z, [0.25, 0.5, 0.75])
    return [z.mean(), z.std(), median, z.max(), z.min(), q25, q75]


def _trend(z: np.ndarray) -> float:
    return z[-TREND:].mean() - z[:TREND].mean() if len(z) >= 2 * TREND else 0.0


# Sufficiency


class Split(NamedTuple):
    """Rows for fitting, early stopping, thresholds and the test; no question is in two of them."""

    fit: np.ndarray
    early: np.ndarray
    threshold: np.ndarray
    test: np.ndarray


def split_by_question(
    qids: Sequence[str], shares: tuple[float, float, float, float] = (0.5, 0.1, 0.2, 0.2), seed: int = 0
) -> Split:
    """Rows dealt out by their question, so that rows of one ``qid`` stay together.

    Raises:
        ValueError: shares that do not sum to 1, or fewer questions than parts.
    """
    questions, question_of_row = np.unique(np.asarray(qids), return_inverse=True)
    if min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise ValueError(f"shares {shares} must be positive and sum to 1")
    if len(questions) < len(shares):
        raise ValueError(f"{len(questions)} questions cannot be split into {len(shares)} parts")
    order = np.random.default_rng(seed).permutation(len(questions))
    edges = np.round(np.cumsum(shares)[:-1] * len(questions)).astype(int)
    return Split(*(np.flatnonzero(np.isin(question_of_row, part)) for part in np.split(order, edges)))


@dataclass
class SufficiencyClassifier:
    """s^t: the probability that the intern, given I^t, answers correctly. Rows are (question, stage) pairs.

    ``kind``:

    - ``mlp``: hidden layers 64 and 32, ReLU, by scikit-learn, Adam at 1e-3 until the loss on the early-stopping split
      has not improved for ``patience`` epochs. Departs from the paper: no dropout, and trained to convergence.
    - ``dropout-mlp``: the paper's training: the same layers in PyTorch with dropout 0.3, Adam at 1e-4, at most 3
      epochs. That is few steps on few rows: ``history`` (loss on fit and early rows per epoch) shows if it moved.
    - ``logistic``: logistic regression, the baseline.

    Inputs are standardised on the fit rows alone (in the code; in the paper not confirmed). One network serves all
    stages, told the stage one-hot, or each stage has its own (``per_stage``); which one is not confirmed. Cross-entropy
    without class weights. Where the rows have one label only, the score is their share, (k + 1) / (n + 2).
    """

    kind: Literal["mlp", "dropout-mlp", "logistic"] = "mlp"
    per_stage: bool = False
    epochs: int | None = None  # 200, or 3 with dropout
    learning_rate: float | None = None  # 1e-3, or 1e-4 with dropout
    patience: int = 5
    seed: int = 0
    history: list[tuple[float, float]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "dropout-mlp", "logistic"):
            raise ValueError(f"unknown kind {self.kind!r}: 'mlp', 'dropout-mlp' or 'logistic'")
        dropout = self.kind == "dropout-mlp"
        self.epochs = self.epochs or (3 if dropout else 200)
        self.learning_rate = self.learning_rate or (1e-4 if dropout else 1e-3)

    def fit(
        self, features: np.ndarray, correct: np.ndarray, early: tuple[np.ndarray, np.ndarray] | None = None
    ) -> SufficiencyClassifier:
        """Features ``[n, T + 1, F]`` and labels ``[n, T + 1]`` of the fit rows; ``early`` the same of the
        early-stopping rows, without which all epochs are run.

        Raises:
            ValueError: shapes that do not match, features that are not finite.
        """
        for x, y in [(features, correct), *([early] if early else [])]:
            if x.ndim != 3 or x.shape[:2] != y.shape or not len(x) or not np.isfinite(x).all():
                raise ValueError(f"need finite features [n, T+1, F] and labels [n, T+1], got {x.shape} and {y.shape}")
        self.stages, self.history = features.shape[1], []
        held = self._rows(*early) if early else [None] * self.stages
        self.parts = [self._train(x, y, rest) for (x, y), rest in zip(self._rows(features, correct), held)]
        return self

    def scores(self, features: np.ndarray) -> np.ndarray:
        """s ``[n, T + 1]`` for features ``[n, T + 1, F]``."""
        rows = self._rows(features, np.zeros(features.shape[:2]))
        columns = [part(x) for part, (x, _) in zip(self.parts, rows)]
        return np.stack(columns, 1) if self.per_stage else columns[0].reshape(features.shape[:2])

    def score(self, features: np.ndarray, stage: int) -> float:
        """s^t of one insight, from its features ``[F]``."""
        x = np.broadcast_to(features, (1, self.stages, len(features)))
        return float(self.scores(x)[0, stage])

    def _rows(self, x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """What each network sees: (inputs, labels)."""
        y = np.asarray(y, int)
        if self.per_stage:
            return [(x[:, t], y[:, t]) for t in range(x.shape[1])]
        stage = np.broadcast_to(np.eye(x.shape[1]), (len(x), x.shape[1], x.shape[1]))
        return [(np.concatenate([x, stage], -1).reshape(y.size, -1), y.ravel())]

    def _train(
        self, x: np.ndarray, y: np.ndarray, early: tuple[np.ndarray, np.ndarray] | None
    ) -> Callable[[np.ndarray], np.ndarray]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neural_network import MLPClassifier
        from sklearn.preprocessing import StandardScaler

        if len(set(y)) < 2:
            share = (y.sum() + 1) / (len(y) + 2)
            return lambda rows: np.full(len(rows), share)
        scaler = StandardScaler().fit(x)
        if self.kind == "logistic":
            net = LogisticRegression(max_iter=1000).fit(scaler.transform(x), y)
        else:
            options = {"hidden_layer_sizes": (64, 32), "learning_rate_init": self.learning_rate}
            net = (_DropoutMLP if self.kind == "dropout-mlp" else MLPClassifier)(random_state=self.seed, **options)
            net = self._epochs(net, scaler.transform(x), y, early and (scaler.transform(early[0]), early[1]))
        return lambda rows: net.predict_proba(scaler.transform(rows))[:, 1]

    def _epochs(self, net: Any, x: np.ndarray, y: np.ndarray, early: tuple[np.ndarray, np.ndarray] | None) -> Any:
        """Epoch by epoch; keeps the network with the lowest loss on the early rows. scikit-learn's own early stopping
        would hold out rows, not questions."""
        from sklearn.metrics import log_loss

        best, lowest, waited = net, math.inf, 0
        for _ in range(self.epochs):
            net.partial_fit(x, y, classes=[0, 1])
            losses = [
                log_loss(labels, net.predict_proba(rows), labels=[0, 1]) for rows, labels in (early or (x, y), (x, y))
            ]
            self.history.append((losses[1], losses[0]))
            if early is None:
                continue
            if losses[0] < lowest:
                best, lowest, waited = copy.deepcopy(net), losses[0], 0
            elif (waited := waited + 1) >= self.patience:
                break
        return best


class _DropoutMLP:
    """The paper's network, spoken to as scikit-learn's: ReLU layers with dropout 0.3, Adam, batches of 32 (the batch
    size is not confirmed)."""

    def __init__(self, hidden_layer_sizes: tuple[int, ...], learning_rate_init: float, random_state: int) -> None:
        self.sizes, self.rate, self.seed, self.net = hidden_layer_sizes, learning_rate_init, random_state, None

    def partial_fit(self, x: np.ndarray, y: np.ndarray, classes: Sequence[int]) -> None:
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.net is None:
                widths = (x.shape[1], *self.sizes)
                hidden = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.3)) for a, b in zip(widths, widths[1:])]
                self.net = nn.Sequential(*(layer for block in hidden for layer in block), nn.Linear(widths[-1], 1))
                self.adam = torch.optim.Adam(self.net.parameters(), self.rate)
            self.seed += 1
            rows, labels = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32)
            self.net.train()
            for batch in torch.randperm(len(rows)).split(32):
                loss = nn.functional.binary_cross_entropy_with_logits(self.net(rows[batch])[:, 0], labels[batch])
                self.adam.zero_grad()
                loss.backward()
                self.adam.step()

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        import torch

        self.net.eval()
        with torch.no_grad():
            p = torch.sigmoid(self.net(torch.as_tensor(x, dtype=torch.float32))[:, 0]).double().numpy()
        return np.stack([1 - p, p], 1)


# One question


@dataclass(frozen=True)
class Stage:
    """I^t and what the classifier made of it; ``n_mentor`` tokens were paid up to here."""

    t: int
    budget: int
    text: str
    n_mentor: int
    features: np.ndarray
    score: float
    tau: float


@dataclass(frozen=True)
class Trace:
    """One question answered in tandem. ``text`` is what was graded: the prefill and what the intern wrote after it."""

    qid: str
    stages: tuple[Stage, ...]
    t_star: int
    reason: Literal["t0", "threshold", "ended", "argmax"]
    text: str
    answer: str | None
    correct: bool
    truncated: bool
    n_mentor: int
    n_intern: int
    theta_mentor: float
    theta_intern: float
    ledger: Ledger

    def paper(self) -> float:
        """TFLOPs by the paper's law."""
        return paper_cost(self.n_mentor, self.n_intern, self.theta_mentor, self.theta_intern)

    def honest(self) -> float:
        """TFLOPs of every token computed in every call."""
        return self.ledger.flops() / 1e12

    def money(self, prices: Mapping[str, tuple[float, float]]) -> float:
        """Price of all calls for prices (of a token read, cached or not; of a token written) by model name."""
        return sum(
            prices[c.model][0] * (c.n_read + c.n_cached) + prices[c.model][1] * c.n_out for c in self.ledger.calls
        )

    def latency(self) -> float:
        """Seconds, call after call; the classifier itself is not counted."""
        return self.ledger.seconds()


def tandem(
    question: Question,
    mentor: LanguageModel,
    intern: LanguageModel,
    classifier: SufficiencyClassifier,
    tau: float | Sequence[float],
    budgets: Sequence[int] = BUDGETS,
    transport: Transport = "prompt",
    allow_t0: bool = False,
    ledger: Ledger | None = None,
    *,
    format: Format | None = None,
    grade: Grader | None = None,
    early_end: EarlyEnd = "answer",
    intern_tokens: int = 4096,
    sampling: Mapping[str, Any] = PAPER_SAMPLING,
) -> Trace:
    """Answers one question, asking the mentor stage by stage only as long as the intern needs it.

    Args:
        tau: a threshold, or one per stage 1 ... T (0 ... T with ``allow_t0``, where the intern may go without mentor;
            whether the paper allows that is not confirmed).
        ledger: entered with every call, besides the trace's own.
        format: how the pair is written to; :class:`ChatFormat` if not given.
        grade: by default the format's.
        early_end: see :func:`zfu_lib.reasoning.routing.stop`.

    Raises:
        ValueError: budgets that do not rise, an unknown transport, thresholds that do not fit.
        Unsupported: an intern that cannot be measured, or cannot continue a text where the transport needs it.
    """
    format, own = format or ChatFormat(), Ledger()
    _check(intern, budgets, transport, measure=True)
    tau = thresholds(tau, len(budgets), allow_t0)

    def judge(t: int, text: str, n_mentor: int) -> Stage:
        text = text if text.strip() else ""
        (score,) = own.score(intern, [format.read(question, text)])
        features = uncertainty(score)
        budget = budgets[t - 1] if t else 0
        return Stage(t, budget, text, n_mentor, features, classifier.score(features, t), float(tau[t]))

    stages: list[Stage] = []
    reason: str | None = None
    if allow_t0:
        stages.append(judge(0, "", 0))
        reason = "t0" if stages[0].score >= tau[0] else None
    if reason is None:
        for t, (text, n_mentor, ended) in enumerate(_grow(question, mentor, budgets, format, sampling, own), 1):
            stages.append(judge(t, text, n_mentor))
            if stages[-1].score >= tau[t]:
                reason = "threshold"
            elif ended and t < len(budgets):
                reason = "ended" if early_end == "answer" else "argmax"
            if reason:
                break
    reason = reason or "argmax"
    chosen = max(stages, key=lambda stage: stage.score) if reason == "argmax" else stages[-1]  # ties: the earlier stage
    prompt = format.intern(question, chosen.text, transport)
    (result,) = own.generate(intern, [_request(prompt, intern_tokens, format.intern_stop, sampling)])
    if ledger is not None:
        ledger.calls += own.calls
    text, truncated = prompt.prefill + result.text, result.finish == "length"
    return Trace(
        question.qid,
        tuple(stages),
        chosen.t,
        reason,
        text,
        format.extract(text),
        not truncated and bool((grade or format.correct)(question, text)),
        truncated,
        stages[-1].n_mentor,
        result.n_out,
        mentor.n_params,
        intern.n_params,
        own,
    )


def _grow(
    question: Question,
    mentor: LanguageModel,
    budgets: Sequence[int],
    format: Format,
    sampling: Mapping[str, Any],
    ledger: Ledger,
) -> Iterator[tuple[str, int, bool]]:
    """(I^t, tokens of the mentor so far, has the mentor ended) for t = 1 ... T. Each I^t begins with the one before:
    the mentor goes on from it, as its prefill. A mentor that cannot be prefilled writes up to the last budget at once,
    which is cut; then every stage has cost all of it."""
    prompt = format.mentor(question)
    text, n, ended = "", 0, False
    for budget in budgets if mentor.caps.prefill else budgets[-1:]:
        if budget > n and not ended:
            start = prompt._replace(prefill=prompt.prefill + text)
            (more,) = ledger.generate(mentor, [_request(start, budget - n, _insight_stop(format), sampling)])
            text, n, ended = text + more.text, n + more.n_out, more.finish == "stop"
        if mentor.caps.prefill:
            yield text, n, ended
    if not mentor.caps.prefill:
        for budget in budgets:
            cut = mentor.truncate(text, budget)
            yield cut, n, ended and cut == text


def _request(prompt: Prompt, max_tokens: int, stop: tuple[str, ...], sampling: Mapping[str, Any]) -> GenRequest:
    start = {"prompt": prompt.prompt, "prefill": prompt.prefill, "thinking": prompt.thinking}
    return GenRequest(**start, max_tokens=max_tokens, stop=stop, **sampling)


def _insight_stop(format: Format) -> tuple[str, ...]:
    return (*format.insight_end, *format.mentor_stop)


def _check(intern: LanguageModel, budgets: Sequence[int], transport: str, measure: bool) -> None:
    if not len(budgets) or list(budgets) != sorted(set(budgets)) or budgets[0] < 1:
        raise ValueError(f"budgets {tuple(budgets)} must rise: they count the mentor's tokens from the start")
    if transport not in TRANSPORTS:
        raise ValueError(f"unknown transport {transport!r}; choose one of {', '.join(TRANSPORTS)}")
    if transport == "continuation" and not intern.caps.prefill:
        raise Unsupported(f"{intern.name} cannot continue a text begun for it; use transport='prompt'")
    if measure and intern.caps.entropy is None:
        raise Unsupported(
            f"{intern.name} does not tell how likely a given text is, so no classifier can be used with it; take "
            "another intern, or collect(..., measure=False) for fixed levels only"
        )


# Many questions, all stages


def collect(
    questions: Sequence[Question],
    mentor: LanguageModel,
    intern: LanguageModel,
    budgets: Sequence[int] = BUDGETS,
    *,
    format: Format | None = None,
    grade: Grader | None = None,
    transport: Transport = "prompt",
    mentor_tokens: int = 4096,
    intern_tokens: int = 4096,
    force: Sequence[int] = (),
    force_tokens: int = 2048,
    votes: int = 0,
    edit: Callable[[Question, str], str] | None = None,
    measure: bool = True,
    sampling: Mapping[str, Any] = PAPER_SAMPLING,
    seed: int = 0,
    ledger: Ledger | None = None,
) -> Table:
    """Everything that any policy needs to know about these questions, each distinct request made once, in batches.

    The mentor writes once; its text is cut to the budgets by its own tokenizer (I^1 < I^2 < ... exactly) and at the
    format's end of insights. If the format has no other prompt for the mentor alone, the same text is also its answer.

    Args:
        force: thinking budgets for budget forcing, each with up to ``force_tokens`` for the answer.
        votes: samples of the unaided intern for self-consistency, at temperature 0.7 and top_p 0.95.
        edit: changes insights before the intern sees them: an ablation or a control. Costs of the mentor stay.
        measure: False for an intern that cannot be measured; features are then NaN.

    Raises:
        ValueError: no questions, budgets that do not rise or exceed ``mentor_tokens``, one vote.
        Unsupported: see :func:`tandem`.
    """
    format, ledger = format or ChatFormat(), ledger if ledger is not None else Ledger()
    grade = grade or format.correct
    _check(intern, budgets, transport, measure)
    if not questions or budgets[-1] > mentor_tokens or votes == 1:
        raise ValueError(
            f"{len(questions)} questions, last budget {budgets[-1]} of {mentor_tokens} mentor tokens, {votes} votes: "
            "need questions, budgets within the mentor's tokens, and no vote or two and more"
        )
    if force and not mentor.caps.prefill:
        raise Unsupported(f"{mentor.name} cannot continue a text begun for it, so its thinking cannot be cut: force=()")
    n, columns = len(questions), len(budgets) + 1

    def ask(model: LanguageModel, prompts: Sequence[Prompt], limit: int, stop: tuple[str, ...], **how: Any) -> list:
        """[(result, graded text)]"""
        results = ledger.generate(model, [_request(p, limit, stop, {**sampling, **how}) for p in prompts])
        return [(r, p.prefill + r.text) for p, r in zip(prompts, results)]

    def right(question: Question, result: GenResult, text: str) -> bool:
        return result.finish == "stop" and bool(grade(question, text))

    # The mentor: its own answer, which holds its insights unless the format asks for them apart.
    starts = [format.alone(q) or format.mentor(q) for q in questions]
    alone = ask(mentor, starts, mentor_tokens, format.mentor_stop)
    written = [result for result, _ in alone]
    if format.alone(questions[0]) is not None:
        starts = [format.mentor(q) for q in questions]
        written = [result for result, _ in ask(mentor, starts, budgets[-1], _insight_stop(format))]

    insights: list[list[str]] = []
    last, n_mentor, mentor_seconds = np.zeros(n, int), np.zeros((n, columns), int), np.zeros((n, columns))
    for i, (question, result) in enumerate(zip(questions, written)):
        body, total, ended = _until(result, format.insight_end, mentor)
        texts = ["", *(body if total <= b else mentor.truncate(body, b) for b in budgets)]
        texts = [edit(question, text) if edit and text.strip() else text for text in texts]
        insights.append([text if text.strip() else "" for text in texts])
        n_mentor[i, 1:] = np.minimum(budgets, total)
        mentor_seconds[i] = result.seconds * n_mentor[i] / max(result.n_out, 1)
        done = np.flatnonzero(np.asarray(budgets) >= total) if ended else []
        last[i] = done[0] + 1 if len(done) else len(budgets)

    def column(done: Sequence[tuple[GenResult, str]], name: str) -> np.ndarray:
        return np.array([getattr(result, name) for result, _ in done])

    # The intern reads and answers, once per distinct insight.
    pairs = list(dict.fromkeys((i, text) for i in range(n) for text in insights[i]))
    where = {pair: k for k, pair in enumerate(pairs)}
    at = np.array([[where[i, text] for text in insights[i]] for i in range(n)])
    starts = [format.intern(questions[i], text, transport) for i, text in pairs]
    answers = ask(intern, starts, intern_tokens, format.intern_stop)
    scores = ledger.score(intern, [format.read(questions[i], text) for i, text in pairs]) if measure else []
    features = np.array([uncertainty(s) for s in scores]) if measure else np.full((len(pairs), len(FEATURES)), np.nan)
    n_score = np.array([s.n_context + len(s.logprob) for s in scores] or [0] * len(pairs))
    score_seconds = np.array([s.seconds for s in scores] or [0.0] * len(pairs))

    # Budget forcing: the mentor's answer cut short; where it was done before, it stands.
    forced = {
        (i, j): format.force(questions[i], mentor.truncate(alone[i][0].text, budget))
        for j, budget in enumerate(force)
        for i in range(n)
        if alone[i][0].n_out > budget
    }
    ends = dict(zip(forced, ask(mentor, list(forced.values()), force_tokens, format.mentor_stop))) if forced else {}
    shape = (n, len(force))
    f = {name: np.zeros(shape, int) for name in ("correct", "truncated", "tokens", "prompt")} | {
        "seconds": np.zeros(shape)
    }
    for i, j in np.ndindex(shape):
        whole = alone[i][0]
        result, text = ends.get((i, j), alone[i])
        f["correct"][i, j], f["truncated"][i, j] = right(questions[i], result, text), result.finish == "length"
        f["tokens"][i, j], f["seconds"][i, j] = result.n_out, result.seconds
        if (i, j) in ends:
            f["tokens"][i, j] += force[j]
            f["prompt"][i, j] = result.n_prompt
            f["seconds"][i, j] += whole.seconds * force[j] / whole.n_out

    # Self-consistency of the unaided intern.
    plain = [format.intern(q, "", transport) for q in questions]
    samples = [
        ask(intern, plain, intern_tokens, format.intern_stop, **CODE_SAMPLING, seed=seed + k) for k in range(votes)
    ]
    votes_of = [[sample[i] for sample in samples] for i in range(n)]
    polls = [_poll(format, cast) for cast in votes_of] if votes else [(np.nan, -1)] * n
    majority = [k >= 0 and right(q, *cast[k]) for q, cast, (_, k) in zip(questions, votes_of, polls)]

    def total(cast: Sequence[tuple[GenResult, str]], name: str) -> float:
        return sum(getattr(result, name) for result, _ in cast)

    return Table(
        qid=np.array([q.qid for q in questions]),
        budgets=np.array(budgets),
        transport=transport,
        theta_mentor=float(mentor.n_params),
        theta_intern=float(intern.n_params),
        kv_reuse=False,
        correct=np.array([right(questions[i], *answer) for (i, _), answer in zip(pairs, answers)])[at],
        truncated=(column(answers, "finish") == "length")[at],
        leak=np.array([format.leaks(questions[i], text) for i, text in pairs])[at],
        features=features[at],
        last=last,
        n_mentor=n_mentor,
        mentor_prompt=np.array([r.n_prompt for r in written]),
        n_intern=column(answers, "n_out")[at],
        intern_prompt=column(answers, "n_prompt")[at],
        n_score=n_score[at],
        mentor_seconds=mentor_seconds,
        intern_seconds=column(answers, "seconds")[at],
        score_seconds=score_seconds[at],
        alone_correct=np.array([right(q, *answer) for q, answer in zip(questions, alone)]),
        alone_truncated=column(alone, "finish") == "length",
        alone_tokens=column(alone, "n_out"),
        alone_prompt=column(alone, "n_prompt"),
        alone_seconds=column(alone, "seconds"),
        forced_budgets=np.array(force, int),
        forced_correct=f["correct"].astype(bool),
        forced_truncated=f["truncated"].astype(bool),
        forced_tokens=f["tokens"],
        forced_prompt=f["prompt"],
        forced_seconds=f["seconds"],
        vote_agreement=np.array([share for share, _ in polls]),
        vote_correct=np.array(majority, bool),
        vote_tokens=np.array([total(cast, "n_out") for cast in votes_of]),
        vote_prompt=np.array([total(cast, "n_prompt") for cast in votes_of]),
        vote_seconds=np.array([total(cast, "seconds") for cast in votes_of], float),
    )


def _until(result: GenResult, ends: tuple[str, ...], model: LanguageModel) -> tuple[str, int, bool]:
    """(insight, tokens it took, did it end by itself) of a whole text by the mentor."""
    found = [(result.text.find(end), end) for end in ends if end in result.text]
    if not found:
        return result.text, result.n_out, result.finish == "stop"
    where, end = min(found)
    return result.text[:where], model.count(result.text[: where + len(end)]), True


def _poll(format: Format, sample: list[tuple[GenResult, str]]) -> tuple[float, int]:
    """(share of the majority, the first sample that says it, -1 without one). No answer agrees with nothing."""
    answers = [format.extract(text) if result.finish == "stop" else None for result, text in sample]
    said = Counter(answer for answer in answers if answer is not None).most_common(1)
    return (said[0][1] / len(sample), answers.index(said[0][0])) if said else (0.0, -1)
