"""DICOM files as upright 8-bit grey images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def read_dicom(path: Path) -> Image.Image:
    """The file's pixels in 8-bit grey: rescaled, windowed as the file says (else minimum to maximum), black for air.

    MONOCHROME1 (low is white) is inverted. Compressed transfer syntaxes need the pylibjpeg packages.

    Raises:
        ValueError: not a DICOM file, no grey image in it, or its compression has no decoder here.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        file = pydicom.dcmread(path)
        photometric = file.PhotometricInterpretation
        if photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise ValueError(f"photometric interpretation {photometric}, expected MONOCHROME1 or MONOCHROME2")
        pixels = apply_modality_lut(file.pixel_array, file)
        pixels = np.asarray(apply_voi_lut(pixels, file), dtype=np.float32)
    except InvalidDicomError as error:
        raise ValueError(f"not a DICOM file ({error})") from error
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
        raise ValueError(f"no readable image in the DICOM file ({error})") from error
    if pixels.ndim == 3:  # several frames: the first
        pixels = pixels[0]
    from data_prep.images import scale_to_8_bits

    grey = scale_to_8_bits(pixels)
    return Image.fromarray(255 - grey if photometric == "MONOCHROME1" else grey)
