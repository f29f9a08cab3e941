"""How a custom source's reports are cut into sections, to be looked at before training: `python -m data_prep sections`."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from data_prep.headings import ADDENDUM, JOINT, iterate_sections, parse_free_text, unknown_headings
from data_prep.mapping import read_mapping
from data_prep.sections import SECTIONS
from data_prep.sources.custom import iterate_reports
from data_prep.tables import SourceError

UNKNOWN_SHOWN = 30


def show_sections(source: Path, mapping_path: Path, show: int, seed: int = 0) -> str:
    """Counts over all reports of the table, what looks like a heading and is not known, and `show` of the reports as cut.

    Raises:
        SourceError: the mapping names no column of free text, or it or the table is not what it should be.
    """
    if show < 0:
        raise SourceError(f"--show is {show}; it must be 0 or more")
    mapping = read_mapping(mapping_path)
    rules = mapping["sections"]
    counts: Counter[str] = Counter()
    unknown: Counter[tuple[str, str]] = Counter()
    sample: list[tuple[str, str]] = []
    choice = random.Random(seed)
    for study_id, text in iterate_reports(source, mapping):
        counts["reports"] += 1
        report = parse_free_text(text, rules)
        counts.update(name for name in SECTIONS if report[name])
        counts["neither findings nor impression"] += not (report["findings"] or report["impression"])
        counts.update({piece.section for piece in iterate_sections(text, rules)} & {ADDENDUM, JOINT})
        unknown.update(set(unknown_headings(text, rules)))
        # Each report is as likely to be shown as any other, in one pass over a table of any size.
        if len(sample) < show:
            sample.append((study_id, text))
        elif (place := choice.randrange(counts["reports"])) < show:
            sample[place] = (study_id, text)
    if not counts["reports"]:
        raise SourceError(f"{source}: the table has no report; look at columns: report in {mapping_path}")
    lines = [f"{counts['reports']:,} reports; with"]
    lines += [f"{counts[name]:>9,} {name}" for name in (*SECTIONS, "neither findings nor impression")]
    lines.append(f"{counts[JOINT]:>9,} a heading of findings and impression together, taken as {rules.joint}")
    lines.append(f"{counts[ADDENDUM]:>9,} an addendum, {'left out' if rules.addenda == 'leave_out' else 'appended'}")
    lines.append("not known as headings, so part of the section in which they stand (reports):")
    lines += [f"{n:>9,} {heading}: (in {section})" for (heading, section), n in unknown.most_common(UNKNOWN_SHOWN)]
    if len(unknown) > UNKNOWN_SHOWN:
        lines.append(f"{'':>9} and {len(unknown) - UNKNOWN_SHOWN:,} more")
    for study_id, text in sample:
        report = parse_free_text(text, rules)
        lines += ["", f"--- {study_id}", text.strip(), "-> as cut"]
        lines += [f"{name}: {report[name] or '–'}" for name in SECTIONS]
    return "\n".join(lines)
