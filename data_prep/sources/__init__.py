"""One module a source. Each has

- `inputs(root, options) -> list[Path]`: the index files that decide what is found (fingerprinted; cheap to list), and
- `read(root, options) -> source.Found`: the studies.
"""

SOURCES = {
    "iu_xray": "data_prep.sources.iu_xray",
}
