"""How fast data preparation is, and how much memory it takes. Prints one JSON object.

    python -m benchmarks.bench_data                 # all three
    python -m benchmarks.bench_data images --files 60 --workers 2
    python -m benchmarks.bench_data memory --small 1000 --large 100000
    python -m benchmarks.bench_data tables --studies 227835 --images 377110

images: preparing (decode, grey, upright, resize, encode, write) against only decoding and resizing the same files with the
  fastest library here at the same quality, by the same worker processes, in short slices that alternate (ABBA). Pillow is
  always tried, OpenCV and pyvips where they are installed; a library counts if its PSNR to a full decode and Lanczos resize
  is at most 0.5 dB below ours. ratio: its seconds by ours, median over pairs of slices with a 95% bootstrap interval, of
  wall and of CPU seconds; at least 0.9 is wanted. Encoding and writing are in our time, not in the library's.
memory: peak resident memory of the main process and of the largest worker, for few and for many studies.
tables: all table work of a MIMIC-CXR-sized index (metadata, split, reports from a zip, priors, checks, Parquet), no images.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from PIL import Image

from benchmarks.keep import keep
from data_prep.__main__ import available_cores
from data_prep.image_pool import _prepare_chunk, prepare_images
from data_prep.images import ImageJob, ImageSettings, load_grey, resize, target_size

FILM = (2544, 3056)  # width and height of a typical MIMIC-CXR-JPG image
QUALITY_MARGIN = 0.5  # dB
SLICE = 8  # films of a worker in a slice


def main() -> None:
    """Run the benchmarks that are named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="?", choices=("images", "memory", "tables"))
    parser.add_argument("--files", type=int, default=192, help="films to prepare in a round")
    parser.add_argument("--slices", type=int, default=60, help="paired slices of SLICE films a worker")
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--small", type=int, default=1_000)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--studies", type=int, default=227_835)
    parser.add_argument("--images", type=int, default=377_110)
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # a measured part, in a process of its own
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(PARTS[options.which](Path(options.inside), options)))
        return
    results = {}
    with tempfile.TemporaryDirectory(prefix="bench_data_") as name:
        for which in [options.which] if options.which else ["images", "memory", "tables"]:
            results[which] = BENCHES[which](Path(name) / which, options)
            print(f"{which}: {json.dumps(results[which])}", file=sys.stderr)
    keep("data", {"cores": available_cores(), **results})


# --- images ----------------------------------------------------------------------------------------------------------


def film(seed: int) -> Image.Image:
    """A grey image with a film's size, large and small structure, and noise."""
    width, height = FILM
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pixels = 128 + 70 * np.sin(x / 400 + seed) * np.cos(y / 500) + 20 * np.sin(x / 37 + y / 51)
    pixels += rng.normal(0, 4, pixels.shape).astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def decode_pillow(path: str, size: tuple[int, int]) -> np.ndarray:
    """Pillow's reduced decoding and bicubic."""
    with Image.open(path) as image:
        image.draft("L", size)
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def decode_opencv(path: str, size: tuple[int, int]) -> np.ndarray:
    """OpenCV at a quarter, then by area."""
    import cv2

    cv2.setNumThreads(1)
    return cv2.resize(cv2.imread(path, cv2.IMREAD_REDUCED_GRAYSCALE_4), size, interpolation=cv2.INTER_AREA)


def decode_opencv_half(path: str, size: tuple[int, int]) -> np.ndarray:
    """OpenCV at a half, then by area."""
    import cv2

    cv2.setNumThreads(1)
    return cv2.resize(cv2.imread(path, cv2.IMREAD_REDUCED_GRAYSCALE_2), size, interpolation=cv2.INTER_AREA)


def decode_pyvips(path: str, size: tuple[int, int]) -> np.ndarray:
    """libvips' thumbnail."""
    import pyvips

    return pyvips.Image.thumbnail(path, size[0], height=size[1], size="force").numpy().reshape(size[1], size[0])


DECODERS: dict[str, tuple[str, Callable]] = {
    "pillow": ("PIL", decode_pillow),
    "opencv 1/4": ("cv2", decode_opencv),
    "opencv 1/2": ("cv2", decode_opencv_half),
    "pyvips": ("pyvips", decode_pyvips),
}


def _bare_chunk(name: str, paths: list[str], size: tuple[int, int]) -> float:
    """CPU seconds of decoding and resizing alone, in a worker."""
    begin = time.process_time()
    for path in paths:
        DECODERS[name][1](path, size)
    return time.process_time() - begin


def _whole_chunk(jobs: list[ImageJob], settings: ImageSettings) -> float:
    """CPU seconds of the whole preparation of some images, as `prepare_images` has its workers do it."""
    begin = time.process_time()
    done, _ = _prepare_chunk([(job, None) for job in jobs], settings)
    if any(record.problem for _, record in done):
        raise RuntimeError("a film could not be prepared")
    return time.process_time() - begin


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit images."""
    error = np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def bench_images(folder: Path, options: argparse.Namespace) -> dict:
    """Ratio of the fastest bare decode and resize to the whole preparation."""
    os.environ["VIPS_CONCURRENCY"] = "1"
    folder.mkdir()
    paths = [str(folder / f"{n}.jpg") for n in range(options.files)]
    for n in range(min(8, options.files)):
        film(n).save(paths[n], quality=95)
    for n in range(8, options.files):
        Path(paths[n]).write_bytes(Path(paths[n % 8]).read_bytes())
    settings = ImageSettings()
    size = target_size(*FILM, settings)
    reference = np.asarray(film(0).resize(size, Image.Resampling.LANCZOS))
    ours = psnr(np.asarray(resize(load_grey(paths[0], settings), settings)), reference)
    candidates = {}
    for name, (module, decode) in DECODERS.items():
        if importlib.util.find_spec(module) is not None:
            quality = psnr(decode(paths[0], size), reference)
            if quality >= ours - QUALITY_MARGIN:
                candidates[name] = quality
    jobs = [ImageJob(path, str(folder / "out" / Path(path).name)) for path in paths]
    parts = [slice(start, start + SLICE) for start in range(0, SLICE * options.workers, SLICE)]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:

        def timed(start: int, work: _Files) -> np.ndarray:
            """Wall and CPU seconds of one slice a worker, from file `start` on."""
            begin = time.perf_counter()
            futures = [pool.submit(work, start, part) for part in parts]
            cpu = sum(future.result() for future in futures)
            return np.array([time.perf_counter() - begin, cpu])

        arms: dict[str, Callable[[int], np.ndarray]] = {
            name: lambda start, name=name: timed(start, _Files(paths, name, size)) for name in candidates
        }
        arms["preparation"] = lambda start: timed(start, _Files(jobs, None, settings))
        seconds: dict[str, list[np.ndarray]] = {name: [] for name in arms}
        order = list(arms)
        for number in range(options.slices + 1):
            order.reverse()  # ABBA: what drifts, drifts through all arms alike
            for name in order:
                taken = arms[name](number * SLICE)
                if number:  # the first warms up
                    seconds[name].append(taken)
    measured = {name: np.array(values) for name, values in seconds.items()}  # [slices, wall and CPU]
    fastest = min(candidates, key=lambda name: np.median(measured[name][:, 1]))
    ratios = measured[fastest] / measured["preparation"]
    begin = time.perf_counter()
    if prepare_images(jobs, settings, options.workers):
        raise SystemExit("a film could not be prepared")
    whole = time.perf_counter() - begin
    images = SLICE * options.workers
    return {
        "workers": options.workers,
        "slices": options.slices,
        "images a slice": images,
        "ms an image": {
            name: {"wall": round(1e3 * float(w) / images, 2), "CPU": round(1e3 * float(c) / images, 2)}
            for name, values in measured.items()
            for w, c in [np.median(values, axis=0)]
        },
        "psnr": {"preparation": round(ours, 2), **{name: round(quality, 2) for name, quality in candidates.items()}},
        "fastest": fastest,
        "ratio": _median_with_interval(ratios[:, 0]),
        "ratio of CPU seconds": _median_with_interval(ratios[:, 1]),
        f"seconds of {options.files} files with workers started": round(whole, 2),
    }


class _Files:
    """A chunk's work, sent to a worker: the `part` of `files` from `start` on, bare where a library is named."""

    def __init__(self, files: list, library: str | None, how: Any) -> None:
        self.files, self.library, self.how = files, library, how

    def __call__(self, start: int, part: slice) -> float:
        files = [self.files[(start + n) % len(self.files)] for n in range(part.start, part.stop)]
        if self.library is None:
            return _whole_chunk(files, self.how)
        return _bare_chunk(self.library, files, self.how)


def _median_with_interval(values: np.ndarray) -> dict[str, float]:
    """The median and its 95% bootstrap interval."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"median": round(float(np.median(values)), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


# --- memory ----------------------------------------------------------------------------------------------------------


def bench_memory(folder: Path, options: argparse.Namespace) -> dict:
    """Peak memory for few and for many studies, each in a process of its own."""
    results = {}
    for studies in (options.small, options.large):
        place = folder / str(studies)
        (place / "images").mkdir(parents=True)
        for n in range(8):
            film(n).resize((64, 77)).save(place / "images" / f"{n}.jpg")
        with (place / "studies.csv").open("w") as file:
            file.write("study,patient,image,findings,taken\n")
            for n in range(studies):
                text = f"The lungs are clear in study {n}. " + "No pleural effusion or pneumothorax is seen. " * 8
                file.write(f"s{n},p{n // 3},images/{n % 8}.jpg,{text},2020-01-{1 + n % 28:02d}\n")
        (place / "mapping.yaml").write_text(
            "table: studies.csv\ncolumns: {study_id: study, patient_id: patient, image: image, findings: findings, study_datetime: taken}\n"
        )
        results[str(studies)] = _in_a_process("memory", place, options)
    small, large = results[str(options.small)], results[str(options.large)]
    growth = (large["main MiB"] - small["main MiB"]) * 1024 / (options.large - options.small)
    return {
        **results,
        "main KiB a study": round(growth, 2),
        "worker growth MiB": round(large["worker MiB"] - small["worker MiB"], 1),
    }


def part_memory(folder: Path, options: argparse.Namespace) -> dict:
    """Prepare the folder; peak resident memory of this process and of its largest child."""
    from data_prep.prepare import prepare
    from data_prep.source import Options

    workers = _WorkerMemory()
    workers.start()
    begin = time.perf_counter()
    prepare(
        folder,
        folder / "out",
        Options("custom", mapping=folder / "mapping.yaml", image_size=32),
        options.workers,
        say=lambda text: None,
    )
    seconds = time.perf_counter() - begin
    return {"main MiB": _peak(), "worker MiB": workers.stop(), "seconds": round(seconds, 1)}


def _peak() -> float:
    """Peak resident memory of this process, MiB. Linux: getrusage's would begin with that of the process that started
    this one."""
    status = Path("/proc/self/status").read_text()
    return round(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024, 1)


class _WorkerMemory(threading.Thread):
    """Samples the resident memory of the largest child (its own peak counter inherits the parent's at the start)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest, self.stopped = 0, threading.Event()

    def run(self) -> None:
        this = psutil.Process()
        while not self.stopped.wait(0.1):
            for child in this.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.highest = max(self.highest, child.memory_info().rss)

    def stop(self) -> float:
        """The highest sample, MiB."""
        self.stopped.set()
        self.join()
        return round(self.highest / 2**20, 1)


def _in_a_process(which: str, folder: Path, options: argparse.Namespace) -> dict:
    arguments = [f"--{name}={getattr(options, name)}" for name in ("workers", "studies", "images")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_data", which, "--inside", str(folder), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# --- tables ----------------------------------------------------------------------------------------------------------


def bench_tables(folder: Path, options: argparse.Namespace) -> dict:
    """Seconds and peak memory of the table work for a synthetic MIMIC-CXR index."""
    make_mimic_index(folder, options.studies, options.images)
    return _in_a_process("tables", folder, options)


def make_mimic_index(folder: Path, studies: int, images: int) -> None:
    """Metadata, split and a zip of reports as MIMIC-CXR has them, without images."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    study_ids = rng.permutation(np.arange(50_000_000, 50_000_000 + studies))
    subjects = 10_000_000 + np.sort(rng.integers(0, max(1, studies * 10 // 35), studies))
    study_of = np.concatenate([np.arange(studies), np.sort(rng.integers(0, studies, images - studies))])
    days = rng.integers(0, 3650, studies)
    split = np.where(subjects % 100 < 97, "train", np.where(subjects % 100 < 98, "validate", "test"))
    first = {}
    with (
        gzip.open(folder / "mimic-cxr-2.0.0-metadata.csv.gz", "wt", compresslevel=1) as metadata,
        gzip.open(folder / "mimic-cxr-2.0.0-split.csv.gz", "wt", compresslevel=1) as splits,
    ):
        metadata.write(
            "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
            "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning\n"
        )
        splits.write("dicom_id,study_id,subject_id,split\n")
        for n, index in enumerate(study_of):
            view = ("AP", "PA")[n % 2] if first.setdefault(int(index), n) == n else ("LATERAL", "AP", "")[n % 3]
            date = np.datetime64("2110-01-01") + int(days[index])
            dicom = f"{n:08x}-{index:08x}-0000-0000"
            clock = n % 24 * 10_000 + n % 60 * 100 + n % 59  # without its leading zeros
            metadata.write(
                f"{dicom},{subjects[index]},{study_ids[index]},CHEST (PA AND LAT),{view},3056,2544,"
                f"{str(date).replace('-', '')},{clock}.875,CHEST (PA AND LAT),,Erect\n"
            )
            splits.write(f"{dicom},{study_ids[index]},{subjects[index]},{split[index]}\n")
    findings = " FINDINGS:  " + "The cardiomediastinal silhouette is normal. \n " * 8
    with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for n in range(studies):
            subject = str(subjects[n])
            text = f"                  FINAL REPORT\n INDICATION:  Study {n}, evaluate.\n \n COMPARISON:  None.\n \n{findings}\n \n IMPRESSION:  No change from {n}.\n"
            archive.writestr(f"files/p{subject[:2]}/p{subject}/s{study_ids[n]}.txt", text)


def part_tables(folder: Path, options: argparse.Namespace) -> dict:
    """All that `prepare` does but the images."""

    from data_prep import prepare as preparing
    from data_prep.card import FORMAT
    from data_prep.source import Options, fingerprint
    from data_prep.sources import mimic_cxr

    begin = time.perf_counter()
    settings = Options("mimic", name="")
    inputs = fingerprint(mimic_cxr.inputs(folder, settings), folder)
    found = mimic_cxr.read(folder, settings)
    read = time.perf_counter() - begin
    studies, rejects, notes = preparing.select(found, settings)
    paths = [preparing.image_path(study, "jpg") for study in studies["study_id"]]
    studies["image"] = pd.array(paths, dtype="str")
    made_from = {"format": FORMAT, "dataset": "mimic", "options": settings.recorded(), "shard": None, "inputs": inputs}
    out = folder / "out"
    preparing.finish(studies, rejects, out, out, made_from, found, notes, settings)
    seconds = time.perf_counter() - begin
    return {
        "image rows": options.images,
        "studies": len(studies) + len(rejects),
        "kept": len(studies),
        "with prior": int(preparing.link_priors(studies)["prior_text"].gt(0).sum()),
        "read seconds": round(read, 1),
        "seconds": round(seconds, 1),
        "main MiB": _peak(),
    }


BENCHES = {"images": bench_images, "memory": bench_memory, "tables": bench_tables}
PARTS = {"memory": part_memory, "tables": part_tables}

if __name__ == "__main__":
    main()
