"""Views as institutions, DICOM and the public data sets name them, in the study table's terms."""

from __future__ import annotations

import re
import unicodedata

LATERAL = "lateral"  # stands for every view that is known and not frontal

_WORDS = {
    "PA": "pa, p a, postero anterior, posteroanterior, posterior anterior, pa erect, erect pa, pa upright, upright pa, "
    "pa standing, chest pa, pa chest, thorax pa, torax pa, rx torax pa, frontal pa, pa frontal, pa view, cxr pa, pa cxr, chest x ray pa",
    "AP": "ap, a p, antero posterior, anteroposterior, anterior posterior, ap supine, supine ap, ap portable, portable ap, "
    "ap erect, erect ap, ap upright, upright ap, ap semi erect, ap sitting, ap horizontal, ap mobile, mobile ap, chest ap, "
    "ap chest, thorax ap, torax ap, rx torax ap, portable, frontal ap, ap frontal, ap view, cxr ap, ap cxr, chest x ray ap",
    "frontal": "frontal, front, frontal view, chest frontal, thorax frontal, torax frontal, face, de face, frente",
    LATERAL: "lateral, lat, l, ll, rl, r l, l l, left lateral, right lateral, lateral left, lateral right, llat, rlat, "
    "lateral view, chest lateral, lateral chest, thorax lateral, torax lateral, seitlich, thorax seitlich, perfil, profil, "
    "de profil, latero lateral, laterolateral, lateromedial, mediolateral, xtable lateral, cross table lateral, swimmers, "
    "oblique, oblicua, lao, rao, lpo, rpo, llo, rlo, lld, rld, ap lld, ap rld, pa lld, pa rld, decubitus, "
    "left decubitus, right decubitus, lateral decubitus, ap axial, lordotic, ap lordotic, apical, costal",
}
_VIEWS = {word.strip(): view for view, words in _WORDS.items() for word in words.split(",")}
# Words that say that the view is not known: they are not listed as words that are not known.
NOT_KNOWN = frozenset({"", "unknown", "unk", "n a", "na", "none", "nan", "null", "exclude", "other", "not applicable"})


def view_of(word: str | None) -> str | None:
    """AP, PA, frontal or LATERAL; None where the word is not known, or says that nothing is. In any case; hyphens,
    underscores, points, slashes and accents don't matter."""
    return _VIEWS.get(plain(word)) if isinstance(word, str) else None


def plain(word: str) -> str:
    """The word as the tables above hold it."""
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    letters = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(re.sub(r"[-_/.,:()\s]+", " ", letters).split())
