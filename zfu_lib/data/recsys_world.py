"""A generated multi-scenario log whose truth is known, with texts that tell as much of it as a dial allows.

User u likes topics z_u ~ Dirichlet, item i is about topics t_i ~ Dirichlet, scenario s brings topics out by gains g_s:

    P(click | u, i, s) = sigmoid(steep · <z_u ⊙ g_s, t_i> + b_i + c_s - offset).

The log shows numbers only. What users wrote in each scenario, and what scenarios say of themselves, are words on
topics; each word is on a topic of the taste (or the gains) with probability ``strength``, and on any topic otherwise.
At 0 the texts tell nothing, at 1 every word does. The dial changes no click: all strengths share one log.

What it idealises: tastes do not drift, items are shown at random, every word belongs to one topic, and the taste is
the same in every scenario up to the gains.

Shape letters: U users, I items, S scenarios, T topics, N impressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zfu_lib.data.ctr import Log

LEXICON = {
    "cooking": "recipe oven baking pasta garlic soup pastry kitchen roast sauce spices dough",
    "football": "goal striker league penalty stadium referee keeper derby coach midfield tackle transfer",
    "travel": "airport hostel passport island itinerary luggage cruise backpack visa beach flight tour",
    "music": "guitar concert album melody drummer orchestra vinyl chorus piano festival singer rhythm",
    "finance": "stocks mortgage dividend inflation portfolio broker savings bond interest pension budget tax",
    "gardening": "compost tulips pruning greenhouse seedlings lawn hedge watering roses soil orchard shovel",
    "science": "quantum telescope genome enzyme physics fossil laboratory neuron galaxy particle theorem climate",
    "films": "director actor screenplay cinema sequel premiere trailer thriller casting studio camera oscar",
}
TOPICS = tuple(LEXICON)
WORDS = tuple(tuple(words.split()) for words in LEXICON.values())
PLACES = ("video feed", "search", "shop", "live streams", "news", "forum", "podcasts", "short clips")


@dataclass(frozen=True)
class World:
    """The truth. ``z_UT``, ``t_IT`` sum to one over topics, ``g_ST`` averages one; ``user_U`` and ``scenario_S`` are
    the shares of impressions; ``item_I`` and ``place_S`` the biases b_i and c_s."""

    seed: int
    z_UT: np.ndarray
    t_IT: np.ndarray
    g_ST: np.ndarray
    item_I: np.ndarray
    place_S: np.ndarray
    user_U: np.ndarray
    scenario_S: np.ndarray
    steep: float
    offset: float

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names of the scenarios."""
        n = len(self.g_ST)
        return PLACES[:n] if n <= len(PLACES) else tuple(f"channel {s + 1}" for s in range(n))

    def probability(self, user_N: np.ndarray, item_N: np.ndarray, scenario_N: np.ndarray) -> np.ndarray:
        """P(click) of impressions: [N]."""
        taste_NT = self.z_UT[user_N] * self.g_ST[scenario_N]
        logit = self.steep * (taste_NT * self.t_IT[item_N]).sum(1)
        return 1 / (1 + np.exp(-(logit + self.item_I[item_N] + self.place_S[scenario_N] - self.offset)))

    def log(self, rows: int, seed: int) -> tuple[Log, np.ndarray]:
        """Impressions drawn at random, and their click probabilities [N]; other seeds give other impressions."""
        rng = np.random.default_rng((self.seed, 1, seed))
        user = rng.choice(len(self.user_U), rows, p=self.user_U)
        item = rng.integers(0, len(self.t_IT), rows)
        scenario = rng.choice(len(self.scenario_S), rows, p=self.scenario_S)
        p = self.probability(user, item, scenario)
        label = (rng.random(rows) < p).astype(np.int64)
        sizes = (len(self.z_UT), len(self.t_IT))
        ids = np.stack([user, item], axis=1)
        return Log(("user", "item"), sizes, self.scenarios, ids, scenario, label, np.arange(rows, dtype=float)), p

    def user_words(self, strength: float, words: int = 16) -> list[dict[str, list[str]]]:
        """What each user wrote in each scenario: about ``words`` words in all, more where they are more often.

        Raises:
            ValueError: ``strength`` outside [0, 1].
        """
        rng = np.random.default_rng((self.seed, 2))
        # The same draws at every strength, so that the dial changes as few words as it must.
        where_UW = rng.choice(len(self.scenario_S), (len(self.z_UT), words), p=self.scenario_S)
        told_UW = self._words(rng, self.z_UT, words, strength)
        found = []
        for where, told in zip(where_UW, told_UW):
            found.append(
                {
                    name: [word for at, word in zip(where, told) if at == s]
                    for s, name in enumerate(self.scenarios)
                    if (where == s).any()
                }
            )
        return found

    def scenario_words(self, strength: float, words: int = 24) -> list[str]:
        """How each scenario describes itself.

        Raises:
            ValueError: ``strength`` outside [0, 1].
        """
        rng = np.random.default_rng((self.seed, 3))
        gains_ST = self.g_ST / self.g_ST.sum(1, keepdims=True)
        return [f"People come here for {', '.join(told)}." for told in self._words(rng, gains_ST, words, strength)]

    def _words(self, rng: np.random.Generator, topics_KT: np.ndarray, words: int, strength: float) -> list[list[str]]:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength = {strength}: the dial goes from 0 (texts say nothing) to 1 (every word does)")
        shape = (len(topics_KT), words)
        told = rng.random(shape) < strength
        any_topic = rng.integers(0, topics_KT.shape[1], shape)
        own_topic = (rng.random((*shape, 1)) > topics_KT.cumsum(1)[:, None, :-1]).sum(-1)
        word = rng.integers(0, len(WORDS[0]), shape)
        return [
            [WORDS[topic][w] for topic, w in zip(topics, row)]
            for topics, row in zip(np.where(told, own_topic, any_topic), word)
        ]


def world(
    seed: int,
    *,
    users: int = 1500,
    items: int = 150,
    scenarios: int = 4,
    focus: float = 0.2,
    contrast: float = 0.5,
    steep: float = 9.0,
    offset: float = 2.2,
) -> World:
    """A world of its own for each seed.

    Args:
        focus: Dirichlet parameter of tastes and items; smaller is more single-minded.
        contrast: standard deviation of the logarithm of the gains; 0 makes all scenarios the same.
        steep: how strongly taste decides.
        offset: makes clicks rarer.

    Raises:
        ValueError: a size below 1, or ``focus`` or ``contrast`` out of range.
    """
    if min(users, items, scenarios) < 1 or focus <= 0 or contrast < 0:
        raise ValueError(f"a world of {users} users, {items} items, {scenarios} scenarios, {focus = }, {contrast = }")
    rng = np.random.default_rng((seed, 0))
    topics = len(TOPICS)
    g_ST = np.exp(contrast * rng.normal(size=(scenarios, topics)))
    activity_U = np.exp(rng.normal(size=users))
    activity_S = np.array([0.6**s for s in range(scenarios)]) if scenarios <= len(PLACES) else np.ones(scenarios)
    return World(
        seed=seed,
        z_UT=rng.dirichlet([focus] * topics, users),
        t_IT=rng.dirichlet([focus] * topics, items),
        g_ST=g_ST / g_ST.mean(1, keepdims=True),
        item_I=0.3 * rng.normal(size=items),
        place_S=0.3 * rng.normal(size=scenarios),
        user_U=activity_U / activity_U.sum(),
        scenario_S=activity_S / activity_S.sum(),
        steep=steep,
        offset=offset,
    )
