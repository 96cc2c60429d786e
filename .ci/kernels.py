"""Lists every CUDA kernel's registers and spills per architecture, from what `ptxas -v` said during a build.

    python .ci/kernels.py LOG

LOG is the file that setup.py writes where SNNFAST_BUILD_LOG names it. Exit code 1 where a kernel spills more than it
may, or where the log has no kernels at all.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "csrc"

ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'")
FUNCTION = re.compile(r"Function properties for (?P<name>\w+)")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")

# ptxas trades a few bytes of spills for another block per multiprocessor, which is a bargain (machine_code.py counts
# what it costs and gains); more is a kernel that has outgrown its registers.
ALLOWED_SPILLS = 256  # bytes a thread stores and loads, together


@dataclass
class Use:
    """What one kernel takes on one architecture; bytes are per thread."""

    registers: int = 0
    stack: int = 0
    spilled: int = 0  # stored and loaded

    def __str__(self) -> str:
        text = str(self.registers)
        if self.stack:
            text += f" stack {self.stack}"
        if self.spilled:
            text += f" SPILLS {self.spilled}"
        return text


def read(log: str) -> dict[str, dict[str, Use]]:
    """Mangled name → architecture → use. A device function that was not inlined counts to the kernel before it."""
    found: dict[str, dict[str, Use]] = {}
    use = None
    for line in log.splitlines():
        if entry := ENTRY.search(line):
            use = found.setdefault(entry["name"], {}).setdefault(entry["architecture"], Use())
        elif use is None:
            continue
        elif spills := SPILLS.search(line):
            stack, stores, loads = map(int, spills.groups())
            use.stack += stack
            use.spilled += stores + loads
        elif registers := REGISTERS.search(line):
            use.registers = int(registers[1])
    return found


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Mangled names → short ones: kernel<dtype, width, …>. Unchanged where no demangler is installed."""
    names = list(names)
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        return {name: name for name in names}
    done = subprocess.run([tool], input="\n".join(names) + "\n", stdout=subprocess.PIPE, text=True, check=True)
    return {name: shorten(full) for name, full in zip(names, done.stdout.splitlines(), strict=True)}


def shorten(name: str) -> str:
    name = re.sub(r"^void |\([^()]*\)$|\b\w+::", "", name)
    name = re.sub(r"_kernel\b", "", name)
    return name.replace("(int)", "").replace("(bool)", "").replace("> >", ">>")


def parameters() -> list[str]:
    """kernel<parameter, …> for each template in the source: the table's legend."""
    pattern = re.compile(r"template <([^<>]*)>\s*__global__[^{;]*?\b(\w+)_kernel\(")
    return [
        f"{name}<{', '.join(part.split()[-1] for part in given.split(','))}>"
        for file in sorted((SOURCE / "cuda").glob("*.cuh"))
        for given, name in pattern.findall(file.read_text())
    ]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    log = Path(arguments[0])
    found = read(log.read_text()) if log.is_file() else {}
    if not found:
        print(f"kernels: {log} lists no CUDA kernel: was the build made without nvcc, or without -Xptxas=-v?")
        return 1
    names = demangle(found)
    number = re.compile(r"\d+")
    architectures = sorted({a for uses in found.values() for a in uses}, key=lambda a: (int(number.search(a)[0]), a))

    rows = [["registers of", *architectures]]
    for mangled in sorted(found, key=names.__getitem__):
        rows.append([names[mangled], *(str(found[mangled].get(a, "-")) for a in architectures)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))]))

    print(f"\n{'; '.join(parameters())}")
    for architecture in architectures:
        uses = {names[m]: uses[architecture] for m, uses in found.items() if architecture in uses}
        most = max(uses, key=lambda name: uses[name].registers)
        spilling = [name for name, use in uses.items() if use.spilled]
        print(
            f"{architecture}: {len(uses)} kernels, {len(spilling)} spill; most registers {uses[most].registers}: {most}"
        )
    excessive = [names[m] for m, uses in found.items() if any(u.spilled > ALLOWED_SPILLS for u in uses.values())]
    if excessive:
        print(f"kernels: more than {ALLOWED_SPILLS} bytes spilled by {', '.join(sorted(excessive))}")
    return 1 if excessive else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
