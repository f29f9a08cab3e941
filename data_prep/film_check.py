"""Whether a picture can be a frontal chest film at all, as far as its bytes and its header say."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.dicom import is_dicom, may_be_dicom, parse
from data_prep.dicom_headers import FILMS, view_word
from data_prep.images import DECODE_ERRORS, ImageError
from data_prep.views import LATERAL, plain, view_of

# Words of BodyPartExamined, ProtocolName and the like for what is no chest; others, and none, say nothing.
_CHEST = ("chest", "thorax", "torax", "lung", "pulmo", "heart", "cor", "rib", "sternum", "clavicle", "bed")
# Our choice, of 255: a scan with a yellow cast or a coloured stamp stays below it, a photograph does not.
_COLOUR = 12.0
_THUMBNAIL = 128  # pixels that colour is measured on


def why_no_film(content: bytes) -> str | None:
    """What speaks against a frontal chest film, in words that follow "this is"; None where nothing does.

    A DICOM header's modality, view and body part; of other pictures their colours. A film without a header that says so may
    be a lateral one, or a hand's: that cannot be known here.

    Raises:
        ImageError: not a picture that can be read.
    """
    try:
        if is_dicom(content) or may_be_dicom(content):
            return _by_header(parse(content, pixels=False))
        with Image.open(BytesIO(content)) as image:
            if image.mode in ("L", "LA", "1", "F") or image.mode.startswith("I"):
                return None
            image.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
            pixels = np.asarray(ImageOps.contain(image.convert("RGB"), (_THUMBNAIL, _THUMBNAIL)), np.float32)
    except UnidentifiedImageError as error:
        raise ImageError("no picture in a form that can be read (DICOM, PNG, JPEG)") from error
    except DECODE_ERRORS as error:
        raise ImageError(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error
    spread = float((pixels.max(axis=2) - pixels.min(axis=2)).mean())
    return f"a colour picture (its channels differ by {spread:.0f} of 255 on average)" if spread > _COLOUR else None


def _by_header(header: object) -> str | None:
    modality = str(header.get("Modality") or "")
    if modality not in FILMS:
        return f"no X-ray film (modality {modality[:16]})"
    word = view_word(header)
    if view_of(word) == LATERAL:
        return f"a lateral or oblique view ({word[:40]})"
    part = plain(str(header.get("BodyPartExamined") or ""))
    if part and not any(known in part for known in _CHEST):
        return f"a film of another part of the body ({part[:40]})"
    return None
