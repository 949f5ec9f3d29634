"""What ``inn fabric check`` found, for people."""

from __future__ import annotations

from collections.abc import Iterator

from innkeeper.fabric.examine import Report
from innkeeper.fabric.verdicts import EQUAL, LOST, REPOSITORY, Range, Verdict
from innkeeper.model.sizes import format_size

_MOST_RANGES = 20
_HELP = {
    EQUAL: "the same content is stored elsewhere in the pool",
    REPOSITORY: "'inn pool scrub' takes it from a backup repository that has it",
    LOST: "lost",
}


def report_text(report: Report) -> str:
    """The report in lines of text."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    yield f"pool {report.path}: {report.groups} groups, {report.items} items, {format_size(report.bytes)} read"
    if report.sound:
        yield "all of it is sound"
    elif report.steps:
        yield ""
        yield "done:" if report.repaired else "what --repair does:"
        for step in report.steps:
            yield f"  - {step.what}"
            yield f"      because: {step.why}"
            for name in step.aside:
                yield f"      kept as {name}"
    yield ""
    yield from _verdicts("disks and snapshots:" if report.sound else "disks and snapshots as they are:", report.before)
    if report.steps:
        yield ""
        yield from _verdicts("after the repair:", report.after)
    if report.problems and not any(each.state != "whole" for each in report.after):
        yield ""
        yield "damage that no disk and no snapshot needs:"
        yield from (f"  {problem}" for problem in report.problems[:_MOST_RANGES])


def _verdicts(heading: str, verdicts: list[Verdict]) -> Iterator[str]:
    yield heading if verdicts else f"{heading} none"
    for each in verdicts:
        name = f"  {each.kind} {each.id}  {format_size(each.size_bytes)}"
        if each.state == "whole":
            yield f"{name}  whole"
            continue
        yield f"{name}  damaged: {format_size(each.bad_bytes)} cannot be read"
        for part in each.ranges[:_MOST_RANGES]:
            yield f"    at {part.offset_bytes}, {part.length_bytes} bytes: {part.where}; {_help(part)}"
        if len(each.ranges) > _MOST_RANGES:
            yield f"    and {len(each.ranges) - _MOST_RANGES} more; '-o json' has all"


def _help(part: Range) -> str:
    return _HELP.get(part.recover, f"what was there before is in {part.recover}")
