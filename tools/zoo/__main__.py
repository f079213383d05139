"""Command line: `python -m tools.zoo`."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.zoo.data import pack, split
from tools.zoo.judge import entry_steps, problems
from tools.zoo.page import judged, render, summary_lines
from tools.zoo.pool import ROOT, Pool, Task
from tools.zoo.progress import Progress
from tools.zoo.store import Store, code_key, versions
from tools.zoo.tasks import ENTRY_STEPS, GRAPH_SOURCES, MUTANT_STEPS

from tests.zoo import GRAPHS, MUTANTS, ZOO

__all__ = ["main"]

WORK = ROOT / "build" / "zoo"
PAGE = ROOT / "docs" / "zoo.md"
ALL_STEPS = (*ENTRY_STEPS, *MUTANT_STEPS, "graph")
DEFAULT_LIMIT_S = 120.0
NOT = "not:"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write the page, print the figures; 0 all as expected, 1 not, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    tasks = [task for task in _all_tasks() if _is_chosen(task, arguments)]
    if not tasks:
        print("error: nothing is chosen; see --only, --tags and --steps", file=sys.stderr)
        return 2
    if arguments.list:
        for task in tasks:
            print(f"{task['kind']:8} {task['name']:44} {task['step']}")
        return 0
    store = Store(arguments.work / "results")
    keys = {step: code_key(ours=step != "plain") for step in ALL_STEPS}
    due = [
        task
        for task in tasks
        if arguments.fresh or not _has_result(store, task, keys, arguments.keep_stale)
    ]
    print(f"{len(tasks)} steps, {len(due)} to run", file=sys.stderr)
    if due and not arguments.page_only:
        _run(due, store, keys, arguments)
    return _report(store, keys, arguments.page)


def _all_tasks() -> Iterator[Task]:
    """Every step, in the order in which results are wanted first; costly subjects last."""
    for hugging_face in (False, True):
        entries = [item for item in ZOO if ("hf" in item.tags) == hugging_face]
        for item in entries:
            yield from (_task("entry", item.name, step) for step in entry_steps(item))
        if not hugging_face:
            for mutant in MUTANTS:
                yield from (_task("mutant", mutant.name, step) for step in MUTANT_STEPS)
            for graph in graph_names():
                yield _task("graph", graph, "graph")


def graph_names() -> list[str]:
    """The good graphs: by hand, from the plain exporter at two opsets, and ours."""
    return [
        *(f"hand-{graph.name}" for graph in GRAPHS),
        *(f"{origin}-{n}" for n in GRAPH_SOURCES for origin in ("plain20", "plain24", "ours")),
    ]


def _task(kind: str, name: str, step: str) -> Task:
    return {"kind": kind, "name": name, "step": step}


def _is_chosen(task: Task, arguments: argparse.Namespace) -> bool:
    if arguments.only and not any(fnmatch.fnmatch(task["name"], p) for p in arguments.only):
        return False
    if arguments.steps and task["step"] not in arguments.steps:
        return False
    if not arguments.tags:
        return True
    tags: frozenset[str] = next(
        (item.tags for item in ZOO if item.name == task["name"]), frozenset({task["kind"]})
    )
    excluded = {tag.removeprefix(NOT) for tag in arguments.tags if tag.startswith(NOT)}
    wanted = {tag for tag in arguments.tags if not tag.startswith(NOT)}
    return not tags & excluded and (not wanted or bool(tags & wanted))


def _has_result(store: Store, task: Task, keys: dict[str, str], keep_stale: bool) -> bool:
    key = None if keep_stale else keys[task["step"]]
    return store.get(task["name"], task["step"], key) is not None


def _run(
    due: Sequence[Task], store: Store, keys: dict[str, str], arguments: argparse.Namespace
) -> None:
    progress = Progress(len(due))

    def done(task: Task, result: dict[str, Any]) -> None:
        store.put(task["name"], task["step"], keys[task["step"]], result)
        progress.step(f"{task['name']} {task['step']}: {result['status']}")

    pool = Pool(
        "tools.zoo.tasks:run",
        workers=arguments.workers,
        limit_s=arguments.limit_seconds,
        log_folder=arguments.work / "logs",
    )
    folder = str(arguments.work / "files")
    # The steps of one entry share its captures, which are most of their time.
    tasks = [{**task, "folder": folder} for task in due]
    pool.run(tasks, done, together=lambda task: (task["kind"], task["name"]))


def _report(store: Store, keys: dict[str, str], page: Path) -> int:
    names = [*(e.name for e in ZOO), *(m.name for m in MUTANTS), *graph_names()]
    results = {name: {step: store.get(name, step) for step in ALL_STEPS} for name in names}
    stale = sum(
        result["key"] != keys[step]
        for steps in results.values()
        for step, result in steps.items()
        if result is not None
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    figures, sections = split(render(ZOO, results, versions(), stale))
    page.write_text(figures, encoding="utf-8")
    page.with_suffix(".json.gz").write_bytes(pack(sections))
    print("\n".join(summary_lines(ZOO, results)))
    unexpected = [
        f"{item.name}: {text}" for item in ZOO for text in problems(item, results[item.name])
    ]
    unexpected += list(_accepted_mutants(results))
    unexpected += list(_refuted(results))
    for text in unexpected:
        print(f"not as expected: {text[:300]}")
    print(f"\nwrote {page}")
    return 1 if unexpected else 0


def _accepted_mutants(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    for mutant in MUTANTS:
        steps = results[mutant.name]
        for step in ("export",) if mutant.kind == "length" else MUTANT_STEPS:
            result = steps[step]
            if result is not None and result["status"] not in ("rejected", "not exported"):
                yield f"{mutant.name}, {step}: {result['status']}; {result.get('reason', '')}"
    for name in graph_names():
        graph = results[name]["graph"]
        if graph is None:
            continue
        if graph["status"] != "accepted":
            yield f"{name}: {graph['status']}; {graph.get('reason', '')}"
        for edit in graph.get("mutants", ()):
            if not edit["rejected"]:
                yield f"{name} with {edit['name']}: {edit['verdict']}"


def _refuted(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What the second judge refutes, or could not look at."""
    found = judged(results)
    for key, remark in found.remarks.items():
        if found.distinct[key] in ("refuted", "untranslatable"):
            yield f"a proof rests on what is {found.distinct[key]}: {remark}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.zoo",
        description="Run every module of tests/zoo through export, attest and plain "
        "torch.onnx.export, and write docs/zoo.md and the data of its tables. Results are kept "
        "in build/zoo; what they came "
        "from unchanged, they are not computed again.",
    )
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="names, e.g. 'mask_*'")
    parser.add_argument(
        "--tags", nargs="+", metavar="TAG", help="any of these; 'not:hf' leaves out"
    )
    parser.add_argument("--steps", nargs="+", choices=ALL_STEPS, metavar="STEP")
    parser.add_argument("--list", action="store_true", help="show what would be run")
    parser.add_argument("--fresh", action="store_true", help="run again what has a result")
    parser.add_argument(
        "--keep-stale", action="store_true", help="take results of earlier sources as they are"
    )
    parser.add_argument("--page-only", action="store_true", help="run nothing, write the page")
    parser.add_argument("--workers", type=_positive, default=2, metavar="N")
    parser.add_argument(
        "--limit-seconds", type=float, default=DEFAULT_LIMIT_S, metavar="S", help="per step"
    )
    parser.add_argument("--work", type=Path, default=WORK, metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
