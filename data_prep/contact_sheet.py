"""One picture of films as they were prepared, to be looked at before training."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from foundation.files import write_bytes

COLUMNS, ROWS, MARKED = 8, 6, 8  # films, and how many of least and of most contrast are among them
_CELL, _LABEL, _EDGE = 128, 12, 3  # pixels
LEAST, MOST, OTHER = (230, 80, 60), (70, 130, 230), (40, 40, 40)


def chosen(images: pa.Table) -> list[tuple[str, float, str]]:
    """(image, deviation, `least`, `most` or `other`) of at most COLUMNS × ROWS films: those of least contrast first, those of
    most last, others evenly between. Of few films, all."""
    good = images.filter(pc.is_null(images.column("problem"))).sort_by(
        [("deviation", "ascending"), ("image", "ascending")]
    )
    number = good.num_rows
    marked = min(MARKED, number // 4)
    between = COLUMNS * ROWS - 2 * marked
    middle = np.unique(np.linspace(marked, number - marked - 1, min(between, number - 2 * marked)).round().astype(int))
    rows = [*range(marked), *middle.tolist(), *range(number - marked, number)]
    kinds = ["least"] * marked + ["other"] * len(middle) + ["most"] * marked
    names, deviations = good.column("image").to_pylist(), good.column("deviation").to_pylist()
    return [(names[row], deviations[row], kind) for row, kind in zip(rows, kinds, strict=True)]


def draw_contact_sheet(images: pa.Table, whole: Path, path: Path) -> bool:
    """Write the sheet of `images` (folder.IMAGES_SCHEMA), which lie in `whole`, to `path`; False where there is no film.

    Each film has its standard deviation (of 255) below it; least contrast is framed in red, most in blue.
    """
    films = chosen(images)
    if not films:
        return False
    sheet = Image.new("RGB", (COLUMNS * _CELL, -(-len(films) // COLUMNS) * (_CELL + _LABEL)), (0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for number, (name, deviation, kind) in enumerate(films):
        left, top = number % COLUMNS * _CELL, number // COLUMNS * (_CELL + _LABEL)
        colour = {"least": LEAST, "most": MOST}.get(kind, OTHER)
        draw.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), outline=colour, width=_EDGE)
        with Image.open(whole / name) as film:
            film.thumbnail((_CELL - 2 * _EDGE, _CELL - 2 * _EDGE))
            sheet.paste(film.convert("RGB"), (left + (_CELL - film.width) // 2, top + (_CELL - film.height) // 2))
        draw.text((left + 4, top + _CELL), f"{deviation:g}", fill=(200, 200, 200))
    drawing = BytesIO()
    sheet.save(drawing, "PNG")
    write_bytes(path, drawing.getvalue())
    return True
