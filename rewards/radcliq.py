"""RadCliQ-v1 and v0 (Yu et al. 2023) from their four parts. Lower is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rewards.metric import Metric

# The order of the columns that both versions were fitted on.
PARTS = ("radgraph", "bertscore", "sembscore", "bleu2")


@dataclass(frozen=True)
class Fit:
    """One linear fit: z-score each part with `mean` and `scale`, then `coef` · z + `intercept`."""

    mean: tuple[float, float, float, float]
    scale: tuple[float, float, float, float]
    coef: tuple[float, float, float, float]
    intercept: float


# Numbers inside rajpurkarlab/CXR-Report-Metric at 9c9ecad: CXRMetric/radcliq-v1.pkl, and normalizer.pkl with
# composite_metric_model.pkl. Columns: RadGraph combined, BERTScore, SembScore, BLEU-2.
RADCLIQ_V1 = Fit(
    mean=(0.5379231241355762, 0.6175725628125001, 0.7647942121140658, 0.44738335396242174),
    scale=(0.3028258411486429, 0.22430938459304575, 0.2539439110169773, 0.2989271671041838),
    coef=(-0.37708368261038905, -0.37030009974480316, -0.25261621789593225, 4.315048405024756e-12),
    intercept=2.466552561323256e-10,
)
RADCLIQ_V0 = Fit(
    mean=(0.5398376019082272, 0.6312549595000001, 0.7716797866672277, 0.4607372064809605),
    scale=(0.3018344440559102, 0.22466950746141123, 0.24750333805236252, 0.30336670936092264),
    coef=(-0.4796252644863446, -0.6762170542369337, -0.46366575161751994, 0.2165861905287535),
    intercept=1.641666666666666,
)


def _linear(fit: Fit, radgraph, bertscore, sembscore, bleu) -> np.ndarray:
    parts = [np.asarray(part, dtype=np.float64) for part in (radgraph, bertscore, sembscore, bleu)]
    if len({part.shape for part in parts}) != 1:
        shapes = ", ".join(f"{name} {part.shape}" for name, part in zip(PARTS, parts, strict=True))
        raise ValueError(f"RadCliQ needs four parts of one shape, got {shapes}")
    z = (np.stack(parts, axis=-1) - fit.mean) / fit.scale
    return z @ np.array(fit.coef) + fit.intercept


def radcliq_v1(radgraph, bertscore, sembscore, bleu) -> np.ndarray:
    """RadCliQ-v1, lower is better: float64 of the parts' shape; all ones give −1.4407, all zeros 2.4501.

    It crosses zero, so 1/RadCliQ-v1 of a model is 1/mean, never the mean of 1/x. An empty report has BERTScore −5.55 (see
    rewards/bertscore.py), and so a RadCliQ-v1 of about 11.6 less its SembScore: a few of them move a mean far.

    Args:
        radgraph: RadGraph-F1 "combined" (see rewards/radgraph.py), array-like.
        bertscore: rescaled BERTScore F1, same shape.
        sembscore: SembScore from CheXbert's CLS vectors, same shape.
        bleu: BLEU-2, same shape.
    """
    return _linear(RADCLIQ_V1, radgraph, bertscore, sembscore, bleu)


def radcliq_v0(radgraph, bertscore, sembscore, bleu) -> np.ndarray:
    """RadCliQ-v0, lower is better; arguments and shape as `radcliq_v1`."""
    return _linear(RADCLIQ_V0, radgraph, bertscore, sembscore, bleu)


class RadCliQ(Metric):
    """RadCliQ of each pair from the four metrics that it is given: float32 [n], lower is better.

    Its name says when a part is a stand-in: then the number is no RadCliQ and must not be compared with one.
    """

    higher_is_better = False

    def __init__(self, version: str, parts: Mapping[str, Metric]) -> None:
        """`version` is "v1" or "v0"; `parts` holds a metric for each of `PARTS`."""
        self.formula = {"v1": radcliq_v1, "v0": radcliq_v0}[version]
        self.parts = [parts[name] for name in PARTS]
        stand_ins = sorted({part.backend for part in self.parts if part.backend.startswith("offline")})
        self.name = f"radcliq_{version}" + (f"[{'+'.join(stand_ins)}]" if stand_ins else "")
        self.backend = "+".join(stand_ins) if stand_ins else "real"
        self.fingerprint = "+".join(f"{part.name}:{part.fingerprint}" for part in self.parts)
        # All parts at their best; rescaled BERTScore has no useful lower bound, so RadCliQ has no upper one.
        self.range = (float(self.formula(1.0, 1.0, 1.0, 1.0 if version == "v1" else 0.0)), float("inf"))

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        return self.formula(*(part(candidates, references).astype(np.float64) for part in self.parts))
