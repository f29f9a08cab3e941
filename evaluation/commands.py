"""The command lines of what is done with a finished model beside generating and scoring, and a server as engine of `generate`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundation.errors import EvaluationError

# Makes a subcommand of a name, a function and a line of help.
Command = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]


def add_commands(command: Command) -> None:
    """Add them all."""
    _add_write(command)
    _add_serve(command)
    _add_reader_study(command)
    _add_counterfactual(command)
    _add_share(command)


# ---- write -----------------------------------------------------------------------------------------------------------


def _add_write(command: Command) -> None:
    from model.engines import ENGINES
    from settings.evaluations import SECTIONS

    made = command("write", _write, "write the report of a film, or of a folder or table of them")
    made.add_argument("--model", required=True, help="checkpoint folder or hub name")
    made.add_argument("--image", type=Path, help="one film: DICOM, PNG or JPEG; its report is printed")
    made.add_argument("--prior_image", type=Path, help="the patient's earlier film")
    made.add_argument("--prior_report", type=Path, help="text file with that film's report")
    made.add_argument("--indication", help="why the film was taken")
    made.add_argument("--comparison", help="what it is compared with")
    made.add_argument("--json", action="store_true", help="with model, fingerprint, settings and seconds")
    made.add_argument("--folder", type=Path, help="many: every film below this folder, without text")
    made.add_argument("--source", type=Path, help="many: the folder of a table, as of python -m data_prep custom")
    made.add_argument(
        "--mapping", type=Path, help="YAML: which column of the table is what; a report column may be left out"
    )
    made.add_argument("--images", type=Path, help="image folder of the table, where it is not below --source")
    made.add_argument("--out", type=Path, help="of many: JSONL file, a line a study")
    made.add_argument("--anyway", action="store_true", help="write also of what is no frontal chest film")
    made.add_argument("--sections", default=SECTIONS[1], choices=SECTIONS[1:], help="which sections are asked for")
    made.add_argument("--max_new_tokens", type=int, default=512)
    made.add_argument("--engine", default="auto", choices=ENGINES)
    made.add_argument("--dtype", default="auto")
    made.add_argument("--batch_size", type=int, default=16)


def _write(options: argparse.Namespace) -> None:
    many = [name for name in ("folder", "source") if getattr(options, name)]
    if len([options.image] if options.image else many) != 1 or (options.image and many):
        raise EvaluationError("name one film (--image), or many: --folder, or --source with --mapping")
    if bool(options.prior_image) != bool(options.prior_report):
        raise EvaluationError(
            "a prior is shown with its film and its report: give --prior_image and --prior_report, or neither"
        )
    if many and not options.out:
        raise EvaluationError("of many films, --out names the JSONL file for their reports")
    if options.source and not options.mapping:
        raise EvaluationError("--source needs --mapping FILE, a YAML that says which column is what")
    if options.batch_size < 1:
        raise EvaluationError(f"--batch_size is {options.batch_size}; it must be at least 1")
    for path in (options.image, options.prior_image):
        if path and not path.is_file():
            raise EvaluationError(f"{path}: no such file")
    prior = (options.prior_image, _text_of(options.prior_report)) if options.prior_image else None
    # What loads torch comes after what can be said without it.
    from evaluation.write import Request, print_report, requests_of_folder, requests_of_table, write_many

    requests = []
    if options.folder:
        requests = requests_of_folder(options.folder)
    elif options.source:
        requests = requests_of_table(options.source, options.mapping, options.images)
    writer = _report_writer(options)
    if options.image:
        request = Request(options.image.name, options.image, options.indication, options.comparison, prior)
        print_report(writer, request, options.anyway, options.json)
        return
    counts = write_many(writer, requests, options.out, options.anyway, options.batch_size)
    print(f"{options.out}: {', '.join(f'{number} {kind}' for kind, number in counts.items())}")


def _report_writer(options: argparse.Namespace) -> Any:
    from model.engines import GenerationSettings
    from model.report_writer import ReportWriter

    names = {field.name for field in dataclasses.fields(GenerationSettings)} & set(vars(options))
    return ReportWriter(options.model, GenerationSettings(**{name: getattr(options, name) for name in names}))


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is no text file in UTF-8 ({error.reason}); save it as one") from error


# ---- serve -----------------------------------------------------------------------------------------------------------


def _add_serve(command: Command) -> None:
    from model.engines import ENGINES
    from settings.evaluations import SECTIONS

    made = command("serve", _serve, "an OpenAI-compatible endpoint, and a page: drop a film, read its report")
    made.add_argument("--model", required=True, help="checkpoint folder or hub name")
    made.add_argument(
        "--host", default="127.0.0.1", help="another address lets other machines in (default: this alone)"
    )
    made.add_argument("--port", type=int, default=8010, help="0 for a free one (default 8010)")
    made.add_argument("--sections", default=SECTIONS[1], choices=SECTIONS[1:], help="which sections the page asks for")
    made.add_argument("--max_new_tokens", type=int, default=512)
    made.add_argument("--engine", default="auto", choices=ENGINES)
    made.add_argument("--dtype", default="auto")


def _serve(options: argparse.Namespace) -> None:
    if not 0 <= options.port < 65536:
        raise EvaluationError(f"--port is {options.port}; it must be 0 to 65535")
    from evaluation.serve import serve

    serve(_report_writer(options), options.host, options.port)


# ---- reader-study ----------------------------------------------------------------------------------------------------


def _add_reader_study(command: Command) -> None:
    made = command("reader-study", _reader_study, "a page on which radiologists count the errors of blinded reports")
    made.add_argument("--outputs", type=Path, required=True, help="the run's folder, e.g. outputs/demo")
    made.add_argument("--models", nargs="+", required=True, help="models of the run, e.g. sft rl_step2")
    made.add_argument("--studies", type=int, default=50, help="how many, drawn at random (default 50)")
    made.add_argument("--out", type=Path, help="folder to write (default: reader_study in --outputs)")
    made.add_argument("--data_dir", type=Path, help="folder of the prepared data sets, for images")
    made.add_argument("--seed", type=int, default=0, help="of studies, order and codes")


def _reader_study(options: argparse.Namespace) -> None:
    from evaluation.reader_study import write_reader_study

    if options.studies < 1:
        raise EvaluationError(f"--studies is {options.studies}; it must be at least 1")
    out = options.out or options.outputs / "reader_study"
    made = write_reader_study(options.outputs, options.models, options.studies, out, options.data_dir, options.seed)
    print(
        f"{made['page']}: {made['reports']} reports of {made['studies']} studies, opens offline in any browser. It holds "
        "patients' films and reports: give it to those alone who may see them. key.json stays here"
    )
    if made["without_image"]:
        told = "are shown without a film: absent or unreadable (--data_dir says where the data lie)"
        print(f"{made['without_image']} studies {told}")
    judge = out / "judge.jsonl"
    rate = "" if made["judged"] else f"python -m rewards judge --pairs {out / 'pairs.jsonl'} --out {judge} …; "
    agreement = options.outputs / "judge_agreement.json"
    print(f"then: {rate}python -m rewards judge-agreement READER.json {judge} --out {agreement}")


# ---- counterfactual --------------------------------------------------------------------------------------------------


def _add_counterfactual(command: Command) -> None:
    made = command(
        "counterfactual", _counterfactual, "write test reports again with one thing changed: does it look at the film?"
    )
    made.add_argument("--outputs", type=Path, required=True, help="an evaluated run, e.g. outputs/demo")
    made.add_argument("--models", nargs="*", default=[], help="of those evaluated (default: all but baselines)")
    made.add_argument("--studies", type=int, default=None, help="test studies at most (default: 120)")
    made.add_argument("--weights_dir", type=Path, default=Path("weights"))
    made.add_argument("--batch_size", type=int, default=120)
    made.add_argument("--resamples", type=int, default=None)


def _counterfactual(options: argparse.Namespace) -> None:
    from evaluation import statistics
    from evaluation.counterfactual import STUDIES, measure
    from evaluation.counterfactual_part import text
    from evaluation.run_folder import read_run
    from evaluation.scorers import open_scorers

    for name in ("studies", "batch_size", "resamples"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise EvaluationError(f"--{name} is {value}; it must be at least 1")
    run = read_run(options.outputs)
    backend = run.described(run.models[0])["backend"]
    with open_scorers(backend, options.weights_dir) as scorers:
        result = measure(
            run,
            scorers,
            options.models,
            options.studies or STUDIES,
            options.batch_size,
            options.resamples or statistics.RESAMPLES,
        )
    print(text(result))
    print(
        f"written to {options.outputs}/counterfactual/counterfactual.json; summary and report show it when they are made again"
    )


# ---- generate --engine server ----------------------------------------------------------------------------------------

# The judge's settings that stand for the endpoint and the cache, and those that say what is counted as an answer.
_NOT_OF_A_SERVER = (
    "base_url",
    "model",
    "cache_dir",
    "answer_format",
    "answer_wrappers",
    "prompt_file",
    "batch_timeout",
)


def add_server(made: argparse.ArgumentParser) -> None:
    """The flags of a rival behind an API; those of the judge's client are `--server_…`."""
    import yaml

    from rewards.chexprompt.settings import JudgeSettings

    made.add_argument("--base-url", "--base_url", dest="base_url", help="OpenAI-compatible endpoint, of engine server")
    made.add_argument(
        "--prompt", default="ours", help="of engine server: ours (the paper's), or a YAML file for its model"
    )
    for setting in dataclasses.fields(JudgeSettings):
        name = setting.name.removeprefix("judge_")
        if name not in _NOT_OF_A_SERVER and not name.startswith(("max_failure", "failure_")):
            flag = f"--server_{name}"
            made.add_argument(flag, type=yaml.safe_load, default=argparse.SUPPRESS, help=setting.metadata.get("help"))


def generate_at_server(options: argparse.Namespace, settings: Any) -> None:
    """`generate` where the engine is a server."""
    from evaluation.rival import Rival, generate_by_server

    if not options.base_url:
        raise EvaluationError("--engine server needs --base-url, e.g. http://127.0.0.1:8000/v1")
    if options.shard or options.processes:
        raise EvaluationError("--shard and --processes are for models that run here; a server is asked by one process")
    given = {n.removeprefix("server_"): v for n, v in vars(options).items() if n.startswith("server_")}
    if options.max_new_tokens:
        given.setdefault("max_tokens", options.max_new_tokens)
    rival = Rival(options.base_url, options.model, options.prompt, given)
    made = generate_by_server(
        rival, options.data, options.split, options.out, settings, options.max_studies, options.force
    )
    reports = made["made_by"]["studies"] - made["failed_studies"]
    print(f"{options.out / 'predictions.json'}: {reports} reports, {made['failed_studies']} studies without one")


# ---- share -----------------------------------------------------------------------------------------------------------


def _add_share(command: Command) -> None:
    made = command("share", _share, "a run's predictions and scores as a folder that others can score again")
    made.add_argument("--outputs", type=Path, required=True, help="an evaluated run, e.g. outputs/demo")
    made.add_argument("--out", type=Path, required=True, help="folder to make")
    made.add_argument("--i_may_share", nargs="*", default=[], help="closed data sets whose agreement allows it")
    made.add_argument("--force", action="store_true", help="replace what is there")


def _share(options: argparse.Namespace) -> None:
    from evaluation.share import share

    manifest = share(options.outputs, options.out, options.i_may_share, options.force)
    print(
        f"{options.out}: {len(manifest['shared'])} sets of predictions, without references, texts of patients or images"
    )
