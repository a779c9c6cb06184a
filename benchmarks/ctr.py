"""How fast does a multi-scenario click model train, against the loaders and models that common benchmarks use?

    python benchmarks/ctr.py [--quick] [--check] [--json FILE]

One CPU thread, 20 fields of 10,000 values, width 16, three scenarios, SharedBottom [128, 64], batches of 4,096. Ours:
one embedding table, the log as resident tensors, rows grouped by scenario, one fused optimiser step. The peers train
the same network: ``rows`` fetches every row from a pandas frame, column by column, and collates in Python, as the
scripts of Scenario-Wise-Rec do when they hand its loader a frame; ``numpy`` does so from a dictionary of arrays. Both
have a table per field, run every tower on every row, and use Adam as it comes. torch-rechub, where it is installed,
brings its own SharedBottom and loader.

Rates are rows per second of CPU time. The peers see fewer rows where they are slow.
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from _timing import Report, cpu_seconds, options
from torch import nn
from torch.utils.data import DataLoader, Dataset

from zfu_lib.experiments import ctr
from zfu_lib.prediction import ctr_metrics
from zfu_lib.prediction.llm4msr import Knowledge, Recommender
from zfu_lib.prediction.msr_backbones import FusedEmbedding, SharedBottom
from zfu_lib.prediction.text_controls import Bare

FIELDS, VALUES, DIM, BATCH, HIDDEN, DECAY, RATE = 20, 10_000, 16, 4096, (128, 64), 1e-5, 1e-2


def rows(n: int, scenarios: int, seed: int = 0) -> ctr.Resident:
    """Random impressions whose click depends on a hidden weight of each value."""
    rng = np.random.default_rng(seed)
    ids = (VALUES * rng.random((n, FIELDS)) ** 4).astype(np.int64)  # few values are frequent, as in real logs
    weight = np.random.default_rng(99).normal(size=(FIELDS, VALUES))
    logit = weight[np.arange(FIELDS), ids].sum(1) / FIELDS**0.5
    label = (rng.random(n) < 1 / (1 + np.exp(-2 * logit))).astype(np.float32)
    scenario = rng.integers(0, scenarios, n)
    return ctr.Resident(*(torch.from_numpy(column) for column in (ids, scenario, label)))


def ours(scenarios: int) -> Recommender:
    torch.manual_seed(0)
    embedding = FusedEmbedding([VALUES] * FIELDS, DIM)
    net = Bare(SharedBottom(embedding.width, scenarios, HIDDEN))
    return Recommender(embedding, net, Knowledge(torch.zeros(VALUES, 1), torch.zeros(scenarios, 1)))


class Peer(nn.Module):
    """The same network as :func:`ours` with the same weights, in the style of the benchmarks."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        tables = model.embedding.table.detach().split(VALUES)
        self.tables = nn.ModuleList(nn.Embedding.from_pretrained(t.clone(), freeze=False) for t in tables)
        backbone = model.net.backbone
        self.bottom = nn.Sequential(nn.Linear(FIELDS * DIM, HIDDEN[0]), nn.ReLU())
        self.bottom[0].load_state_dict(backbone.bottom[0].state_dict())
        self.towers = nn.ModuleList()
        for s in range(backbone.scenarios):
            tower = nn.Sequential(nn.Linear(*HIDDEN), nn.ReLU(), nn.Linear(HIDDEN[1], 1))
            for layer, weights in ((tower[0], backbone.tower), (tower[2], backbone.last)):
                layer.weight.data = weights.weight_SOI[s].detach().clone()
                layer.bias.data = weights.bias_SO[s].detach().clone()
            self.towers.append(tower)

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        shared = self.bottom(torch.cat([table(x[f"f{i}"]) for i, table in enumerate(self.tables)], dim=1))
        found = torch.zeros(len(shared))
        for s, tower in enumerate(self.towers):
            found = torch.where(x["scenario"] == s, tower(shared).squeeze(1), found)
        return found


class Rows(Dataset):
    """One row at a time, as a dictionary.

    Args:
        x: columns by name: a dictionary of arrays, or a frame, whose ``items`` makes every column anew for every row.
    """

    def __init__(self, x: dict | pd.DataFrame, y: object) -> None:
        self.x, self.y = x, y

    def __getitem__(self, index: int) -> tuple[dict, object]:
        return {k: v[index] for k, v in self.x.items()}, self.y[index]

    def __len__(self) -> int:
        return len(self.y)


def columns(data: ctr.Resident) -> dict[str, np.ndarray]:
    return {f"f{i}": data.ids_NF[:, i].numpy().copy() for i in range(FIELDS)} | {"scenario": data.s_N.numpy()}


def train_peer(model: nn.Module, dataset: Dataset) -> None:
    """One epoch in order, by the loader and optimiser as they come."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=DECAY)
    model.train()
    for x, y in DataLoader(dataset, batch_size=BATCH, shuffle=False, num_workers=0):
        loss = F.binary_cross_entropy_with_logits(model(x), y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_ours(model: Recommender, data: ctr.Resident) -> None:
    config = ctr.FitConfig(rate=RATE, decay=DECAY)
    ctr.epoch(model, data, ctr.optimiser(model, config), BATCH, torch.arange(len(data.y_N)))


def rechub(scenarios: int) -> nn.Module | None:
    """torch-rechub's own SharedBottom with a task for each scenario, if it is installed."""
    try:
        from torch_rechub.basic.features import SparseFeature
        from torch_rechub.models.multi_task import SharedBottom as Theirs
    except ImportError:
        return None
    fields = [SparseFeature(f"f{i}", vocab_size=VALUES, embed_dim=DIM) for i in range(FIELDS)]
    towers = [{"dims": [HIDDEN[1]]} for _ in range(scenarios)]
    net = Theirs(fields, ["classification"] * scenarios, {"dims": [HIDDEN[0]]}, towers)

    class OfScenario(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.logit(self.net(x).gather(1, x["scenario"][:, None]).squeeze(1), eps=1e-6)

    return OfScenario()


def main() -> int:
    arguments = options(__doc__.split("\n")[0]).parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    count = 8_192 if quick else 102_400
    data, test = rows(count, 3), rows(count // 4, 3, seed=1)
    report = Report(f"click models, {count:,} rows, {FIELDS} fields, batch {BATCH}, one CPU thread")
    targets = (None, None, None) if quick else (20.0, 2.5, 1.3)

    def rate(call, n: int) -> float:
        return n / cpu_seconds(call)

    def compare(name: str, peer, n: int, target: float | None) -> None:
        part = ctr.Resident(*(column[:n] for column in data))
        ours_rate, their_rate = [], []
        for _ in range(arguments.pairs):
            their_rate.append(rate(lambda: peer(part), n))
            model = ours(3)
            ours_rate.append(rate(lambda model=model: train_ours(model, data), count))
        report.add(f"ours over {name}", "ours", name, ours_rate, their_rate, target, unit="rows / CPU s")

    def frame(part: ctr.Resident) -> None:
        train_peer(Peer(ours(3)), Rows(pd.DataFrame(columns(part)), pd.Series(part.y_N.numpy())))

    def arrays(part: ctr.Resident) -> None:
        train_peer(Peer(ours(3)), Rows(columns(part), part.y_N.numpy()))

    compare("rows (pandas)", frame, min(count, 3 * BATCH), targets[0])
    compare("numpy", arrays, min(count, 10 * BATCH), targets[1])
    if rechub(3) is not None:
        compare(
            "torch-rechub",
            lambda part: train_peer(rechub(3), Rows(columns(part), part.y_N.numpy())),
            min(count, 10 * BATCH),
            None,
        )
    else:
        report.note("torch-rechub is not installed: pip install --no-deps torch-rechub adds it as an outside peer")

    many = rows(count, 10)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(arguments.pairs):
        for which, (log, s) in enumerate(((many, 10), (data, 3))):
            model = ours(s)
            seconds[which].append(cpu_seconds(lambda model=model, log=log: train_ours(model, log)))
    report.add("10 scenarios over 3", "10 scenarios", "3 scenarios", *seconds, targets[2], at_most=True)

    mine = ours(3)
    theirs = Peer(mine)
    train_ours(mine, data)
    train_peer(theirs, Rows(columns(data), data.y_N.numpy()))
    with torch.inference_mode():
        x = {name: torch.from_numpy(column) for name, column in columns(test).items()}
        scores = [ctr.predict(mine, test), theirs.eval()(x).sigmoid().numpy()]
    aucs = [ctr_metrics.auc(test.y_N.numpy(), score) for score in scores]
    report.note(f"AUC after one epoch, same start and order: ours {aucs[0]:.5f}, numpy peer {aucs[1]:.5f}")
    return report.finish(arguments) or int(arguments.check and abs(aucs[0] - aucs[1]) > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
