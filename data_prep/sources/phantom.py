"""Synthetic frontal chest phantoms with reports: the source that needs no download, no account and no patient.

Every study is drawn from parameters and a seed. What is drawn is known exactly (`truth.parquet`); what the report says
of it depends on who wrote it. In training, the terse institutions leave out many findings that the image shows, as real
reporting habits do; reports of validation and test are complete for every institution, like a careful second read. And who
wrote a first encounter's training report often had a film from elsewhere, which the archive lacks, and calls "unchanged"
what was on it: a comparison that no model can make, and that a model imitates all the same. So rewards from references
of second reads have something true to mend: what is left out costs every metric; a comparison with a prior that is not
there costs the graph and the text metrics little, and the judge an error each time.

A report never contradicts the truth: whatever it states or denies is so, and its temporal words follow the drawn sizes
where the archive holds the prior.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from tqdm import tqdm

from data_prep.folder import recorded_files
from data_prep.study import SPLITS, StudyError, report_text, study_table, write_studies
from rewards.conditions import CONDITIONS

# The complete institution is the largest: from mostly terse reports the demo's tiny model learns to see too little.
DEFAULT_STUDIES = {
    "harbor": {"train": 1500, "validation": 50, "test": 120},
    "summit": {"train": 1500, "validation": 50, "test": 120},
    "prairie": {"train": 3000, "validation": 50, "test": 120},
    "coast": {"train": 1500, "validation": 50, "test": 120},
    "prairie_reread": {"train": 600},
    "summit_reread": {"train": 600},
}
SUPERSAMPLING = 2


# ---------------------------------------------------------------------------------------------------------------------
# Parameters
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of finding: what it counts as, how often it is there, how it changes, and how it is named.

    `nouns` are noun phrases over {size}, {side} and {zone}; `sizes` the words for a small, a middling and a large one.
    Rates are probabilities per patient (`prevalence`) or per further encounter (`resolves`, `changes`); a finding
    appears later at the rate that keeps its prevalence about level.
    """

    condition: str
    prevalence: float
    sizes: tuple[str, str, str]
    nouns: tuple[str, ...]
    sided: bool = True
    zoned: bool = False
    countable: bool = False
    resolves: float = 0.4
    changes: float = 0.6


KINDS: dict[str, Kind] = {
    "line": Kind(
        "Support Devices",
        0.24,
        ("", "", ""),
        ("right central venous line", "right central line", "right central venous catheter", "right jugular catheter"),
        sided=False,
        countable=True,
        resolves=0.6,
        changes=0.0,
    ),
    "pacemaker": Kind(
        "Support Devices",
        0.18,
        ("", "", ""),
        ("left pacemaker", "left chest pacemaker", "left pacemaker with leads", "left cardiac pacemaker"),
        sided=False,
        countable=True,
        resolves=0.0,
        changes=0.0,
    ),
    "cardiomegaly": Kind(
        "Cardiomegaly",
        0.32,
        ("mild", "moderate", "severe"),
        (
            "{size} cardiomegaly",
            "{size} enlargement of the heart",
            "{size} cardiac enlargement",
            "{size} heart enlargement",
        ),
        sided=False,
        resolves=0.2,
        changes=0.4,
    ),
    "edema": Kind(
        "Edema",
        0.20,
        ("mild", "moderate", "severe"),
        ("{size} pulmonary edema", "{size} interstitial edema", "{size} edema", "{size} interstitial pulmonary edema"),
        sided=False,
        resolves=0.6,
    ),
    "consolidation": Kind(
        "Consolidation",
        0.18,
        ("small", "moderate", "large"),
        (
            "{size} {side} {zone} lobe consolidation",
            "{size} consolidation in the {side} {zone} lobe",
            "{size} consolidation of the {side} {zone} lobe",
            "{size} area of consolidation in the {side} {zone} lobe",
        ),
        zoned=True,
        countable=True,
        resolves=0.6,
    ),
    "opacity": Kind(
        "Lung Opacity",
        0.13,
        ("small", "moderate", "large"),
        (
            "{size} {side} {zone} lobe opacity",
            "{size} hazy opacity in the {side} {zone} lobe",
            "{size} {side} {zone} lung opacity",
            "{size} patchy opacity in the {side} {zone} lobe",
        ),
        zoned=True,
        countable=True,
        resolves=0.6,
    ),
    "nodule": Kind(
        "Lung Lesion",
        0.12,
        ("small", "", "large"),
        (
            "{size} {side} {zone} lobe nodule",
            "{size} nodule in the {side} {zone} lobe",
            "{size} {side} {zone} lung nodule",
            "{size} nodule of the {side} {zone} lobe",
        ),
        zoned=True,
        countable=True,
        resolves=0.3,
    ),
    "atelectasis": Kind(
        "Atelectasis",
        0.10,
        ("mild", "moderate", "severe"),
        (
            "{size} {side} basilar atelectasis",
            "{size} atelectasis at the {side} base",
            "{size} {side} atelectasis",
            "{size} {side} linear atelectasis",
        ),
        resolves=0.6,
    ),
    "effusion": Kind(
        "Pleural Effusion",
        0.20,
        ("small", "moderate", "large"),
        (
            "{size} {side} pleural effusion",
            "{size} pleural effusion on the {side}",
            "{size} {side} effusion",
            "{size} effusion on the {side}",
        ),
        countable=True,
        resolves=0.55,
    ),
    "pneumothorax": Kind(
        "Pneumothorax",
        0.13,
        ("small", "moderate", "large"),
        (
            "{size} {side} pneumothorax",
            "{size} pneumothorax on the {side}",
            "{size} {side} apical pneumothorax",
            "{size} apical pneumothorax on the {side}",
        ),
        countable=True,
        resolves=0.7,
    ),
}
DEVICES = ("line", "pacemaker")
RIVALS = {"consolidation": "opacity", "opacity": "consolidation"}  # not both in one lung: they would merge

# How much likelier than `prevalence` each kind is in a patient of this phenotype (kinds not named: `other`), and the
# indications such a patient comes with.
PHENOTYPES: dict[str, dict[str, Any]] = {
    "healthy": {
        "share": 0.22,
        "other": 0.15,
        "indications": ("Chest pain.", "Cough.", "Preoperative evaluation.", "Positive tuberculosis test."),
    },
    "heart failure": {
        "share": 0.26,
        "other": 0.9,
        "cardiomegaly": 2.2,
        "edema": 2.3,
        "effusion": 1.9,
        "pacemaker": 2.4,
        "indications": ("Shortness of breath.", "Dyspnea and leg swelling.", "Heart failure.", "Shortness of breath."),
    },
    "infection": {
        "share": 0.26,
        "other": 0.9,
        "consolidation": 2.2,
        "opacity": 2.2,
        "effusion": 1.3,
        "indications": ("Fever and cough.", "Cough.", "Fever.", "Shortness of breath."),
    },
    "postoperative": {
        "share": 0.26,
        "other": 1.0,
        "line": 2.4,
        "pneumothorax": 2.4,
        "atelectasis": 2.2,
        "nodule": 1.8,
        "indications": ("Line placement.", "Chest pain.", "Postoperative evaluation.", "Shortness of breath."),
    },
}
GENERAL_INDICATIONS = ("Shortness of breath.", "Chest pain.", "Cough.", "Evaluate chest.")


@dataclass(frozen=True)
class PhantomDifficulty:
    """How hard the phantoms are; the defaults are those of the demo.

    Attributes:
        kinds: the kinds of finding that occur (keys of `KINDS`). The default leaves out the two that differ from others
            by texture alone, which is beyond the demo's tiny model.
        subtle_share: share of findings whose size is drawn from `subtle_sizes` and not from `plain_sizes`.
        subtle_sizes, plain_sizes: ranges of size, in [0, 1].
        contrast: factor on the brightness of every finding in the lungs.
        noise: standard deviation of the detector noise, grey levels of 255, at 96 pixels.
        variation: factor on how much anatomy, position and exposure vary.
        prevalence: factor on the prevalence of every kind of finding.
        most_findings: the most at one encounter (reports of more would be long).
        encounters: weights of 1, 2, … encounters per patient.
        turnover: factor on how often findings resolve and change between encounters.
    """

    kinds: tuple[str, ...] = tuple(kind for kind in KINDS if kind not in ("opacity", "atelectasis"))
    subtle_share: float = 0.10
    subtle_sizes: tuple[float, float] = (0.05, 0.30)
    plain_sizes: tuple[float, float] = (0.40, 1.0)
    contrast: float = 1.3
    noise: float = 3.0
    variation: float = 0.8
    prevalence: float = 0.8
    most_findings: int = 5
    encounters: tuple[float, ...] = (0.80, 0.10, 0.04, 0.03, 0.02, 0.01)
    turnover: float = 1.6


@dataclass(frozen=True)
class InstitutionStyle:
    """How one institution writes.

    Attributes:
        order: the sequence of the parts of its findings section.
        favourite: index of the phrasing it prefers in each pool of phrasings (modulo the pool's length).
        habit: probability that it uses the favourite; else any of the pool, evenly.
        omission_rate: probability that a training report leaves out a finding the image shows (or one that resolved).
        negation_rate: probability that a training report states a normal that is due.
        outside_films: probability that who wrote the training report of a first encounter had a film from elsewhere, which
            the archive lacks, and calls unchanged what was on it too.
        without_findings, without_impression: shares of reports that lack this section.
        states_no_devices, states_bones: whether its complete reports deny devices, and mention the bones.
        no_comparison: what it writes as comparison where there is none, if anything. Where this differs, a prompt tells
            who will write the report: hospitals' templates do.
        races: weights of `RACES`.
        contrast, noise: factors on the image's contrast and noise. Equal at the three training institutions, or
            a model could tell by the image who wrote the report, and so who omits.
    """

    order: tuple[str, ...]
    favourite: int
    habit: float = 0.85
    omission_rate: float = 0.0
    negation_rate: float = 1.0
    outside_films: float = 0.0
    without_findings: float = 0.0
    without_impression: float = 0.0
    states_no_devices: bool = False
    states_bones: bool = False
    no_comparison: str = "None."
    races: tuple[float, ...] = (0.60, 0.18, 0.08, 0.10, 0.04)
    contrast: float = 1.0
    noise: float = 1.0


RACES = ("White", "Black", "Asian", "Hispanic", "Other")
INSTITUTIONS: dict[str, InstitutionStyle] = {
    "harbor": InstitutionStyle(
        order=("heart", "lungs", "pleura", "devices", "bones"),
        favourite=1,
        omission_rate=0.8,
        negation_rate=0.5,
        outside_films=0.75,
        without_impression=0.15,
    ),
    "summit": InstitutionStyle(
        order=("lungs", "pleura", "heart", "devices", "bones"),
        favourite=2,
        omission_rate=0.8,
        negation_rate=0.5,
        without_findings=0.15,
        no_comparison="No comparison available.",
        races=(0.45, 0.12, 0.20, 0.18, 0.05),
    ),
    "prairie": InstitutionStyle(
        order=("devices", "heart", "lungs", "pleura", "bones"),
        favourite=0,
        outside_films=0.75,
        without_impression=0.05,
        states_no_devices=True,
        states_bones=True,
        races=(0.72, 0.10, 0.04, 0.10, 0.04),
    ),
    "coast": InstitutionStyle(
        order=("pleura", "lungs", "heart", "devices", "bones"),
        favourite=3,
        without_findings=0.10,
        without_impression=0.10,
        states_bones=True,
        races=(0.40, 0.20, 0.15, 0.20, 0.05),
        contrast=0.92,
        noise=1.25,
    ),
}
# Studies that were read a second time, in full and with the archive's films alone: other patients, same hospital, same
# templates and phrasing. Their training splits are what RL takes its references from.
for _name in ("summit", "prairie"):
    INSTITUTIONS[f"{_name}_reread"] = replace(
        INSTITUTIONS[_name], omission_rate=0.0, negation_rate=1.0, outside_films=0.0
    )


# ---------------------------------------------------------------------------------------------------------------------
# Findings and anatomy
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One finding: its kind (a key of `KINDS`), side ("right", "left" or "", the patient's), zone ("upper", "lower" or "").

    `size` in [0, 1]; `place` = two numbers in [0, 1] that say where inside the zone, and seed its texture.
    """

    kind: str
    size: float
    side: str = ""
    zone: str = ""
    place: tuple[float, float] = (0.5, 0.5)

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.side


@dataclass(frozen=True)
class Anatomy:
    """One patient's chest. Lengths are fractions of the image's side; x grows to image right (the patient's left), y down."""

    midline: float = 0.5
    half_width: float = 0.37  # of the rib cage, where it is widest
    apex: float = 0.10  # y of the lung apices
    widest: float = 0.62  # y where the rib cage is widest
    dome: float = 0.74  # y of the right hemidiaphragm's top; the left one is 0.02 lower
    heart_ratio: float = 0.44  # cardiothoracic ratio without cardiomegaly
    heart_tilt: float = 0.25
    knob: float = 0.03  # radius of the aortic knob
    breast: float = 0.0  # brightness of breast shadows
    rib_spacing: float = 0.075
    rib_contrast: float = 0.06
    tissue: float = 0.50  # brightness of the chest wall

    @classmethod
    def random(cls, rng: np.random.Generator, sex: str, age: float, variation: float = 1.0) -> Anatomy:
        """A patient's anatomy; `variation` scales every spread (0: the average chest)."""
        u = rng.uniform(-1, 1, 10) * variation
        return cls(
            midline=0.5 + 0.012 * u[0],
            half_width=0.372 + 0.02 * u[1] - (0.01 if sex == "F" else 0.0),
            apex=0.10 + 0.015 * u[2],
            widest=0.62 + 0.02 * u[3],
            dome=0.745 + 0.025 * u[4],
            heart_ratio=0.435 + 0.03 * u[5],
            heart_tilt=0.25 + 0.12 * u[6],
            knob=0.026 + 0.0002 * (age - 50) + 0.004 * u[7],
            breast=0.05 + 0.03 * u[8] if sex == "F" else 0.0,
            rib_spacing=0.077 + 0.006 * u[9],
            rib_contrast=0.06,
            tissue=0.50,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _texture_bank(n: int) -> np.ndarray:
    """Smooth noise, float32 [2n, 2n], mean 0, spread 1, its grain a fixed fraction of the image whatever its size."""
    rng = np.random.default_rng(20240229)
    total = np.zeros((2 * n, 2 * n), np.float32)
    for cells, weight in ((24, 0.6), (56, 0.8)):
        coarse = Image.fromarray(rng.standard_normal((2 * cells, 2 * cells)).astype(np.float32))
        total += weight * np.asarray(coarse.resize((2 * n, 2 * n), Image.Resampling.BICUBIC))
    return (total - total.mean()) / total.std()


def _soft(values: np.ndarray) -> np.ndarray:
    """Clipped to [0, 1] in place: with a steep slope in `values`, a shape with a soft edge."""
    return np.clip(values, 0.0, 1.0, out=values)


def _square(values: np.ndarray, centre: float, radius: float) -> np.ndarray:
    scaled = (values - np.float32(centre)) * np.float32(1.0 / radius)
    return scaled * scaled


EDGE = np.float32(100.0)  # one over the width of an organ's edge
Window = tuple[slice, slice]


class _Exposure:
    """The brightness map being drawn, float32 [n, n] in about [0, 1], and where this patient lies in it.

    `x` [1, n] and `y` [n, 1] are pixel centres; lengths are fractions of the image's side, as in `Anatomy`. Shapes are
    computed in windows, not over the whole image: that is what keeps a phantom near a millisecond.
    """

    def __init__(self, anatomy: Anatomy, n: int, shift: np.ndarray, texture_at: np.ndarray, gain: float) -> None:
        centres = (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n)
        self.n, self.x, self.y = n, centres[None, :], centres[:, None]
        self.anatomy = anatomy
        self.cx = anatomy.midline + 0.018 * shift[0]
        self.width = anatomy.half_width * (1.0 + 0.03 * shift[1])
        self.apex = anatomy.apex + 0.015 * shift[2]
        self.widest = anatomy.widest + 0.015 * shift[2]
        self.dome = anatomy.dome + 0.015 * shift[2] + 0.018 * shift[3]
        self.collar = self.apex + 0.035 + 0.01 * shift[4]
        self.heart_ratio = anatomy.heart_ratio + 0.008 * shift[5]
        row, column = texture_at
        self.texture = _texture_bank(n)[row : row + n, column : column + n]
        self.gain = np.float32(gain)  # contrast of findings in the lungs
        self.distance = np.abs(self.x - np.float32(self.cx))  # from the midline
        self.value = np.empty((n, n), np.float32)

    def window(self, x0: float, x1: float, y0: float, y1: float) -> Window:
        n = self.n
        rows = slice(max(0, int(y0 * n)), min(n, int(y1 * n) + 2))
        return rows, slice(max(0, int(x0 * n)), min(n, int(x1 * n) + 2))

    def ellipse(
        self, cx: float, cy: float, rx: float, ry: float, hardness: float, tilt: float = 0.0
    ) -> tuple[Window, np.ndarray]:
        """Window and mask of an ellipse: 1 inside, falling to 0 over about 1/hardness of its radius."""
        reach = 1.0 + abs(tilt)
        rows, columns = self.window(cx - rx * reach, cx + rx * reach, cy - ry * reach, cy + ry * reach)
        dx = (self.x[:, columns] - np.float32(cx)) * np.float32(1 / rx)
        dy = (self.y[rows] - np.float32(cy)) * np.float32(1 / ry)
        q = (dx - np.float32(tilt) * dy) ** 2 + (dy - np.float32(tilt * 0.5) * dx) ** 2 if tilt else dx * dx + dy * dy
        return (rows, columns), _soft((np.float32(1.0) - q) * np.float32(hardness))

    def raise_to(self, shape: tuple[Window, np.ndarray], brightness: float) -> None:
        """Raise a shape to a brightness; what is brighter already stays."""
        window, mask = shape
        region = self.value[window]
        region += mask * np.maximum(np.float32(brightness) - region, 0.0)

    def add(self, shape: tuple[Window, np.ndarray], brightness: float) -> None:
        window, mask = shape
        self.value[window] += mask * np.float32(brightness)


def draw(
    findings: Sequence[Finding],
    anatomy: Anatomy,
    rng: np.random.Generator,
    size: int = 96,
    difficulty: PhantomDifficulty | None = None,
    contrast: float = 1.0,
    noise: float = 1.0,
) -> Image.Image:
    """Draw a frontal chest phantom; the patient's right lung is on image left.

    `rng` gives this exposure's position, inspiration, brightness and noise. It is drawn from in a fixed order, so equal
    generators with other findings give images that differ by those findings alone.

    Args:
        findings: what to show; at most one of each kind and side.
        anatomy: the patient.
        rng: source of this exposure's variation.
        size: side of the square image, pixels; any from 32.
        difficulty: contrast of findings, noise and variation; default `PhantomDifficulty()`.
        contrast, noise: the institution's factors.

    Returns:
        An 8-bit greyscale image, size × size.
    """
    difficulty = difficulty or PhantomDifficulty()
    n = size * SUPERSAMPLING
    shift = rng.uniform(-1, 1, 8) * difficulty.variation
    exposure = _Exposure(anatomy, n, shift, rng.integers(0, n, 2), difficulty.contrast)
    shown = {finding.key: finding for finding in findings}

    _draw_body(exposure)
    for side in ("right", "left"):
        _draw_lung(exposure, side, shown)
    _draw_ribs(exposure)
    _draw_midline(exposure)
    _draw_heart(exposure, shown.get(("cardiomegaly", "")))
    for device in DEVICES:
        if finding := shown.get((device, "")):
            _draw_device(exposure, finding)

    pixels = exposure.value.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean(axis=(1, 3))
    pixels = 0.45 + (pixels - 0.45) * np.float32(contrast * (1.0 + 0.08 * shift[6])) + np.float32(0.03 * shift[7])
    pixels *= 255.0
    pixels += rng.standard_normal((size, size), np.float32) * np.float32(difficulty.noise * noise)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _draw_body(e: _Exposure) -> None:
    """The trunk on a dark background, brighter towards the abdomen, with sloping shoulders."""
    side = np.float32(e.width + 0.095) + np.float32(0.05) * np.clip(e.y - np.float32(0.35), -0.25, 0.1)
    trunk = _soft((side - e.distance) * (EDGE * np.float32(0.5)))
    shoulder = np.float32(0.45) * np.clip(e.distance - np.float32(0.20), 0.0, 1.0)
    top = int(0.25 * e.n)
    trunk[:top] *= _soft((e.y[:top] + np.float32(0.01) - shoulder) * (EDGE * np.float32(0.4)))
    np.multiply(trunk, np.float32(e.anatomy.tissue) + np.float32(0.14) * e.y, out=e.value)
    e.value += np.float32(0.04)


def _draw_lung(e: _Exposure, side: str, shown: Mapping[tuple[str, str], Finding]) -> None:
    """One lung, between the mediastinum, the rib cage and the diaphragm, with all that is to be seen in it."""
    sign = np.float32(-1.0 if side == "right" else 1.0)
    left_edge, right_edge = sorted((e.cx, e.cx + float(sign) * (e.width + 0.05)))
    rows, columns = window = e.window(left_edge, right_edge, e.apex - 0.03, 0.97)
    d, y = sign * (e.x[:, columns] - np.float32(e.cx)), e.y[rows]
    texture = e.texture[window]
    edema, atelectasis = shown.get(("edema", "")), shown.get(("atelectasis", side))

    height = np.clip((e.widest - y) / (e.widest - e.apex), 0.0, 1.0)  # 1 at the apex, 0 at the widest level and below
    outer = e.width * (0.12 + 0.88 * np.sqrt(1.0 - height**2.4)) * (1.0 - 0.18 * np.clip(y - e.widest, 0.0, 1.0))
    outer = outer.astype(np.float32)
    inner = np.float32(0.045) + np.float32(0.10) * np.clip((e.apex + 0.09 - y) / 0.09, 0.0, 1.2) ** 2
    top = e.dome + (0.02 if side == "left" else 0.0) - (0.03 * atelectasis.size if atelectasis else 0.0)
    floor = np.float32(top) + np.float32(0.10) * _square(d, 0.45 * e.width, 0.5 * e.width)
    mask = _soft((outer - d) * EDGE)
    mask *= _soft((d - inner.astype(np.float32)) * EDGE)
    mask *= _soft((floor - y) * EDGE)

    lung = texture * np.float32(0.018 + (0.035 * edema.size if edema else 0.0))
    lung += np.float32(0.17) + np.float32(0.05) * y
    if edema:
        haze = 1.0 - _square(d, 0.42 * e.width, 0.62 * e.width) - _square(y, 0.5 * (e.apex + top) + 0.06, 0.34)
        lung += _soft(haze) * (e.gain * np.float32(0.07 + 0.21 * edema.size))
    if pneumothorax := shown.get(("pneumothorax", side)):
        _draw_pneumothorax(e, pneumothorax, lung, d, y, outer, height)
    if effusion := shown.get(("effusion", side)):
        # Fluid with a meniscus: its level rises towards the side.
        rise = np.float32(0.055 + 0.27 * effusion.size) * (1.0 + np.float32(0.25) * _square(d, 0.0, e.width))
        fluid = _soft((y - np.float32(top + 0.10) + rise) * (EDGE * np.float32(0.45)))
        lung += (np.float32(0.60) - lung) * fluid * min(e.gain, np.float32(1.0))
    # Last, so that neither fluid nor air hides them: densities add up, less where it is bright already.
    for kind in ("consolidation", "opacity", "nodule"):
        if finding := shown.get((kind, side)):
            lung += _focus(e, finding, d, y, top, texture) * np.clip(1.2 - lung, 0.0, 1.0)
    if atelectasis:
        lung += _plates(e, atelectasis, d, y, top) * np.clip(1.2 - lung, 0.0, 1.0)
    region = e.value[window]
    region += mask * (lung - region)


def _focus(e: _Exposure, finding: Finding, d: np.ndarray, y: np.ndarray, top: float, texture: np.ndarray) -> np.ndarray:
    """Added brightness of a consolidation (dense, firm edge), an opacity (hazy, mottled) or a nodule (small, round)."""
    u, v = finding.place
    height = top - e.apex
    if finding.zone == "upper":
        centre_d, centre_y = (0.42 + 0.22 * u) * e.width, e.apex + (0.26 + 0.14 * v) * height
    else:
        centre_d, centre_y = (0.58 + 0.20 * u) * e.width, e.apex + (0.70 + 0.14 * v) * height
    smallest, growth = {"nodule": (0.024, 0.036), "consolidation": (0.060, 0.070), "opacity": (0.085, 0.065)}[
        finding.kind
    ]
    radius = smallest + growth * finding.size
    q = _square(d, centre_d, radius) + _square(y, centre_y, radius)
    if finding.kind == "nodule":
        return _soft((1.0 - q) * 2.0) * (e.gain * np.float32(0.28 + 0.14 * finding.size))
    if finding.kind == "consolidation":
        q += np.float32(0.12) * texture
        return _soft((1.0 - q) * 2.2) * (e.gain * np.float32(0.26 + 0.14 * finding.size))
    mottle = _soft(np.float32(0.75) + np.float32(0.35) * texture)
    return _soft(1.0 - q) * mottle * (e.gain * np.float32(0.18 + 0.16 * finding.size))


def _plates(e: _Exposure, finding: Finding, d: np.ndarray, y: np.ndarray, top: float) -> np.ndarray:
    """Added brightness of atelectasis: two oblique plates above the diaphragm, which is drawn up."""
    u, v = finding.place
    reach = _soft((d - np.float32(0.28 * e.width)) * 20.0) * _soft((np.float32(0.92 * e.width) - d) * 20.0)
    plates = np.zeros(np.broadcast_shapes(d.shape, y.shape), np.float32)
    for i in range(2):
        level = top - 0.025 - 0.045 * i - 0.02 * v
        slope = 0.5 * (u - 0.5) + 0.12 * (2 * i - 1)
        off = np.abs(y - np.float32(level) - np.float32(slope) * (d - np.float32(0.6 * e.width)))
        plates += _soft(np.float32(1.6) - off * np.float32(1 / (0.007 + 0.006 * finding.size)))
    return plates * reach * (e.gain * np.float32(0.14 + 0.16 * finding.size))


def _draw_pneumothorax(
    e: _Exposure,
    finding: Finding,
    lung: np.ndarray,
    d: np.ndarray,
    y: np.ndarray,
    outer: np.ndarray,
    height: np.ndarray,
) -> None:
    """Black air without markings between the chest wall and a thin white pleural line, widest at the apex."""
    depth = (0.025 + 0.16 * finding.size) * (0.8 + 0.9 * height)
    below = e.apex + 0.02 + 0.10 * finding.size
    inside = np.minimum((outer - depth).astype(np.float32) - d, (y - np.float32(below)) * np.float32(1.2))
    air = _soft(-inside * EDGE)
    lung += (1.0 - air) * np.float32(0.05 * finding.size)  # the collapsing lung is denser
    lung += (np.float32(0.025) - lung) * air * min(e.gain, np.float32(1.0))
    lung += _soft(1.0 - np.abs(inside) * np.float32(1 / 0.011)) * (np.float32(0.16) * e.gain)


def _draw_ribs(e: _Exposure) -> None:
    """Posterior ribs that slope down to the side; anterior ribs that cross them, fainter; the clavicles."""
    end = int((e.dome + 0.04) * e.n)
    y = e.y[:end]
    inside = _soft((np.float32(e.width + 0.01) - e.distance) * EDGE) * np.float32(e.anatomy.rib_contrast)
    inside = inside * _soft((np.float32(e.dome + 0.04) - y) * np.float32(9.0))  # they fade into the abdomen
    curve = np.float32(1.6) * (e.distance - np.float32(0.14)) ** 2
    for bend, lift, weight in ((0.9, 0.0, 1.0), (-0.8, 0.03, 0.45)):
        phase = ((y - np.float32(e.apex + lift)) - np.float32(bend) * curve) * np.float32(1 / e.anatomy.rib_spacing)
        phase -= np.rint(phase)
        rib = _soft((np.float32(0.27) - np.abs(phase)) * np.float32(6.0))
        rib *= inside * np.float32(weight)
        e.value[:end] += rib
    for sign in (-1.0, 1.0):
        e.add(e.ellipse(e.cx + sign * 0.20, e.collar, 0.19, 0.020, 2.0, tilt=-0.06 * sign), 0.10)


def _draw_midline(e: _Exposure) -> None:
    """Spine, trachea, aortic knob, mediastinum, hila; breast shadows where the anatomy has them."""
    rows, columns = e.window(e.cx - 0.09, e.cx + 0.09, 0.0, 1.0)
    e.value[rows, columns] += _soft((np.float32(0.052) - e.distance[:, columns]) * 70) * np.float32(0.04)
    e.raise_to(e.ellipse(e.cx + 0.012, e.dome - 0.17, 0.085, 0.21, 2.5), 0.58)
    knob = e.anatomy.knob
    e.raise_to(e.ellipse(e.cx + 0.042, e.apex + 0.22, knob + 0.025, knob + 0.030, 2.0), 0.56)
    rows, columns = e.window(e.cx - 0.03, e.cx + 0.03, 0.0, e.apex + 0.22)
    e.value[rows, columns] -= _soft((np.float32(0.017) - e.distance[:, columns]) * EDGE) * np.float32(0.13)
    for sign in (-1.0, 1.0):
        e.add(e.ellipse(e.cx + sign * 0.085, 0.5 * (e.apex + e.dome) + 0.02, 0.055, 0.08, 1.0), 0.10)
        if e.anatomy.breast:
            e.add(e.ellipse(e.cx + sign * 0.55 * e.width, e.dome - 0.02, 0.17, 0.12, 1.2), e.anatomy.breast)


def _draw_heart(e: _Exposure, cardiomegaly: Finding | None) -> None:
    """The heart: a cardiothoracic ratio under 0.48, or from 0.52 with cardiomegaly, which grows to the patient's left."""
    ratio = e.heart_ratio
    if cardiomegaly:
        ratio = 0.53 + 0.20 * cardiomegaly.size + 0.2 * (ratio - 0.435)
    radius = ratio * e.width
    centre = e.cx + 0.03 + 0.28 * (radius - 0.15)
    shape = (centre, e.dome - 0.075, radius, 0.125 + 0.35 * (radius - 0.15), 3.0, e.anatomy.heart_tilt)
    e.raise_to(e.ellipse(*shape), 0.64)


def _draw_device(e: _Exposure, finding: Finding) -> None:
    """A central venous line from the right neck to the superior vena cava, or a left pacemaker with its lead."""
    u, v = finding.place
    cx, apex, dome, n = e.cx, e.apex, e.dome, e.n
    layer = Image.new("L", (n, n), 0)
    pen = ImageDraw.Draw(layer)
    width = max(2, round(0.02 * n))

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * n, y * n) for x, y in points]

    if finding.kind == "line":
        neck = ((cx - 0.15 - 0.05 * u, 0.0), (cx - 0.13 - 0.03 * u, apex - 0.02))
        cava = ((cx - 0.065, apex + 0.13), (cx - 0.055, apex + 0.28 + 0.08 * v))
        pen.line(at(*neck, *cava), fill=255, width=width, joint="curve")
    else:
        left, top = cx + 0.50 * e.width + 0.03 * u, apex + 0.07 + 0.03 * v
        pen.rounded_rectangle(at((left, top), (left + 0.13, top + 0.11)), radius=0.025 * n, fill=255)
        vein = ((left + 0.01, top + 0.02), (cx + 0.06, top - 0.01), (cx - 0.02, top + 0.08))
        pen.line(at(*vein, (cx - 0.03, dome - 0.18), (cx + 0.04, dome - 0.08)), fill=200, width=width, joint="curve")
    mask = np.asarray(layer, np.float32) * np.float32((0.45 + 0.55 * finding.size) / 255.0)
    e.value += mask * np.maximum(np.float32(0.95) - e.value, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Patients and how their findings change
# ---------------------------------------------------------------------------------------------------------------------

UNCHANGED_WITHIN = 0.05  # sizes that differ by at most this read as unchanged; a drawn change is at least 0.2


def _new_size(rng: np.random.Generator, difficulty: PhantomDifficulty) -> float:
    subtle = rng.random() < difficulty.subtle_share
    return float(rng.uniform(*(difficulty.subtle_sizes if subtle else difficulty.plain_sizes)))


def _new_finding(kind: str, side: str, rng: np.random.Generator, difficulty: PhantomDifficulty) -> Finding:
    zone = ("upper", "lower")[int(rng.random() < 0.6)] if KINDS[kind].zoned else ""
    u, v = rng.random(2)
    return Finding(kind, _new_size(rng, difficulty), side, zone, (float(u), float(v)))


def _encounters(
    phenotype: Mapping[str, Any], rng: np.random.Generator, difficulty: PhantomDifficulty
) -> Iterator[list[Finding]]:
    """The findings of a patient's first, second, … encounter, without end."""
    slots = [
        (kind, side)
        for kind, spec in KINDS.items()
        if kind in difficulty.kinds
        for side in (("right", "left") if spec.sided else ("",))
    ]
    present: dict[tuple[str, str], Finding] = {}
    first = True
    while True:
        following: dict[tuple[str, str], Finding] = {}
        shuffled = [slots[i] for i in rng.permutation(len(slots))]
        for kind, side in sorted(shuffled, key=lambda slot: slot not in present):  # what is there keeps its place
            spec = KINDS[kind]
            rate = min(0.9, spec.prevalence * difficulty.prevalence * phenotype.get(kind, phenotype["other"]))
            resolves = min(0.95, spec.resolves * difficulty.turnover)
            before = present.get((kind, side))
            if before is None:
                # In later encounters at the rate that balances what resolves.
                chance = rate if first else min(0.9, rate * max(resolves, 0.1) / (1.0 - rate))
                rival = (RIVALS.get(kind, ""), side) in following
                if rng.random() < chance and not rival and len(following) < difficulty.most_findings:
                    following[kind, side] = _new_finding(kind, side, rng, difficulty)
            elif rng.random() >= resolves:
                following[kind, side] = replace(before, size=_next_size(before.size, spec, rng, difficulty))
        present, first = following, False
        yield [present[slot] for slot in slots if slot in present]


def _next_size(size: float, spec: Kind, rng: np.random.Generator, difficulty: PhantomDifficulty) -> float:
    if rng.random() < min(1.0, spec.changes * difficulty.turnover):
        step = rng.uniform(0.2, 0.4) * (1 if rng.random() < 0.5 else -1)
        if 0.05 <= size + step <= 1.0:
            return float(size + step)
        if 0.05 <= size - step <= 1.0:
            return float(size - step)
    wobbled = float(np.clip(size + rng.uniform(-UNCHANGED_WITHIN, UNCHANGED_WITHIN), 0.05, 1.0))
    return wobbled if int(wobbled * 3) == int(size * 3) else size  # what is unchanged keeps its word


def change(now: Finding, before: Finding | None) -> str:
    """What became of a finding since the prior: "new", "unchanged", "increased" or "decreased"."""
    if before is None:
        return "new"
    if abs(now.size - before.size) <= UNCHANGED_WITHIN + 1e-9:
        return "unchanged"
    return "increased" if now.size > before.size else "decreased"


def truth_labels(findings: Sequence[Finding]) -> dict[str, int]:
    """0 or 1 for each of `CONDITIONS`. No Finding is 1 where there is nothing but devices (CheXpert's definition)."""
    labels = dict.fromkeys(CONDITIONS, 0)
    for finding in findings:
        labels[KINDS[finding.kind].condition] = 1
    labels["No Finding"] = int(all(finding.kind in DEVICES for finding in findings))
    return labels


# ---------------------------------------------------------------------------------------------------------------------
# Reports
# ---------------------------------------------------------------------------------------------------------------------

# Sentences around a noun phrase: {np} as it stands, {Np} with a capital, {a} its article.
FRAMES = ("There is {a}{np}.", "{Np}.", "{Np} is seen.", "{Np} is noted.")
CHANGE_FRAMES = ("{Change} {np}.", "{Np}, {change}.", "{Np} {has_changed}.", "{Np}, {change} from the prior.")
RESOLVED_FRAMES = (
    "{Np} has resolved.",
    "The {np} has resolved.",
    "Previous {np} has resolved.",
    "The prior {np} has resolved.",
)
REMOVED_FRAMES = ("{Np} has been removed.", "The {np} has been removed.")
DEVICE_FRAMES = ("{Np} in place.", "{Np} is in place.", "There is {a}{np}.", "{Np} is present.")
HAS_CHANGED = {
    "new": "is new",
    "unchanged": "is unchanged",
    "increased": "has increased",
    "decreased": "has decreased",
}
NORMAL = {
    "devices": ("No support devices.", "No lines or tubes."),
    "heart": (
        "Heart size is normal.",
        "The heart is normal in size.",
        "Normal heart size.",
        "The heart is not enlarged.",
    ),
    "edema": ("No pulmonary edema.", "There is no pulmonary edema.", "No edema.", "No edema is seen."),
    "clear": ("The lungs are clear.", "Lungs are clear.", "Clear lungs.", "Both lungs are clear."),
    "consolidation": (
        "No focal consolidation.",
        "There is no consolidation.",
        "No consolidation.",
        "No consolidation is seen.",
    ),
    "effusion": (
        "No pleural effusion.",
        "There is no pleural effusion.",
        "No effusion.",
        "No pleural effusion is seen.",
    ),
    "pneumothorax": (
        "No pneumothorax.",
        "There is no pneumothorax.",
        "No evidence of pneumothorax.",
        "No pneumothorax is seen.",
    ),
    "pleura": (
        "No pleural effusion or pneumothorax.",
        "There is no pleural effusion or pneumothorax.",
        "No effusion or pneumothorax.",
        "No effusion or pneumothorax is seen.",
    ),
    "bones": (
        "The bones are intact.",
        "No acute bone abnormality.",
        "Bones are intact.",
        "No bone abnormality is seen.",
    ),
    "all": (
        "No acute cardiopulmonary abnormality.",
        "No acute cardiopulmonary process.",
        "No acute abnormality.",
        "No acute findings.",
    ),
}
PARTS = {
    "devices": ("line", "pacemaker"),
    "heart": ("cardiomegaly", "edema"),
    "lungs": ("consolidation", "opacity", "nodule", "atelectasis"),
    "pleura": ("effusion", "pneumothorax"),
    "bones": (),
}
# What an impression puts first.
IMPORTANCE = ("pneumothorax", "consolidation", "edema", "nodule", "effusion", "opacity", "cardiomegaly", "atelectasis")
IMPRESSION_LENGTH = 3


def size_word(finding: Finding) -> str:
    """The word for its size: thirds of [0, 1]."""
    return KINDS[finding.kind].sizes[min(2, int(finding.size * 3))]


class _Writer:
    """Writes one report. `stated` are the findings it may mention; `findings` is all there is to see."""

    def __init__(
        self,
        findings: Sequence[Finding],
        previous: Sequence[Finding] | None,
        style: InstitutionStyle,
        complete: bool,
        rng: np.random.Generator,
    ) -> None:
        self.style, self.rng, self.complete = style, rng, complete
        self.has_prior = previous is not None
        self.outside_film = not (complete or self.has_prior) and rng.random() < style.outside_films
        self.compares = self.has_prior or self.outside_film
        self.before = {finding.key: finding for finding in previous or ()}
        self.findings = list(findings)
        omission = 0.0 if complete else style.omission_rate
        self.stated = [f for f in self.findings if rng.random() >= omission]
        now = {finding.key for finding in self.findings}
        self.present = {finding.kind for finding in self.findings}
        # Where one side's finding is left out, "the other side's has resolved" would read as none at all.
        said = {KINDS[finding.kind].condition for finding in self.stated}
        left_out = {KINDS[kind].condition for kind in self.present} - said
        gone = [f for f in previous or () if f.key not in now and KINDS[f.kind].condition not in left_out]
        self.resolved = [f for f in gone if rng.random() >= omission]

    def pick(self, pool: Sequence[str]) -> str:
        favoured = self.rng.random() < self.style.habit
        other = int(self.rng.integers(len(pool)))
        return pool[self.style.favourite % len(pool) if favoured else other]

    def due(self) -> bool:
        """Whether a normal that could be stated is."""
        return self.complete or self.rng.random() < self.style.negation_rate

    def noun(self, finding: Finding, with_size: bool = True) -> str:
        phrase = self.pick(KINDS[finding.kind].nouns)
        size = size_word(finding) if with_size else ""
        return " ".join(phrase.format(size=size, side=finding.side, zone=finding.zone).split())

    def sentence(self, frame: str, finding: Finding, noun: str) -> str:
        what = "unchanged" if self.outside_film else change(finding, self.before.get(finding.key))
        return frame.format(
            np=noun,
            Np=noun[0].upper() + noun[1:],
            a="a " if KINDS[finding.kind].countable else "",
            change=what,
            Change=what.capitalize(),
            has_changed=HAS_CHANGED[what],
        )

    def positive(self, finding: Finding) -> str:
        if self.compares:
            frames = CHANGE_FRAMES
        else:
            frames = DEVICE_FRAMES if finding.kind in DEVICES else FRAMES
        return self.sentence(self.pick(frames), finding, self.noun(finding))

    def gone(self, finding: Finding) -> str:
        frames = REMOVED_FRAMES if finding.kind in DEVICES else RESOLVED_FRAMES
        return self.sentence(self.pick(frames), finding, self.noun(finding, with_size=False))

    def normals(self, part: str) -> list[str]:
        """The normal statements of a part that are true of the image, in its order."""
        absent = [kind for kind in PARTS[part] if kind not in self.present]
        if part == "devices":
            keys = ["devices"] if len(absent) == 2 and self.style.states_no_devices else []
        elif part == "heart":
            keys = [{"cardiomegaly": "heart", "edema": "edema"}[kind] for kind in absent]
        elif part == "lungs":
            clear = len(absent) == len(PARTS["lungs"]) and "edema" not in self.present
            keys = ["clear"] if clear else [kind for kind in absent if kind == "consolidation"]
        elif part == "pleura":
            keys = ["pleura"] if len(absent) == 2 else absent
        else:
            keys = ["bones"] if self.style.states_bones else []
        return [self.pick(NORMAL[key]) for key in keys if self.due()]

    def body(self) -> str:
        """The findings section."""
        sentences = []
        for part in self.style.order:
            for kind in PARTS[part]:
                sentences += [self.positive(f) for f in self.stated if f.kind == kind]
                sentences += [self.gone(f) for f in self.resolved if f.kind == kind]
            sentences += self.normals(part)
        if not sentences:
            sentences = [self.fallback()]
        return " ".join(sentences)

    def fallback(self) -> str:
        """A true sentence where a terse report has nothing to say: what is absent, else the largest finding."""
        for key in ("pneumothorax", "effusion", "consolidation", "edema"):
            if key not in self.present:
                return self.pick(NORMAL[key])
        largest = max(self.findings, key=lambda finding: finding.size)
        self.stated.append(largest)
        return self.positive(largest)

    def impression(self) -> str:
        if all(kind in DEVICES for kind in self.present):
            return self.pick(NORMAL["all"])
        ranked = sorted(
            (f for f in self.stated if f.kind not in DEVICES), key=lambda finding: IMPORTANCE.index(finding.kind)
        )
        if not ranked:
            return self.fallback()
        sentences = []
        for finding in ranked[:IMPRESSION_LENGTH]:
            frame = "{Change} {np}." if self.compares else "{Np}."
            sentences.append(self.sentence(frame, finding, self.noun(finding)))
        return " ".join(sentences)


def write_report(
    findings: Sequence[Finding],
    previous: Sequence[Finding] | None,
    style: InstitutionStyle,
    complete: bool,
    rng: np.random.Generator,
) -> tuple[str | None, str | None, list[Finding]]:
    """Findings section, impression section (one of them may be None), and the findings they state.

    Args:
        findings: what the image shows.
        previous: what the prior image showed; None where there is no prior.
        style: who writes.
        complete: state every finding and every normal that is due; else omit at the style's rates.
        rng: source of the choice of words.
    """
    writer = _Writer(findings, previous, style, complete, rng)
    lacking, body = rng.random(), writer.body()
    if lacking < style.without_findings:
        return None, body, writer.stated  # the impression then says it all
    if lacking < style.without_findings + style.without_impression:
        return body, None, writer.stated
    return body, writer.impression(), writer.stated


# ---------------------------------------------------------------------------------------------------------------------
# Studies
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhantomStudy:
    """A study in memory: its row of the study table, its truth labels, what was drawn and stated, and its image."""

    record: dict[str, Any]
    truth: dict[str, int]
    findings: tuple[Finding, ...]
    stated: tuple[Finding, ...]
    image: Image.Image = field(repr=False)


def _patient(
    institution: str,
    style: InstitutionStyle,
    seed: int,
    split: str,
    index: int,
    image_size: int,
    difficulty: PhantomDifficulty,
) -> Iterator[PhantomStudy]:
    """One patient's studies, first to last; depends on the arguments alone."""
    stream = [seed, *institution.encode(), SPLITS.index(split), index]
    rng = np.random.default_rng(stream)
    patient_id = f"{institution}{seed}_{split}_{index:05d}"
    sex = "F" if rng.random() < 0.5 else "M"
    names = list(PHENOTYPES)
    phenotype = PHENOTYPES[names[rng.choice(len(names), p=[PHENOTYPES[name]["share"] for name in names])]]
    age = float(rng.integers(20, 70) if phenotype is PHENOTYPES["healthy"] else rng.integers(35, 90))
    race = None if rng.random() < 0.05 else RACES[rng.choice(len(RACES), p=style.races)]
    anatomy = Anatomy.random(rng, sex, age, difficulty.variation)
    weights = np.asarray(difficulty.encounters, float)
    number = int(rng.choice(len(weights), p=weights / weights.sum())) + 1
    when = datetime(2015, 1, 1) + timedelta(minutes=int(rng.integers(5 * 365 * 24 * 60)))
    born = when - timedelta(days=365.25 * age)

    previous: PhantomStudy | None = None
    for encounter, findings in zip(
        range(1, number + 1), _encounters(phenotype, np.random.default_rng([*stream, 1]), difficulty), strict=False
    ):
        exposure, words = (np.random.default_rng([*stream, 2, encounter, i]) for i in range(2))
        if previous:
            gap = int(words.integers(1, 60))
            when += timedelta(days=gap, minutes=int(words.integers(12 * 60)))
        findings_text, impression, stated = write_report(
            findings, previous.findings if previous else None, style, split != "train", words
        )
        study_id = f"{patient_id}_{encounter}"
        prior = previous.record if previous else None
        pool = GENERAL_INDICATIONS if words.random() < 0.4 else phenotype["indications"]
        comparison = f"Chest radiograph {gap} day{'s' if gap > 1 else ''} earlier." if prior else style.no_comparison
        record = {
            "study_id": study_id,
            "patient_id": patient_id,
            "dataset": f"phantom_{institution}",
            "split": split,
            "image": f"images/{study_id}.png",
            "view": "AP" if any(f.kind in DEVICES for f in findings) or words.random() < 0.3 else "PA",
            "indication": None if words.random() < 0.1 else pool[int(words.integers(len(pool)))],
            "comparison": None if not prior and words.random() < 0.3 else comparison,
            "findings": findings_text,
            "impression": impression,
            "prior_study_id": prior and prior["study_id"],
            "prior_image": prior and prior["image"],
            "prior_report": prior and report_text(prior["findings"], prior["impression"]),
            "encounter": encounter,
            "study_datetime": when,
            "sex": sex,
            "age": float((when - born).days // 365.25),
            "race": race,
        }
        image = draw(findings, anatomy, exposure, image_size, difficulty, style.contrast, style.noise)
        previous = PhantomStudy(record, truth_labels(findings), tuple(findings), tuple(stated), image)
        yield previous


def studies(
    institution: str,
    seed: int,
    split: str = "train",
    number: int = 2000,
    image_size: int = 96,
    difficulty: PhantomDifficulty | None = None,
    style: InstitutionStyle | None = None,
) -> Iterator[PhantomStudy]:
    """The first `number` studies of one institution's split, patient after patient, each patient's in order of time.

    A larger `number` continues the same sequence (the last patient of a shorter one may have further encounters).

    Raises:
        StudyError: an unknown institution or split.
    """
    if institution not in INSTITUTIONS:
        raise StudyError(f"phantom institution {institution!r} is unknown; choose one of {', '.join(INSTITUTIONS)}")
    if split not in SPLITS:
        raise StudyError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    difficulty, style = difficulty or PhantomDifficulty(), style or INSTITUTIONS[institution]
    index = made = 0
    while made < number:
        for study in _patient(institution, style, seed, split, index, image_size, difficulty):
            yield study
            made += 1
            if made == number:
                return
        index += 1


TRUTH_SIZES = [
    f"{kind}_{side}_size" if side else f"{kind}_size"
    for kind, spec in KINDS.items()
    for side in (("right", "left") if spec.sided else ("",))
]
TRUTH_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        *(pa.field(condition, pa.int8(), nullable=False) for condition in CONDITIONS),
        *(pa.field(name, pa.float32()) for name in TRUTH_SIZES),  # in [0, 1]; null where absent
        pa.field("present", pa.int8(), nullable=False),  # findings the image shows
        pa.field("stated", pa.int8(), nullable=False),  # findings the report states
    ]
)
REJECTS_SCHEMA = pa.schema([pa.field("study_id", pa.string()), pa.field("reason", pa.string())])


def _truth_row(study: PhantomStudy) -> dict[str, Any]:
    sizes = {f"{f.kind}_{f.side}_size" if f.side else f"{f.kind}_size": f.size for f in study.findings}
    return {
        "study_id": study.record["study_id"],
        **study.truth,
        **sizes,
        "present": len(study.findings),
        "stated": len(study.stated),
    }


def prepare(
    out: Path,
    institution: str,
    seed: int,
    studies: Mapping[str, int] | None = None,
    image_size: int = 96,
    difficulty: PhantomDifficulty | None = None,
    style: InstitutionStyle | None = None,
) -> None:
    """Draw and write one institution as a prepared folder: the splits' tables, images/, truth, rejects (none) and card.

    The same arguments give the same bytes. The folder appears whole or not at all; one prepared earlier is replaced.

    Args:
        out: the folder, by convention `data/phantom_<institution>`.
        institution: a key of `INSTITUTIONS`.
        seed: 0 or more; another seed gives other patients.
        studies: number of studies per split; splits left out get none. Default: `DEFAULT_STUDIES`.
        image_size: side of the images, pixels.
        difficulty, style: in place of the defaults.

    Raises:
        StudyError: an unknown institution or split, a bad number or size, or `out` exists and is not a prepared folder.
    """
    out = Path(out)
    counts = dict(DEFAULT_STUDIES.get(institution, {}) if studies is None else studies)
    if unknown := sorted(set(counts) - set(SPLITS)):
        raise StudyError(f"split {unknown[0]!r} is unknown; choose one of {', '.join(SPLITS)}")
    if institution not in INSTITUTIONS:
        raise StudyError(f"phantom institution {institution!r} is unknown; choose one of {', '.join(INSTITUTIONS)}")
    if seed < 0 or image_size < 32 or min(counts.values(), default=0) < 0:
        raise StudyError("phantom: seed and numbers of studies must be 0 or more, image_size 32 or more")
    if out.exists() and not _is_phantoms(out):
        raise StudyError(f"{out} exists and holds no phantoms; move it away or choose another folder")
    difficulty, style = difficulty or PhantomDifficulty(), style or INSTITUTIONS[institution]

    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        _build(building, institution, seed, counts, image_size, difficulty, style)
        if out.exists():
            old = out.with_name(f".{out.name}.{os.getpid()}.old")
            os.rename(out, old)
            os.rename(building, out)
            shutil.rmtree(old)
        else:
            os.rename(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _is_phantoms(folder: Path) -> bool:
    """Whether a folder is one of ours, which a new drawing replaces whole."""
    try:
        return str(json.loads((folder / "card.json").read_text(encoding="utf-8"))["dataset"]).startswith("phantom_")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _build(
    folder: Path,
    institution: str,
    seed: int,
    counts: Mapping[str, int],
    image_size: int,
    difficulty: PhantomDifficulty,
    style: InstitutionStyle,
) -> None:
    (folder / "images").mkdir(parents=True)
    truth, splits = [], {}
    total = sum(counts.values())
    with tqdm(total=total, desc=f"phantom_{institution}", unit="study", disable=None) as progress:
        for split in SPLITS:
            records = []
            for study in studies(institution, seed, split, counts.get(split, 0), image_size, difficulty, style):
                study.image.save(folder / study.record["image"], compress_level=1)
                records.append(study.record)
                truth.append(_truth_row(study))
                progress.update()
            write_studies(study_table(records), folder / f"{split}.parquet")
            splits[split] = {
                "studies": len(records),
                "patients": len({record["patient_id"] for record in records}),
                "with_prior": sum(record["prior_study_id"] is not None for record in records),
            }
    pq.write_table(pa.Table.from_pylist(truth, TRUTH_SCHEMA), folder / "truth.parquet", compression="zstd")
    pq.write_table(REJECTS_SCHEMA.empty_table(), folder / "rejects.parquet", compression="zstd")
    card = {
        "dataset": f"phantom_{institution}",
        "source": "synthetic phantoms (data_prep/sources/phantom.py); no patient data",
        "credentialed": False,
        "seed": seed,
        "image_size": image_size,
        "splits": splits,
        "rejected": 0,
        "difficulty": asdict(difficulty),
        "style": asdict(style),
        "files": recorded_files(folder),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(_card_text(card), encoding="utf-8")


def _card_text(card: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {split} | {c['studies']} | {c['patients']} | {c['with_prior']} |" for split, c in card["splits"].items()
    )
    style = card["style"]
    return f"""# {card["dataset"]}

Synthetic chest phantoms with generated reports; no patient data. Seed {card["seed"]}, {card["image_size"]}×{card["image_size"]} pixels.

| split | studies | patients | with a prior |
|---|---|---|---|
{rows}

Training reports leave out {style["omission_rate"]:.0%} of the findings that the image shows and {1 - style["negation_rate"]:.0%} of
the normal statements that are due (what they say is true); reports of validation and test are complete.
`truth.parquet` holds what was drawn: the 14 CheXpert conditions and the size of each finding.
"""
