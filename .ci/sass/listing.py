"""The kernels of a cubin: their instructions as nvdisasm prints them, and what they take of a multiprocessor."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path


def tool(name: str) -> str:
    """The path of cuobjdump or nvdisasm: of PyPI's packages nvidia-cuda-*, or of a CUDA toolkit on PATH."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    found = sorted(packages.glob(f"*/bin/{name}")) or list(filter(None, [shutil.which(name)]))
    if not found:
        raise SystemExit(f"{name} is missing: python -m pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return str(found[0])


@dataclass(frozen=True)
class Instruction:
    """``@!P0 IMAD.WIDE R2, R3, 0x4, R6``: the guard, the opcode with its modifiers, the operands."""

    guard: str
    opcode: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'@' + self.guard + ' ' if self.guard else ''}{self.opcode} {', '.join(self.operands)}"


@dataclass
class Kernel:
    """One kernel of one architecture."""

    name: str  # demangled, without result and parameters
    architecture: str  # "sm_90"
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: int = 0
    shared: int = 0  # bytes
    parameters_at: int = 0  # in constant bank 0


LINE = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@(?P<guard>!?U?P[T\d]+)\s+)?(?P<opcode>[\w.]+)(?P<operands>[^;]*);"
)
LABEL = re.compile(r"^(?P<label>[.$][\w$.]+):\s*$")


def instruction(line: str) -> Instruction | None:
    """What a line of a listing says; None where it holds no instruction."""
    found = LINE.search(re.sub(r"\(\*.*?\*\)", "", line))  # remarks
    if not found:
        return None
    operands = tuple(part.strip() for part in split(found["operands"]) if part.strip())
    return Instruction(found["guard"] or "", found["opcode"], operands)


def split(operands: str) -> list[str]:
    """At commas outside of brackets."""
    return re.split(r",(?![^\[(]*[\])])", operands.replace("`", ""))


def read_section(kernel: Kernel, text: str) -> None:
    for line in text.splitlines():
        if label := LABEL.match(line.strip()):
            kernel.labels[label["label"]] = len(kernel.instructions)
        elif (found := instruction(line)) is not None:
            kernel.instructions.append(found)


def demangled(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names) + "\n", stdout=subprocess.PIPE, text=True, check=True)
    return [re.sub(r"^void |\((?:snnfast|float|double)[^()]*\)$", "", name) for name in done.stdout.splitlines()]


def parameters(cubin: Path) -> dict[str, int]:
    """Mangled name → offset of the parameters in constant bank 0."""
    text = subprocess.run([tool("cuobjdump"), "-elf", str(cubin)], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = {}
    for part in re.split(r"\n\.nv\.info\.", text)[1:]:
        bank = re.search(
            r"EIATTR_PARAM_CBANK\s+Format:\s*EIFMT_SVAL\s+Value:\s*0x[0-9a-f]+\s+0x(?P<value>[0-9a-f]+)", part
        )
        if bank:
            found[part.split(None, 1)[0]] = int(bank["value"], 16) & 0xFFFF
    return found


def usage(cubin: Path) -> dict[str, tuple[int, int]]:
    """Mangled name → registers of a thread, bytes of shared memory of a block."""
    run = subprocess.run([tool("cuobjdump"), "-res-usage", str(cubin)], capture_output=True, text=True, check=True)
    pattern = re.compile(r"Function (?P<name>[\w$]+):\s+REG:(?P<registers>\d+) .*?SHARED:(?P<shared>\d+)")
    said = run.stdout + run.stderr
    return {m["name"]: (int(m["registers"]), int(m["shared"])) for m in pattern.finditer(said)}


def kernels(cubin: Path) -> list[Kernel]:
    """All kernels of a cubin."""
    run = subprocess.run([tool("nvdisasm"), "-c", str(cubin)], stdout=subprocess.PIPE, text=True, check=True)
    target = re.search(r"\.target\s+(sm_\d+)", run.stdout)
    parts = re.split(r"\n\.text\.(\S+):\n", run.stdout)
    offsets, used = parameters(cubin), usage(cubin)
    result = []
    for mangled, name, text in zip(parts[1::2], demangled(parts[1::2]), parts[2::2], strict=True):
        kernel = Kernel(name, target[1] if target else "")
        kernel.registers, kernel.shared = used.get(mangled, (0, 0))
        kernel.parameters_at = offsets.get(mangled, 0)
        read_section(kernel, text)
        result.append(kernel)
    return result
