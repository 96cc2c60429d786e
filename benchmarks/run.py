"""`snnfast bench`: chooses, measures, reports."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from snnfast.cli.command import Parser, integer

from . import block_memory, environment, plots, report, rows
from .baselines import OURS
from .cases import Case, select
from .measure import calmer, disturbed, measure

DEFAULT_SECONDS = 170.0
"""What the default suite plans to take. Where first calls or a loaded machine use more, later cases get less time."""

MOST_PROCESSES = 1000
"""One after another, of minutes each."""


AGAIN_SECONDS, MOST_AGAIN = {"quick": 0.0, "default": 60.0, "full": 600.0}, 3
"""What a suite may take besides, and how often for a case, to measure again where others competed for the cores."""


class UsageError(Exception):
    """Something asked for that cannot be had; the message says what can."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="snnfast bench",
        description="Measure the fused layers against the per-timestep loop, torch.relu, a copy and other libraries "
        "where installed. Writes a table, JSON and plots.",
    )
    suite = parser.add_mutually_exclusive_group()
    suite.add_argument("--full", action="store_true", help="everything (most of an hour on 2 cores)")
    suite.add_argument("--quick", action="store_true", help="seconds: shows that it runs, measures nothing of use")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: every device present)")
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="NAME",
        help="a case or a group of cases; may be given several times (default: those of the suite)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: ./snnfast-bench-<device>-<date>)"
    )
    parser.add_argument(
        "--append",
        type=Path,
        metavar="DIR",
        help="add a row per case and side to DIR/cases.csv, those of blocks to DIR/block-memory.csv (default: no rows)",
    )
    parser.add_argument(
        "--processes",
        type=integer(1, MOST_PROCESSES),
        default=1,
        metavar="N",
        help="measure in N processes one after another, and take each side's best median (default: 1)",
    )
    parser.add_argument(
        "--no-preload",
        action="store_true",
        help="stay under the allocator as it is, also where jemalloc or tcmalloc is found",
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser


def _suite(arguments: argparse.Namespace) -> str:
    return "full" if arguments.full else "quick" if arguments.quick else "default"


def _with_memory(arguments: argparse.Namespace) -> bool:
    """Whether to count what blocks keep too: with a whole suite, not with single cases."""
    return not arguments.case and not arguments.quick


def _devices(asked: str | None) -> list[str]:
    """The devices to measure; UsageError for one that is not there."""
    usable = torch.cuda.is_available() and torch.version.cuda is not None
    if asked == "cuda" and not usable:
        raise UsageError("--device cuda: torch sees no CUDA device here; allowed: cpu")
    if asked is not None:
        return [asked]
    return ["cpu", "cuda"] if usable else ["cpu"]


def _folder(out: Path | None, device: str, several: bool) -> Path:
    """Makes the folder to write to, and writes to it, before any measuring; UsageError where that fails."""
    if out is None:
        now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
        folder = Path.cwd() / f"snnfast-bench-{device}-{now}"
    else:
        folder = (out / device if several else out).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--out: cannot write to {folder} ({error.strerror or error}); "
            "allowed: a folder that exists or can be made, and can be written to"
        ) from error
    return folder


def _measure_here(cases: Sequence[Case], device: str, suite: str, with_memory: bool) -> dict[str, Any]:
    """Measures in this process; cases on which snnfast fails are listed under "failed"."""
    where = torch.device(device)
    results: dict[str, Any] = {"environment": environment.describe(where), "cases": [], "failed": {}}
    begin, again = time.perf_counter(), AGAIN_SECONDS[suite]
    for number, case in enumerate(cases, 1):
        planned = sum(later.seconds for later in cases[number - 1 :])
        left = max(DEFAULT_SECONDS - (time.perf_counter() - begin), 0.1 * planned)
        seconds = case.seconds if suite == "full" else case.seconds * min(1.0, left / planned)
        print(f"[{number}/{len(cases)}] {case.name}: ", end="", file=sys.stderr, flush=True)
        try:
            measured, used = _measure_calmly(case, where, seconds, again)
            again -= used
        except Exception as error:
            results["failed"][case.name] = f"{type(error).__name__}: {error}"
            print(f"FAILED: {results['failed'][case.name]}", file=sys.stderr, flush=True)
            continue
        results["cases"].append(measured)
        print(report.progress(measured), file=sys.stderr, flush=True)
    if with_memory:
        results["memory"] = block_memory.measure()
    results["environment"]["load_average_after"] = list(os.getloadavg())
    return results


def _measure_calmly(case: Case, device: torch.device, seconds: float, again: float) -> tuple[dict[str, Any], float]:
    """Measures a case, and once more while others compete for the cores and ``again`` seconds allow it.

    Returns the calmest measurement, and the seconds of those after the first."""
    begin = time.perf_counter()
    measured = measure(case, device, seconds=seconds)
    first = took = time.perf_counter() - begin
    for _ in range(MOST_AGAIN):
        if not disturbed(measured) or time.perf_counter() - begin - first + took > again:
            break
        start = time.perf_counter()
        measured = calmer(measured, measure(case, device, seconds=seconds))
        took = time.perf_counter() - start
    return measured, time.perf_counter() - begin - first


def _measure_in_child(arguments: argparse.Namespace, device: str, environ: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        # -P: a source tree in the current directory must not take the place of the installed package
        command = [sys.executable, "-P", "-m", "snnfast.benchmarks", "--worker", str(file), "--device", device]
        command += [flag for flag, given in (("--full", arguments.full), ("--quick", arguments.quick)) if given]
        command += [part for name in arguments.case for part in ("--case", name)]
        finished = subprocess.run(command, env=environ)
        if finished.returncode in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if finished.returncode != 0 or not file.exists():
            raise UsageError(f"the measuring process ended with exit code {finished.returncode}")
        return json.loads(file.read_text())


def merge(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result of several processes': each side's best median, and a disagreement wherever one process saw it.

    Processes in which others competed for the cores count only where there is no other."""
    merged = dict(runs[0], processes=len(runs), failed={k: v for run in runs for k, v in run["failed"].items()})
    for case in merged["cases"]:
        twins = [other for run in runs for other in run["cases"] if other["name"] == case["name"]]
        calm = [twin for twin in twins if not disturbed(twin)]
        for name, side in case["sides"].items():
            found = [twin["sides"][name] for twin in twins]
            times = [twin["sides"][name]["time"] for twin in calm or twins if "time" in twin["sides"][name]]
            if times:
                side["time"] = dict(
                    min(times, key=lambda timing: timing["median"]), medians=[timing["median"] for timing in times]
                )
            wrong = next((twin for twin in found if twin.get("agrees") is False), None)
            if wrong is not None:
                side.update({key: wrong[key] for key in ("agrees", "remark", "differing_neurons", "gradient_error")})
        case["cores_used_by_others"] = (calm or twins)[0].get("cores_used_by_others")
    merged["environments"] = [run["environment"] for run in runs]
    return merged


def _run_device(arguments: argparse.Namespace, cases: Sequence[Case], device: str, folder: Path) -> bool:
    """Measures one device, prints and writes; whether all went well."""
    preloaded = None if arguments.no_preload else environment.preloading(dict(os.environ))
    if arguments.processes == 1 and preloaded is None:
        runs = [_measure_here(cases, device, _suite(arguments), _with_memory(arguments))]
    else:
        runs = [_measure_in_child(arguments, device, preloaded or dict(os.environ)) for _ in range(arguments.processes)]
    results = {"format": 1, "suite": _suite(arguments), "cases_asked_for": arguments.case} | merge(runs)
    said = report.text(results)
    print(said)
    files = [folder / "results.json", folder / "table.txt"]
    files[0].write_text(json.dumps(results, indent=1, default=str) + "\n")
    files[1].write_text(said + "\n")
    pictures, remark = plots.write(results, folder)
    if remark:
        print(remark)
    if arguments.append is not None:
        for kind, found in rows.of_results(results).items():
            if found:
                print(f"rows: {len(found)} added to {rows.append(arguments.append, kind, found)}")
    for name, reason in results["failed"].items():
        print(f"FAILED {name}: {reason}")
    wrong = [case["name"] for case in results["cases"] if case["sides"].get("naive", {}).get("agrees") is False]
    if wrong:
        print(f"WRONG: {OURS} and the naive loop differ in {', '.join(wrong)}")
    print(f"files: {folder} ({', '.join(file.name for file in [*files, *pictures])})")
    return not wrong and not results["failed"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `snnfast bench`; returns the exit code: 0, 1 where a result is wrong or missing, 2 for bad usage."""
    arguments = _parser().parse_args(argv)
    suite = _suite(arguments)
    try:
        devices = _devices(arguments.device)
        chosen = {}
        for device in devices:
            try:
                chosen[device] = select(suite, device, arguments.case)
            except ValueError as error:
                raise UsageError(str(error)) from error
            if not chosen[device]:
                raise UsageError(f"no case of {', '.join(arguments.case)} runs on {device}")
        if arguments.worker is not None:
            results = _measure_here(chosen[devices[0]], devices[0], suite, _with_memory(arguments))
            arguments.worker.write_text(json.dumps(results, default=str))
            return 0
        if arguments.append is not None:
            try:
                rows.check(arguments.append, ["cases", "block-memory"])
            except ValueError as error:
                raise UsageError(str(error)) from error
        folders = {device: _folder(arguments.out, device, len(devices) > 1) for device in devices}
        well = [_run_device(arguments, chosen[device], device, folders[device]) for device in devices]
    except UsageError as error:
        print(f"snnfast bench: error: {error}", file=sys.stderr)
        return 2
    return 0 if all(well) else 1
