"""Synthetic frontal chest phantoms with reports: the source that needs no download, no account and no patient.

Every study is drawn from parameters and a seed. What is drawn is known exactly (`truth.parquet`); what the report says of it depends on
who wrote it. In training, the terse institutions leave out many findings that the image shows and never deny them, as real
reporting habits do; reports of validation and test are complete for every institution, like a careful second read. So a
model that imitates the training reports omits, and a reward from complete references has something true to mend.

A report never contradicts the truth: whatever it states or denies is so, and its temporal words follow the drawn sizes.
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

from data_prep.study import SPLITS, StudyError, report_text, study_table, write_studies
from rewards.conditions import CONDITIONS

DEFAULT_STUDIES = {"train": 2000, "validation": 100, "test": 150}
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
        0.16,
        ("", "", ""),
        ("right central venous line", "right central line", "right central venous catheter", "right jugular catheter"),
        sided=False,
        countable=True,
        resolves=0.5,
        changes=0.0,
    ),
    "pacemaker": Kind(
        "Support Devices",
        0.10,
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
        resolves=0.15,
        changes=0.4,
    ),
    "edema": Kind(
        "Edema",
        0.20,
        ("mild", "moderate", "severe"),
        ("{size} pulmonary edema", "{size} interstitial edema", "{size} edema", "{size} interstitial pulmonary edema"),
        sided=False,
        resolves=0.5,
    ),
    "consolidation": Kind(
        "Consolidation",
        0.13,
        ("small", "moderate", "large"),
        (
            "{size} {side} {zone} lobe consolidation",
            "{size} consolidation in the {side} {zone} lobe",
            "{size} {side} {zone} consolidation",
            "{size} area of consolidation in the {side} {zone} lobe",
        ),
        zoned=True,
        countable=True,
        resolves=0.5,
    ),
    "opacity": Kind(
        "Lung Opacity",
        0.13,
        ("small", "moderate", "large"),
        (
            "{size} {side} {zone} lobe opacity",
            "{size} hazy opacity in the {side} {zone} lobe",
            "{size} {side} {zone} opacity",
            "{size} patchy opacity in the {side} {zone} lobe",
        ),
        zoned=True,
        countable=True,
        resolves=0.5,
    ),
    "nodule": Kind(
        "Lung Lesion",
        0.08,
        ("small", "", "large"),
        (
            "{size} {side} {zone} lobe nodule",
            "{size} nodule in the {side} {zone} lobe",
            "{size} {side} {zone} lung nodule",
            "{size} {side} {zone} nodule",
        ),
        zoned=True,
        countable=True,
        resolves=0.2,
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
        resolves=0.5,
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
        resolves=0.4,
    ),
    "pneumothorax": Kind(
        "Pneumothorax",
        0.08,
        ("small", "moderate", "large"),
        (
            "{size} {side} pneumothorax",
            "{size} pneumothorax on the {side}",
            "{size} {side} apical pneumothorax",
            "{size} apical pneumothorax on the {side}",
        ),
        countable=True,
        resolves=0.6,
    ),
}
DEVICES = ("line", "pacemaker")

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
        subtle_share: share of findings whose size is drawn from `subtle_sizes` and not from `plain_sizes`.
        subtle_sizes, plain_sizes: ranges of size, in [0, 1].
        contrast: factor on the brightness of every finding in the lungs.
        noise: standard deviation of the detector noise, grey levels of 255, at 96 pixels.
        variation: factor on how much anatomy, position and exposure vary.
        prevalence: factor on the prevalence of every kind of finding.
        encounters: weights of 1, 2, … encounters per patient.
        turnover: factor on how often findings resolve and change between encounters.
    """

    subtle_share: float = 0.25
    subtle_sizes: tuple[float, float] = (0.05, 0.30)
    plain_sizes: tuple[float, float] = (0.30, 1.0)
    contrast: float = 1.0
    noise: float = 4.0
    variation: float = 1.0
    prevalence: float = 1.0
    encounters: tuple[float, ...] = (0.50, 0.20, 0.12, 0.08, 0.06, 0.04)
    turnover: float = 1.0


@dataclass(frozen=True)
class InstitutionStyle:
    """How one institution writes.

    Attributes:
        order: the sequence of the parts of its findings section.
        favourite: index of the phrasing it prefers in each pool of phrasings (modulo the pool's length).
        habit: probability that it uses the favourite; else any of the pool, evenly.
        omission_rate: probability that a training report leaves out a finding the image shows (or one that resolved).
        negation_rate: probability that a training report states a normal that is due.
        without_findings, without_impression: shares of reports that lack this section.
        states_no_devices, states_bones: whether its complete reports deny devices, and mention the bones.
        races: weights of `RACES`.
        contrast, noise: factors on the image's contrast and noise. Equal at the three training institutions, or
            a model could tell by the image who wrote the report, and so who omits.
    """

    order: tuple[str, ...]
    favourite: int
    habit: float = 0.6
    omission_rate: float = 0.0
    negation_rate: float = 1.0
    without_findings: float = 0.0
    without_impression: float = 0.0
    states_no_devices: bool = False
    states_bones: bool = False
    races: tuple[float, ...] = (0.60, 0.18, 0.08, 0.10, 0.04)
    contrast: float = 1.0
    noise: float = 1.0


RACES = ("White", "Black", "Asian", "Hispanic", "Other")
INSTITUTIONS: dict[str, InstitutionStyle] = {
    "harbor": InstitutionStyle(
        order=("heart", "lungs", "pleura", "devices", "bones"),
        favourite=1,
        omission_rate=0.7,
        negation_rate=0.6,
        without_impression=0.15,
    ),
    "summit": InstitutionStyle(
        order=("lungs", "pleura", "heart", "devices", "bones"),
        favourite=2,
        omission_rate=0.7,
        negation_rate=0.6,
        without_findings=0.15,
        races=(0.45, 0.12, 0.20, 0.18, 0.05),
    ),
    "prairie": InstitutionStyle(
        order=("devices", "heart", "lungs", "pleura", "bones"),
        favourite=0,
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
def _grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(n, dtype=np.float32) + 0.5) / n
    return centres[None, :], centres[:, None]


@lru_cache(maxsize=4)
def _texture_bank(n: int) -> np.ndarray:
    """Smooth noise, float32 [2n, 2n], mean 0, spread 1, its grain a fixed fraction of the image whatever its size."""
    rng = np.random.default_rng(20240229)
    total = np.zeros((2 * n, 2 * n), np.float32)
    for cells, weight in ((24, 0.6), (56, 0.8)):
        coarse = Image.fromarray(rng.standard_normal((2 * cells, 2 * cells)).astype(np.float32))
        total += weight * np.asarray(coarse.resize((2 * n, 2 * n), Image.Resampling.BICUBIC))
    return (total - total.mean()) / total.std()


def _step(values: np.ndarray) -> np.ndarray:
    """Clip to [0, 1], in place where possible: the soft edge of every shape."""
    return np.clip(values, 0.0, 1.0, out=values)


class _Canvas:
    """The brightness map being drawn, float32 [n, n] in about [0, 1], with windowed drawing for speed."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.x, self.y = _grid(n)
        self.edge = np.float32(max(1.0 / 0.010, 1.0))
        self.value = np.empty((n, n), np.float32)

    def window(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
        n = self.n
        return (
            slice(max(0, int(y0 * n)), min(n, int(y1 * n) + 2)),
            slice(max(0, int(x0 * n)), min(n, int(x1 * n) + 2)),
        )

    def ellipse(
        self, cx: float, cy: float, rx: float, ry: float, hardness: float, tilt: float = 0.0
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Window and soft mask of an ellipse: 1 inside, falling over a share 1/hardness of its radius."""
        reach = 1.0 + abs(tilt)
        rows, columns = self.window(cx - rx * reach, cx + rx * reach, cy - ry * reach, cy + ry * reach)
        dx = (self.x[:, columns] - np.float32(cx)) / np.float32(rx)
        dy = (self.y[rows] - np.float32(cy)) / np.float32(ry)
        if tilt:
            q = (dx - np.float32(tilt) * dy) ** 2
            q += (dy - np.float32(tilt * 0.5) * dx) ** 2
        else:
            q = dx * dx + dy * dy
        np.subtract(np.float32(1.0), q, out=q)
        q *= np.float32(hardness)
        return (rows, columns), _step(q)

    def paint(self, window: tuple[slice, slice], mask: np.ndarray, brightness: float) -> None:
        """Cover the window with a brightness, as far as the mask says."""
        region = self.value[window]
        region += mask * (np.float32(brightness) - region)


def draw(
    findings: Sequence[Finding],
    anatomy: Anatomy,
    rng: np.random.Generator,
    size: int = 96,
    difficulty: PhantomDifficulty | None = None,
    contrast: float = 1.0,
    noise: float = 1.0,
) -> Image.Image:
    """Draw a frontal chest phantom.

    The patient's right lung is on image left. `rng` gives the position, inspiration, exposure and noise of this exposure
    and is drawn from in a fixed order, so equal generators with other findings give images that differ by those alone.

    Args:
        findings: what to show; at most one of each kind and side.
        anatomy: the patient.
        rng: source of this exposure's variation.
        size: side of the square image, pixels; any size from 32.
        difficulty: contrast of findings, noise and variation.
        contrast, noise: the institution's factors.

    Returns:
        An 8-bit greyscale image, size × size.
    """
    difficulty = difficulty or PhantomDifficulty()
    n = size * SUPERSAMPLING
    shift = rng.uniform(-1, 1, 8) * difficulty.variation
    texture_at = rng.integers(0, n, 2)
    canvas = _Canvas(n)
    x, y, edge, value = canvas.x, canvas.y, canvas.edge, canvas.value
    by_key = {finding.key: finding for finding in findings}
    gain = np.float32(difficulty.contrast)

    zoom = 1.0 + 0.03 * shift[0]
    cx = anatomy.midline + 0.018 * shift[1]
    up = 0.015 * shift[2]
    width = anatomy.half_width * zoom
    apex, widest = anatomy.apex + up, anatomy.widest + up
    dome = anatomy.dome + up + 0.018 * shift[3]

    # Body: bright wall on a dark background, brighter towards the abdomen.
    body = _step(
        (np.float32(width + 0.095) + 0.05 * np.clip(y - 0.35, -0.25, 0.1) - np.abs(x - np.float32(cx))) * edge * 0.6
    )
    np.multiply(body, np.float32(anatomy.tissue) + np.float32(0.14) * y, out=value)
    value += np.float32(0.04)

    # Each lung between the mediastinum, the rib cage and the diaphragm.
    t = np.clip((widest - y) / (widest - apex), 0.0, 1.0)
    cage = (
        width * (0.12 + 0.88 * np.sqrt(np.clip(1.0 - t**2.4, 0.0, 1.0))) * (1.0 - 0.18 * np.clip(y - widest, 0.0, 1.0))
    )
    medial = 0.045 + 0.10 * np.clip((apex + 0.09 - y) / 0.09, 0.0, 1.2) ** 2
    bank = _texture_bank(n)
    texture = bank[texture_at[0] : texture_at[0] + n, texture_at[1] : texture_at[1] + n]
    edema = by_key.get(("edema", ""))
    lungs = np.zeros((n, n), np.float32)
    markings = 0.018 + (0.035 * edema.size if edema else 0.0)
    for side, sign in (("right", -1.0), ("left", 1.0)):
        reach = sorted((cx, cx + sign * (width + 0.05)))
        rows, columns = canvas.window(reach[0], reach[1], apex - 0.03, 1.0)
        d = np.float32(sign) * (x[:, columns] - np.float32(cx))  # distance from the midline
        yy, outer, inner = y[rows], cage[rows].astype(np.float32), medial[rows].astype(np.float32)
        atelectasis = by_key.get(("atelectasis", side))
        top = dome + (0.02 if side == "left" else 0.0) - (0.03 * atelectasis.size if atelectasis else 0.0)
        floor = np.float32(top) + np.float32(0.10) * ((d - np.float32(0.45 * width)) / np.float32(0.5 * width)) ** 2
        mask = _step((outer - d) * edge)
        mask *= _step((d - inner) * edge)
        mask *= _step((floor - yy) * edge)
        lungs[rows, columns] = mask

        lung = texture[rows, columns] * np.float32(markings)
        lung += np.float32(0.17) + np.float32(0.05) * yy
        if edema:
            q = ((d - np.float32(0.42 * width)) / np.float32(0.62 * width)) ** 2
            q = q + ((yy - np.float32(0.5 * (apex + top) + 0.06)) / np.float32(0.34)) ** 2
            lung += _step(1.0 - q) * (gain * np.float32(0.07 + 0.21 * edema.size))
        for kind in ("consolidation", "opacity", "nodule"):
            finding = by_key.get((kind, side))
            if finding:
                _draw_focus(canvas, lung, finding, (rows, columns), d, yy, width, apex, top, texture, gain)
        if atelectasis:
            _draw_atelectasis(lung, atelectasis, d, yy, width, top, gain)
        pneumothorax = by_key.get(("pneumothorax", side))
        if pneumothorax:
            depth = (0.025 + 0.16 * pneumothorax.size) * (
                0.8 + 0.9 * np.clip((widest - yy) / (widest - apex), 0.0, 1.0)
            )
            below = np.float32(apex + 0.02 + 0.10 * pneumothorax.size)
            pleura = np.minimum((outer - depth).astype(np.float32) - d, (yy - below) * np.float32(1.2))
            air = _step(-pleura * edge)
            lung += (np.float32(0.06 - 0.035 * gain) - lung) * air
            line = _step(1.0 - np.abs(pleura) * np.float32(1 / 0.011))
            lung += line * np.float32(0.16) * gain
            lung += (1.0 - air) * np.float32(0.05 * pneumothorax.size)
        effusion = by_key.get(("effusion", side))
        if effusion:
            height = 0.055 + 0.27 * effusion.size
            level = np.float32(top + 0.10) - np.float32(height) * (1.0 + 0.25 * (d / np.float32(width)) ** 2)
            fluid = _step((yy - level) * (edge * np.float32(0.45)))
            lung += (np.float32(0.60) - lung) * fluid * np.float32(min(1.0, 0.95 * gain))
        region = value[rows, columns]
        region += mask * (lung - region)

    # Ribs over lungs and wall: posterior ones slope down to the side, anterior ones cross them, fainter.
    distance = np.abs(x - np.float32(cx))
    chest = value[: int(0.86 * n)]
    row = y[: int(0.86 * n)]
    inside = _step((np.float32(width + 0.01) - distance) * edge) * np.float32(anatomy.rib_contrast)
    for bend, lift, weight in ((0.9, 0.0, 1.0), (-0.8, 0.03, 0.45)):
        phase = (row - np.float32(apex + lift)) - np.float32(bend) * (distance - np.float32(0.14)) ** 2 * 1.6
        phase *= np.float32(1.0 / anatomy.rib_spacing)
        phase -= np.rint(phase)
        np.abs(phase, out=phase)
        rib = _step((np.float32(0.27) - phase) * np.float32(6.0))
        rib *= inside * np.float32(weight)
        chest += rib

    # Midline structures, heart and vessels cover the lungs.
    rows, columns = canvas.window(cx - 0.09, cx + 0.09, 0.0, 1.0)
    spine = _step((np.float32(0.052) - distance[:, columns]) * edge * np.float32(0.7))
    value[rows, columns] += spine * np.float32(0.07)
    trachea_rows, columns = canvas.window(cx - 0.03, cx + 0.03, 0.0, apex + 0.22)
    trachea = _step((np.float32(0.017) - np.abs(x[:, columns] - np.float32(cx))) * edge)
    value[trachea_rows, columns] -= trachea * np.float32(0.13)
    canvas.paint(*canvas.ellipse(cx + 0.050, apex + 0.23, anatomy.knob + 0.02, anatomy.knob + 0.025, 2.5), 0.56)
    for sign in (-1.0, 1.0):
        window, mask = canvas.ellipse(cx + sign * 0.085, 0.5 * (apex + dome) + 0.02, 0.05, 0.075, 1.5)
        value[window] += mask * np.float32(0.07)
        collar = canvas.ellipse(
            cx + sign * 0.20, apex + 0.035 + 0.01 * shift[4], 0.19, 0.020, 2.0, tilt=-0.6 * sign * 0.1
        )
        value[collar[0]] += collar[1] * np.float32(0.10)
        if anatomy.breast:
            window, mask = canvas.ellipse(cx + sign * 0.55 * width, dome - 0.02, 0.17, 0.12, 1.2)
            value[window] += mask * np.float32(anatomy.breast)
    cardiomegaly = by_key.get(("cardiomegaly", ""))
    ratio = anatomy.heart_ratio + 0.008 * shift[5]
    if cardiomegaly:
        ratio = 0.53 + 0.20 * cardiomegaly.size + 0.2 * (ratio - 0.435)
    radius = ratio * width
    heart_x = cx + 0.03 + 0.28 * (radius - 0.15)
    heart = canvas.ellipse(heart_x, dome - 0.075, radius, 0.125 + 0.35 * (radius - 0.15), 4.0, anatomy.heart_tilt)
    canvas.paint(*heart, 0.66)

    for kind in DEVICES:
        finding = by_key.get((kind, ""))
        if finding:
            _draw_device(canvas, finding, cx, apex, dome, width)

    small = value.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean(axis=(1, 3))
    small = 0.45 + (small - 0.45) * np.float32(contrast * (1.0 + 0.08 * shift[6])) + np.float32(0.03 * shift[7])
    small *= 255.0
    small += rng.standard_normal((size, size), np.float32) * np.float32(difficulty.noise * noise)
    return Image.fromarray(np.clip(small, 0, 255).astype(np.uint8))


def _draw_focus(canvas, lung, finding, window, d, y, width, apex, top, texture, gain) -> None:
    """A focal finding inside one lung's window: consolidation (dense, firm edge), opacity (hazy, mottled), nodule (round)."""
    u, v = finding.place
    height = top - apex
    if finding.zone == "upper":
        centre_d, centre_y = (0.42 + 0.22 * u) * width, apex + (0.26 + 0.14 * v) * height
    else:
        centre_d, centre_y = (0.58 + 0.20 * u) * width, apex + (0.70 + 0.14 * v) * height
    if finding.kind == "nodule":
        radius_d = radius_y = 0.020 + 0.032 * finding.size
    elif finding.kind == "consolidation":
        radius_d, radius_y = 0.060 + 0.065 * finding.size, 0.060 + 0.075 * finding.size
    else:
        radius_d, radius_y = 0.085 + 0.060 * finding.size, 0.085 + 0.070 * finding.size
    q = ((d - np.float32(centre_d)) / np.float32(radius_d)) ** 2
    q = q + ((y - np.float32(centre_y)) / np.float32(radius_y)) ** 2
    rows, columns = window
    if finding.kind == "nodule":
        lung += _step((1.0 - q) * 2.0) * (gain * np.float32(0.24 + 0.10 * finding.size))
    elif finding.kind == "consolidation":
        q += np.float32(0.12) * texture[rows, columns]
        lung += _step((1.0 - q) * 2.2) * (gain * np.float32(0.26 + 0.14 * finding.size))
    else:
        mottle = _step(np.float32(0.75) + np.float32(0.35) * texture[rows, columns])
        lung += _step(1.0 - q) * mottle * (gain * np.float32(0.16 + 0.14 * finding.size))


def _draw_atelectasis(lung, finding, d, y, width, top, gain) -> None:
    """Two oblique plates above the diaphragm."""
    u, v = finding.place
    reach = _step((d - np.float32(0.28 * width)) * 20.0) * _step((np.float32(0.92 * width) - d) * 20.0)
    for i in range(2):
        centre = top - 0.025 - 0.045 * i - 0.02 * v
        distance = np.abs(y - np.float32(centre) - np.float32(0.35 * (u - 0.5)) * (d - np.float32(0.6 * width)))
        plate = _step(np.float32(1.6) - distance / np.float32(0.007 + 0.006 * finding.size))
        lung += plate * reach * (gain * np.float32(0.14 + 0.16 * finding.size))


def _draw_device(canvas, finding, cx, apex, dome, width) -> None:
    """A central venous line from the right neck to the superior vena cava, or a left pacemaker with its lead."""
    n = canvas.n
    u, v = finding.place
    layer = Image.new("L", (n, n), 0)
    pen = ImageDraw.Draw(layer)
    thickness = max(2, round(0.013 * n))

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(px * n, py * n) for px, py in points]

    if finding.kind == "line":
        end = apex + 0.28 + 0.08 * v
        pen.line(
            at(
                (cx - 0.15 - 0.05 * u, 0.0),
                (cx - 0.13 - 0.03 * u, apex - 0.02),
                (cx - 0.065, apex + 0.13),
                (cx - 0.055, end),
            ),
            fill=255,
            width=thickness,
            joint="curve",
        )
    else:
        left, upper = cx + 0.54 * width + 0.03 * u, apex + 0.07 + 0.03 * v
        pen.rounded_rectangle(at((left, upper), (left + 0.10, upper + 0.085)), radius=0.025 * n, fill=255)
        pen.line(
            at(
                (left + 0.01, upper + 0.02),
                (cx + 0.06, upper - 0.01),
                (cx - 0.02, upper + 0.08),
                (cx - 0.03, dome - 0.18),
                (cx + 0.04, dome - 0.08),
            ),
            fill=200,
            width=thickness,
            joint="curve",
        )
    mask = np.asarray(layer, np.float32)
    mask *= np.float32((0.45 + 0.55 * finding.size) / 255.0)
    canvas.value += mask * (np.float32(0.95) - canvas.value)


# ---------------------------------------------------------------------------------------------------------------------
# Patients and how their findings change
# ---------------------------------------------------------------------------------------------------------------------

UNCHANGED_WITHIN = 0.05  # sizes that differ by at most this read as unchanged; a drawn change is at least 0.15


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
    slots = [(kind, side) for kind, spec in KINDS.items() for side in (("right", "left") if spec.sided else ("",))]
    present: dict[tuple[str, str], Finding] = {}
    first = True
    while True:
        following: dict[tuple[str, str], Finding] = {}
        for kind, side in slots:
            spec = KINDS[kind]
            rate = min(0.9, spec.prevalence * difficulty.prevalence * phenotype.get(kind, phenotype["other"]))
            resolves = min(0.95, spec.resolves * difficulty.turnover)
            before = present.get((kind, side))
            if before is None:
                # In later encounters at the rate that balances what resolves.
                chance = rate if first else min(0.9, rate * max(resolves, 0.1) / (1.0 - rate))
                if rng.random() < chance:
                    following[kind, side] = _new_finding(kind, side, rng, difficulty)
            elif rng.random() >= resolves:
                following[kind, side] = replace(before, size=_next_size(before.size, spec, rng, difficulty))
        present, first = following, False
        yield list(present.values())


def _next_size(size: float, spec: Kind, rng: np.random.Generator, difficulty: PhantomDifficulty) -> float:
    if rng.random() < min(1.0, spec.changes * difficulty.turnover):
        step = rng.uniform(0.2, 0.4) * (1 if rng.random() < 0.5 else -1)
        if 0.05 <= size + step <= 1.0:
            return float(size + step)
        if 0.05 <= size - step <= 1.0:
            return float(size - step)
    return float(np.clip(size + rng.uniform(-UNCHANGED_WITHIN, UNCHANGED_WITHIN), 0.05, 1.0))


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

# Sentences around a noun phrase: {np} as it stands, {Np} with a capital, {a} its article. First without a prior,
# then with one; the same index is the same habit.
FRAMES = ("There is {a}{np}.", "{Np}.", "{Np} {is} seen.", "{Np} {is} noted.")
CHANGE_FRAMES = ("{Change} {np}.", "{Np}, {change}.", "{Np} {has_changed}.", "{Np}, {change} from the prior.")
RESOLVED_FRAMES = ("Resolved {np}.", "{Np} has resolved.", "The {np} has resolved.", "Previous {np} has resolved.")
REMOVED_FRAMES = ("{Np} has been removed.", "The {np} has been removed.")
DEVICE_FRAMES = ("{Np} in place.", "{Np} is in place.", "There is {a}{np}.", "{Np} is present.")
DEVICE_CHANGE_FRAMES = ("{Change} {np}.", "{Np}, {change}.", "{Np} {has_changed}.", "{Np}, {change} from the prior.")
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
        "Normal chest.",
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
IMPRESSION_LENGTH = 4


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
        self.before = {finding.key: finding for finding in previous or ()}
        self.findings = list(findings)
        omission = 0.0 if complete else style.omission_rate
        self.stated = [f for f in self.findings if rng.random() >= omission]
        now = {finding.key for finding in self.findings}
        self.resolved = [f for f in previous or () if f.key not in now and rng.random() >= omission]
        self.present = {finding.kind for finding in self.findings}

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
        what = change(finding, self.before.get(finding.key))
        return frame.format(
            np=noun,
            Np=noun[0].upper() + noun[1:],
            a="a " if KINDS[finding.kind].countable else "",
            **{"is": "is"},
            change=what,
            Change=what.capitalize(),
            has_changed=HAS_CHANGED[what],
        )

    def positive(self, finding: Finding) -> str:
        device = finding.kind in DEVICES
        if self.has_prior:
            frames = DEVICE_CHANGE_FRAMES if device else CHANGE_FRAMES
        else:
            frames = DEVICE_FRAMES if device else FRAMES
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
            frame = "{Change} {np}." if self.has_prior else "{Np}."
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
    body, impression = writer.body(), writer.impression()
    lacking = rng.random()
    if lacking < style.without_findings:
        return None, body if complete else impression, writer.stated
    if lacking < style.without_findings + style.without_impression:
        return body, None, writer.stated
    return body, impression, writer.stated


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
        comparison = f"Chest radiograph {gap} day{'s' if gap > 1 else ''} earlier." if prior else "None."
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
    number: int = DEFAULT_STUDIES["train"],
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
    number: Mapping[str, int] | None = None,
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
        number: studies per split; splits left out get none. Default: `DEFAULT_STUDIES`.
        image_size: side of the images, pixels.
        difficulty, style: in place of the defaults.

    Raises:
        StudyError: an unknown institution or split, a bad number or size, or `out` exists and is not a prepared folder.
    """
    out = Path(out)
    number = dict(DEFAULT_STUDIES if number is None else number)
    if unknown := sorted(set(number) - set(SPLITS)):
        raise StudyError(f"split {unknown[0]!r} is unknown; choose one of {', '.join(SPLITS)}")
    if institution not in INSTITUTIONS:
        raise StudyError(f"phantom institution {institution!r} is unknown; choose one of {', '.join(INSTITUTIONS)}")
    if seed < 0 or image_size < 32 or min(number.values(), default=0) < 0:
        raise StudyError("phantom: seed and numbers of studies must be 0 or more, image_size 32 or more")
    if out.exists() and not (out / "card.json").is_file():
        raise StudyError(f"{out} exists and is not a prepared folder; move it away or choose another folder")
    difficulty, style = difficulty or PhantomDifficulty(), style or INSTITUTIONS[institution]

    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        _build(building, institution, seed, number, image_size, difficulty, style)
        if out.exists():
            old = out.with_name(f".{out.name}.{os.getpid()}.old")
            os.rename(out, old)
            os.rename(building, out)
            shutil.rmtree(old)
        else:
            os.rename(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _build(
    folder: Path,
    institution: str,
    seed: int,
    number: Mapping[str, int],
    image_size: int,
    difficulty: PhantomDifficulty,
    style: InstitutionStyle,
) -> None:
    (folder / "images").mkdir(parents=True)
    truth, counts = [], {}
    total = sum(number.values())
    with tqdm(total=total, desc=f"phantom_{institution}", unit="study", disable=None) as progress:
        for split in SPLITS:
            records = []
            for study in studies(institution, seed, split, number.get(split, 0), image_size, difficulty, style):
                study.image.save(folder / study.record["image"], compress_level=1)
                records.append(study.record)
                truth.append(_truth_row(study))
                progress.update()
            write_studies(study_table(records), folder / f"{split}.parquet")
            counts[split] = {
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
        "splits": counts,
        "rejected": 0,
        "difficulty": asdict(difficulty),
        "style": asdict(style),
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
