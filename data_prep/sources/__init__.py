"""One module a source. Each has

- `inputs(root, options) -> list[Path]`: the index files that decide what is found (fingerprinted; cheap to list), and
- `read(root, options) -> source.Found`: the studies.
"""

SOURCES = {
    "mimic": "data_prep.sources.mimic_cxr",
    "chexpert_plus": "data_prep.sources.chexpert_plus",
    "rexgradient": "data_prep.sources.rexgradient",
    "iu_xray": "data_prep.sources.iu_xray",
    "rexrank": "data_prep.sources.rexrank",
    "custom": "data_prep.sources.custom",
}
