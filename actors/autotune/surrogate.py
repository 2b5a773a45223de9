"""Which of a few graphs is likely the cheapest: a Bayesian linear regression of log cost on the
build axes (Bishop 2006, §3.3), fitted to the trials of one dataset version.

With one trial it says what is known beforehand: a larger ef_construction makes a better graph at
the same search cost, with diminishing returns, while M trades cost for recall either way. Every
trial moves it. It only chooses which step to try first; the trial decides.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.config import GraphConfig
from schemas.documents.trial import TrialPoint

RUNG = np.log(1.4)
"""Unit of both axes: about one step of the ladder."""
PRIOR_MEAN = np.array([0.0, 0.0, -0.1, 0.005, 0.01, 0.0])  # 1, m, e, m², e², me
PRIOR_SD = np.array([0.3, 0.15, 0.15, 0.02, 0.02, 0.02])
NOISE_SD = 0.05
"""Of a measured log cost: a twentieth, as latencies repeat on a shared machine."""
MISS_COST = 20.0
"""Log cost of a recall short of the target, per unit of recall: 0.01 short is 1.2 × dearer."""


def predicted_cost(
    graphs: Sequence[GraphConfig],  # (g)
    trials: Sequence[TrialPoint],  # of graphs: what each trial stands for
    champion: TrialPoint,
    target: float,
) -> NDArray[np.float64]:
    """(g,) predicted log cost of each graph at the ef that holds the target, relative to the
    champion's; rounded, so that it is the same number on any machine."""
    measured = np.array([_log_cost(point, target) for point in trials]) - _log_cost(champion, target)  # (t,)
    x = _features([(p.M, p.ef_construction) for p in trials], champion)  # (t, 6)
    precision = np.diag(PRIOR_SD**-2) + x.T @ x / NOISE_SD**2
    weights = np.linalg.solve(precision, PRIOR_SD**-2 * PRIOR_MEAN + x.T @ measured / NOISE_SD**2)
    return np.round(_features([(graph.M, graph.ef_construction) for graph in graphs], champion) @ weights, 6)


def _log_cost(point: TrialPoint, target: float) -> float:
    return float(np.log(max(point.cpu_us, 1e-3)) + MISS_COST * max(0.0, target - point.recall_lower))


def _features(graphs: Sequence[tuple[int | None, int | None]], champion: TrialPoint) -> NDArray[np.float64]:
    """(g, 6) quadratic in rungs away from the champion."""
    values = np.array(graphs, np.float64).reshape(-1, 2)
    m, e = (np.log(values / np.array([champion.M, champion.ef_construction], np.float64)) / RUNG).T
    return np.stack([np.ones_like(m), m, e, m * m, e * e, m * e], axis=1)
