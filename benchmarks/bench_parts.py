"""What `--shard i/n` saves: CPU seconds of reading a synthetic MIMIC-CXR in n parts, when each part read all reports and now.

    python -m benchmarks.bench_parts [--parts 8] [--studies 40000] [--images 66000]

One part after another, as on n machines; the two ways alternate. What each part reads all of is the index: two tables and the
names in the archive of reports.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.bench_data import make_mimic_index
from benchmarks.keep import keep
from data_prep.parts import Shard
from data_prep.prepare import read_source
from data_prep.source import Options
from data_prep.sources import mimic_cxr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m benchmarks.bench_parts")
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--studies", type=int, default=40_000)
    parser.add_argument("--images", type=int, default=66_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_parts_") as name:
        root = Path(name) / "mimic"
        make_mimic_index(root, given.studies, given.images)
        options = Options("mimic")
        before, now, studies = [], [], 0
        for index in range(1, given.parts + 1):
            begin = time.process_time()
            everything = len(read_source(mimic_cxr, root, options).studies)  # as every part did
            middle = time.process_time()
            studies += len(read_source(mimic_cxr, root, replace(options, part=Shard(index, given.parts))).studies)
            before.append(middle - begin)
            now.append(time.process_time() - middle)
        if studies != everything:
            raise SystemExit(f"{studies} studies in the parts, {everything} in one run")
    result = {
        "parts": given.parts,
        "studies": studies,
        "CPU seconds of all parts, each reading all reports": round(sum(before), 1),
        "CPU seconds of all parts, each reading its own": round(sum(now), 1),
        "one run": round(float(np.median(before)), 1),
        "ratio": round(sum(now) / sum(before), 3),
    }
    keep("parts", result)


if __name__ == "__main__":
    main()
