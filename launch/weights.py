"""Fetch the base model, the judge and the metric weights from the Hugging Face hub, or a mirror of it, into one folder.

    python -m launch.weights [--out weights] [--only metrics] [--mirror https://hub.example.org]

The folder's layout is in rewards/weights.py; the base model lies in `Qwen3-VL-8B-Instruct/` beside it, the judge in a
folder by its name. Transfers are huggingface_hub's, into a `.part` beside each file, so that the next run resumes where one
was stopped. Each file's size and sha256 are checked against what the hub says and written to `weights.lock.json` with the
repository's commit; later runs fetch that commit, and must find these sums.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from foundation.machine import OneLineParser, format_bytes, free_disk
from foundation.weights_lock import LOCK, FetchError, lock_fingerprint, problems, read_lock, sha256
from launch import judges
from rewards.weights import ENCODERS, RADGRAPH_MODELS, RATESCORE_MODELS, SCORERS

HUB = "https://huggingface.co"
BASE_MODEL = "Qwen/Qwen3-VL-8B-Instruct"
# What a checkpoint consists of: configuration, tokenizer, safetensors. No pickles, no example scripts.
CHECKPOINT = ("*.json", "*.txt", "*.jinja", "*.safetensors", "spm.model")
GROUPS = ("base", "chexbert", "radgraph", "bertscore", "ratescore", "judge")
MODELS = ("base", "judge")  # large ones; the other groups are the metrics
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A hub repository (or some of its files) and where it goes.

    Attributes:
        folder: inside the weights folder; "" is the weights folder itself.
        patterns: file names to take.
        required: file names that must be there, or patterns of which one file must be.
    """

    repository: str
    folder: str
    patterns: tuple[str, ...]
    required: tuple[str, ...]

    @property
    def key(self) -> str:
        """The source's name in the lock file."""
        return f"{self.repository} {' '.join(self.patterns)}"


def sources(
    groups: tuple[str, ...], base_model: str = BASE_MODEL, radgraph: str = "radgraph", judge_model: str = judges.DEFAULT
) -> list[Source]:
    """The repositories of the named groups, small ones first."""
    chosen = []
    if "chexbert" in groups:
        chosen += [_encoder("bert-base-uncased"), Source(SCORERS, "", ("chexbert.pth",), ("chexbert.pth",))]
    if "radgraph" in groups:
        archive = f"{radgraph}.tar.gz"
        chosen += [
            _encoder("BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"),
            Source(SCORERS, "", (archive,), (archive,)),
        ]
    if "bertscore" in groups:
        chosen.append(_encoder("distilroberta-base"))
    if "ratescore" in groups:
        for folder, name in RATESCORE_MODELS.items():
            chosen.append(Source(name, folder, CHECKPOINT, ("config.json", "model.safetensors")))
    for group, model in (("base", base_model), ("judge", judge_model)):
        if group in groups:
            name = PurePosixPath(model).name
            chosen.append(Source(model, name, CHECKPOINT, ("config.json", "*.safetensors")))
    return chosen


def _encoder(folder: str) -> Source:
    repository, files = ENCODERS[folder]
    required = tuple(file for file in files if file in ("config.json", "vocab.txt", "vocab.json", "model.safetensors"))
    return Source(repository, folder, files, required)


def git_blob_sha1(path: Path) -> str:
    """The hub's (git's) name for a small file: sha1 over `blob <size>`, a zero byte and its content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


class Fetcher:
    """Fetches sources from one hub into one folder.

    Args:
        endpoint: the hub or its mirror. The user's hub token goes to the hub itself, and to a mirror only where
            `send_token` says so.
    """

    def __init__(self, folder: Path, endpoint: str = HUB, send_token: bool = False) -> None:
        from huggingface_hub import HfApi

        if not endpoint.startswith(("https://", "http://")):
            raise FetchError(f"--mirror {endpoint!r} is no address; it starts with https://")
        self.folder, self.endpoint = folder, endpoint.rstrip("/")
        # None is the user's own token, if there is one; False is none.
        self.token = None if send_token or self.endpoint == HUB else False
        self.api = HfApi(endpoint=self.endpoint, token=self.token)

    def fetch(self, source: Source) -> None:
        """Bring the files of `source` that are missing or differ in size; record each in the lock file.

        Raises:
            FetchError: the hub refuses, breaks off, lacks a file, or serves other content than it announces.
        """
        lock = read_lock(self.folder)
        locked = {
            name: entry
            for name, entry in lock.files.items()
            if entry["repository"] == source.repository and self._is_part(name, source)
        }
        changed = any(self._differs(name, entry["size"]) for name, entry in locked.items())
        if source.key in lock.complete and not changed:
            print(f"{source.repository}: {len(locked)} file(s) there already", flush=True)
            return
        revision, files = self._list(source, next(iter(locked.values()))["revision"] if locked else None)
        missing = {}
        for file, facts in files.items():
            name = str(PurePosixPath(source.folder, file))
            if name in locked and not self._differs(name, locked[name]["size"]):
                continue
            missing[name] = (file, facts)
        size = sum(facts.size or 0 for _, facts in missing.values())
        if size > free_disk(self.folder):
            raise FetchError(
                f"{source.repository} needs {format_bytes(size)} and {self.folder} has {format_bytes(free_disk(self.folder))} "
                "free; make room, or choose another folder with WEIGHTS_DIR="
            )
        print(f"{source.repository} @ {revision[:12]}: {len(missing)} file(s), {format_bytes(size)}", flush=True)
        for name, (file, facts) in missing.items():
            entry = self._fetch_file(source, revision, file, name, facts)
            if name in locked and entry["sha256"] != locked[name]["sha256"]:
                (self.folder / name).unlink()
                raise FetchError(
                    f"{source.repository}/{file} differs from {LOCK} (sha256 {entry['sha256'][:12]}… instead of "
                    f"{locked[name]['sha256'][:12]}…); it was removed. If the change is meant, remove {LOCK}"
                )
            lock.files[name] = entry
            lock.write(self.folder)
        lock.complete.append(source.key)
        lock.write(self.folder)

    def _is_part(self, name: str, source: Source) -> bool:
        path = PurePosixPath(name)
        parent = "" if str(path.parent) == "." else str(path.parent)
        return parent == source.folder and any(fnmatch.fnmatch(path.name, pattern) for pattern in source.patterns)

    def _differs(self, name: str, size: int | None) -> bool:
        path = self.folder / name
        return not path.is_file() or (size is not None and path.stat().st_size != size)

    def _list(self, source: Source, revision: str | None) -> tuple[str, dict[str, Any]]:
        """The commit and the wanted files of a repository, with sizes and sums."""
        with self._explained(source.repository):
            info = self.api.model_info(source.repository, revision=revision, files_metadata=True)
        names = {
            sibling.rfilename: sibling
            for sibling in info.siblings or []
            if "/" not in sibling.rfilename
            and any(fnmatch.fnmatch(sibling.rfilename, pattern) for pattern in source.patterns)
        }
        for required in source.required:
            if not fnmatch.filter(names, required):
                raise FetchError(
                    f"{self.endpoint}/{source.repository} has no {required}; the repository has changed, or the mirror is incomplete"
                )
        return info.sha or revision or "main", names

    def _fetch_file(self, source: Source, revision: str, file: str, name: str, facts: Any) -> dict[str, Any]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        path = self.folder / name
        if path.exists():  # of another size: from an interrupted or another download
            path.unlink()
        # hf_hub_download begins a file anew in each process; a part of our own, named by the content, is gone on with.
        content = facts.lfs.sha256 if facts.lfs is not None else facts.blob_id or revision
        part = path.with_name(f".{path.name}.{content[:16]}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with self._explained(f"{source.repository}/{file}"), part.open("r+b" if part.is_file() else "w+b") as stream:
            arrived = stream.seek(0, os.SEEK_END)
            if facts.size is not None and arrived > facts.size:
                arrived = stream.seek(0)
                stream.truncate()
            http_get(
                hf_hub_url(source.repository, file, revision=revision, endpoint=self.endpoint),
                stream,
                resume_size=arrived,
                headers=build_hf_headers(token=self.token) | {"Accept-Encoding": "identity"},
                expected_size=facts.size,
                displayed_filename=file,
            )
        os.replace(part, path)
        digest = sha256(path)
        wrong = None
        if facts.size is not None and path.stat().st_size != facts.size:
            wrong = f"{path.stat().st_size:,} bytes instead of {facts.size:,}"
        elif facts.lfs is not None and digest != facts.lfs.sha256:
            wrong = f"sha256 {digest[:12]}… instead of {facts.lfs.sha256[:12]}…"
        elif facts.lfs is None and facts.blob_id and git_blob_sha1(path) != facts.blob_id:
            wrong = "content other than its git sum"
        if wrong:
            path.unlink()
            raise FetchError(
                f"{source.repository}/{file} came with {wrong}; it was removed. Run make weights again, or use another mirror"
            )
        return {
            "repository": source.repository,
            "revision": revision,
            "size": path.stat().st_size,
            "sha256": digest,
        }

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turns what a transfer can raise into one `FetchError` line."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        try:
            yield
        except (httpx2.HTTPError, OSError) as error:  # huggingface_hub's errors are of these two kinds
            cause: BaseException = error
            # hf_hub_download wraps what went wrong on the line.
            while isinstance(cause, LocalEntryNotFoundError) and cause.__cause__ is not None:
                cause = cause.__cause__
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            if isinstance(cause, OfflineModeIsEnabled):
                message = "HF_HUB_OFFLINE is set, so nothing can be fetched: HF_HUB_OFFLINE=0 make weights"
            elif isinstance(cause, HfHubHTTPError) and cause.response is not None:
                message = self._refusal(what, cause.response.status_code, reason)
            else:
                message = (
                    f"{what}: the transfer from {self.endpoint} failed ({reason}); what has arrived is kept. "
                    "Run make weights again, or use a mirror: make weights MIRROR=https://…"
                )
            raise FetchError(message) from error

    def _refusal(self, what: str, status: int, reason: str) -> str:
        if status in (401, 403):
            page = f"{HUB}/{'/'.join(what.split('/')[:2])}"
            login = (
                f"log in (hf auth login, or HF_TOKEN in the environment) and accept the licence at {page} if it asks"
            )
            if self.token is False:
                login = "a mirror is not sent your hub token; if it is to be, add --send-token"
            return f"{what}: {self.endpoint} refuses access (HTTP {status}); {login}"
        if status == 404:
            return (
                f"{what} is not at {self.endpoint} (HTTP 404); check the name, or use another mirror: "
                "make weights MIRROR=https://…"
            )
        return (
            f"{what}: {self.endpoint} answered HTTP {status} ({reason}); run make weights again later, or use a mirror"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m launch.weights"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("WEIGHTS_DIR", "weights")), help="the folder")
    parser.add_argument(
        "--only", nargs="+", choices=(*GROUPS, "metrics"), help="some groups only; metrics is all but the two models"
    )
    parser.add_argument("--base_model", default=BASE_MODEL, help="hub name of the base model")
    parser.add_argument("--judge_model", default=judges.DEFAULT, help="hub name of the judge")
    parser.add_argument("--radgraph", choices=RADGRAPH_MODELS, default="radgraph", help="which RadGraph model")
    parser.add_argument("--mirror", default=os.environ.get("HF_ENDPOINT") or HUB, help="address of a mirror of the hub")
    parser.add_argument("--send-token", action="store_true", help="send the hub token to the mirror too")
    parser.add_argument("--verify", action="store_true", help="check all sha256 sums of what is there; fetch nothing")
    given = parser.parse_args(arguments)
    try:
        if given.verify:
            return _verify(given.out)
        groups = set(given.only or GROUPS)
        if "metrics" in groups:
            groups |= set(GROUPS) - set(MODELS)
        given.out.mkdir(parents=True, exist_ok=True)
        fetcher = Fetcher(given.out, given.mirror, given.send_token)
        for source in sources(tuple(groups), given.base_model, given.radgraph, given.judge_model):
            fetcher.fetch(source)
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: complete, fingerprint {lock_fingerprint(given.out)[:12]} ({LOCK})")
    return 0


def _verify(folder: Path) -> int:
    names = read_lock(folder).files
    if not names:
        raise FetchError(f"{folder} has no {LOCK}; fetch the weights first: make weights WEIGHTS_DIR={folder}")
    found = problems(folder, deep=True)
    for line in found:
        print(line, file=sys.stderr)
    print(f"{folder}: {len(names) - len(found)} of {len(names)} files as in {LOCK}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
