"""Judges the CUDA kernels by their machine code, without a GPU: what share of the copy bandwidth they can reach.

    python .ci/machine_code.py FILE...            cubins, or a built snnfast/_core*.so
    python .ci/machine_code.py --write FILE...    and makes what it finds the committed table and its page

One thread of every kernel is followed through its machine code (sass/emulator.py), and a model of a GPU says how fast
that can be (sass/model.py). Exit code 1 where a kernel moves its tensors by narrower accesses than it should, where
fewer loads are in flight than it should have, or where a prediction is more than 3 points below the committed one; also
where a built library lacks a kernel of the committed table, and where that table cannot be read.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from sass import cases, emulator, listing, model

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "predicted" / "kernels.csv"
PAGE = ROOT / "docs" / "results" / "predicted.md"
COLUMNS = (
    *("case", "dtype", "steps", "device", "architecture", "kernel", "registers", "warps", "instructions"),
    *("bytes", "least", "together", "narrowest", "spilled", "fraction", "worst"),
)
SLACK = 0.03  # that a prediction may lose


def cubins(file: Path, folder: Path) -> list[Path]:
    """A cubin, or those of the architectures that the model knows in a shared library."""
    if file.suffix == ".cubin":
        return [file]
    command = [listing.tool("cuobjdump"), "-xelf", "all", str(file.resolve())]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"machine_code: {file} has no device code: {done.stderr.strip() or done.stdout.strip()}")
    known = {device.architecture for device in model.DEVICES}
    return [one for one in sorted(folder.glob("*.cubin")) if any(f".{name}." in one.name for name in known)]


def judged(cubin: Path) -> list[listing.Kernel]:
    """The kernels of a cubin that some case launches."""
    passes = {one for case in cases.cases() for one in case.passes}
    return [kernel for kernel in listing.kernels(cubin) if any(one.matches(kernel.name) for one in passes)]


def followed(one: cases.Pass, kernel: listing.Kernel) -> tuple[model.Way, int]:
    """A warp's way through a kernel, and the neurons times steps of a thread on it."""
    blocks, rows, parameters = cases.arguments(one)
    steps = emulator.run(kernel, parameters, {"SR_CTAID.X": min(5, blocks - 1), "SR_TID.X": 1})
    size = cases.SIZES[one.dtype]
    return model.way(steps, one.width * size, size), rows * one.width * one.steps


def rows_of(case: cases.Case, kernels: list[listing.Kernel]) -> Iterator[dict[str, object]]:
    """A case's rows of the table: one for each device whose kernels are there."""
    known: dict[tuple[cases.Pass, str], tuple[model.Way, int]] = {}  # two devices may have one architecture
    for device in model.DEVICES:
        of_device = [kernel for kernel in kernels if kernel.architecture == device.architecture]
        chosen = [next((k for k in of_device if one.matches(k.name)), None) for one in case.passes]
        found = []
        for one, kernel in zip(case.passes, chosen, strict=True):
            if kernel is None:
                break
            code = one, kernel.architecture
            known[code] = known.get(code) or followed(one, kernel)
            way, elements = known[code]
            useful = 32 * elements * one.bytes
            found.append((one, kernel, way, elements, model.predict(device, way, useful, kernel)))
        else:
            yield row(case, device, found)


def row(case: cases.Case, device: model.Device, found: list) -> dict[str, object]:
    """Several passes take the sum of their times; what is said of kernels is said of one alone."""
    least = sum(one.bytes for one, *_ in found)
    result: dict[str, object] = dict.fromkeys(COLUMNS, "")
    result |= {"case": case.name, "dtype": case.dtype, "steps": case.steps, "device": device.name, "least": least}
    result["architecture"] = device.architecture.removeprefix("sm_")
    for name in ("fraction", "worst"):
        time = sum(one.bytes / getattr(predicted, name) for one, *_, predicted in found)
        result[name] = f"{least / time:.3f}"
    if len(found) == 1:
        _, kernel, way, elements, predicted = found[0]
        result |= {
            "kernel": kernel.name.replace("snnfast::portable::", ""),
            "registers": kernel.registers,
            "warps": predicted.warps,
            "instructions": f"{way.instructions / elements:.1f}",
            "bytes": f"{way.bytes / 32 / elements:.2f}",
            "together": way.together,
            "narrowest": way.narrowest,
            "spilled": way.spilled,
        }
    return result


def faults(case: cases.Case, of: dict[str, object], committed: dict[tuple[str, ...], float]) -> Iterator[str]:
    name = f"{case.dtype} {case.name}, T = {case.steps}, {of['device']}"
    if len(case.passes) == 1:
        one = case.passes[0]
        if int(str(of["narrowest"])) < one.width * cases.SIZES[one.dtype]:
            yield f"{name}: accesses of {of['narrowest']} bytes where {one.width} neurons can be moved at once"
        if float(str(of["bytes"])) < 0.99 * one.bytes:
            yield f"{name}: {of['bytes']} bytes moved where {one.bytes} must be"
        if int(str(of["together"])) < one.together:
            yield f"{name}: {of['together']} loads in flight at most, {one.together} wanted"
    before = committed.get(key(of))
    if before is not None and float(str(of["fraction"])) < before - SLACK:
        yield f"{name}: {float(str(of['fraction'])):.1%} of the copy bandwidth predicted, {before:.1%} committed"


def key(of: dict[str, object]) -> tuple[str, ...]:
    return tuple(str(of[name]) for name in ("case", "dtype", "steps", "device"))


def committed_table() -> dict[tuple[str, ...], float]:
    """The committed fractions. Raises ValueError for a table that is missing, empty or damaged."""
    try:
        with TABLE.open(newline="") as stream:
            found = {key(dict(one)): float(one["fraction"]) for one in csv.DictReader(stream)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{TABLE} cannot be read: {type(error).__name__}: {error}") from error
    if not found:
        raise ValueError(f"{TABLE} has no rows")
    return found


def missing(rows: list[dict[str, object]], committed: dict[tuple[str, ...], float]) -> Iterator[str]:
    """What a library should have and has not: rows of the committed table, of devices some of whose kernels it has."""
    found = {key(one) for one in rows}
    devices = {of[3] for of in found}
    for case, dtype, steps, device in committed:
        if device in devices and (case, dtype, steps, device) not in found:
            yield f"{dtype} {case}, T = {steps}, {device}: no kernel of this case, which is in the committed table"


def table_of_page(rows: list[dict[str, object]]) -> str:
    """Cases against devices; of kernels, what the code of an H100 says."""
    by: dict[tuple[str, str, str], dict[str, dict[str, object]]] = {}
    for one in rows:
        by.setdefault((str(one["dtype"]), str(one["case"]), str(one["steps"])), {})[str(one["device"])] = one
    devices = [device.name for device in model.DEVICES]
    head = ["dtype", "case", "T", *devices, "registers", "warps", "instructions", "loads together", "bytes an access"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * 2 + ["---:"] * (len(head) - 2)) + " |"]
    for (dtype, case, steps), found in by.items():
        shares = [f"{float(str(found[d]['fraction'])):.0%}" if d in found else "" for d in devices]
        code = found.get("H100", {})
        said = [str(code.get(n, "")) for n in ("registers", "warps", "instructions", "together", "narrowest")]
        lines.append("| " + " | ".join([dtype, case, steps, *shares, *said]) + " |")
    return "\n".join(lines)


def write(rows: list[dict[str, object]]) -> None:
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = PAGE.read_text()
    start, end = "<!-- table -->", "<!-- end of table -->"
    before, after = text.split(start)[0], text.split(end)[1]
    PAGE.write_text(f"{before}{start}\n\n{table_of_page(rows)}\n\n{end}{after}")


def show(rows: Iterable[dict[str, object]]) -> None:
    names = [name for name in COLUMNS if name not in ("kernel", "architecture")]
    texts = [names, *([str(one[name]) for name in names] for one in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for text in texts:
        print("  ".join(part.ljust(width) for part, width in zip(text, widths, strict=True)).rstrip())


def of_case(given: tuple[cases.Case, list[listing.Kernel]]) -> list[dict[str, object]]:
    return list(rows_of(*given))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="make what is found the committed table")
    asked = parser.parse_args(arguments)
    for file in asked.files:
        if not file.is_file():
            parser.error(f"{file} is no file")
    of_library = all(file.suffix != ".cubin" for file in asked.files)
    if asked.write and not of_library:
        parser.error("--write takes a built library, which has all kernels, and no cubins")
    try:
        committed = {} if asked.write else committed_table()
    except ValueError as error:
        parser.error(str(error))
    cases.program()
    with ProcessPoolExecutor() as pool:
        kernels = []
        for file in asked.files:
            with tempfile.TemporaryDirectory() as folder:
                kernels += [one for found in pool.map(judged, cubins(file, Path(folder))) for one in found]
        whole = list(cases.cases())
        found = dict(zip(whole, pool.map(of_case, [(case, kernels) for case in whole]), strict=True))
    rows = [one for case in whole for one in found[case]]
    show(rows)
    if not rows:
        print("machine_code: none of the kernels that are judged is in these files")
        return 1
    wrong = [fault for case in whole for one in found[case] for fault in faults(case, one, committed)]
    if of_library:
        wrong += missing(rows, committed)
    for fault in wrong:
        print(f"machine_code: {fault}")
    if asked.write:
        write(rows)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
