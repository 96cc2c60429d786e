"""One thread of a kernel, instruction by instruction, with real integers: the way that it takes through the code, and
every access to global memory on it.

What is loaded from memory and what is computed with floats is 0: no way depends on it. A branch that would is an
error of the kernel's (its threads would part), one on an opcode that is missing here an error of this file's.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from sass.listing import Instruction, Kernel

MASK = 0xFFFFFFFF
LONGEST = 2_000_000  # instructions; a way that is longer does not end


@dataclass(frozen=True)
class Access:
    """An access to memory: global, or local where registers were spilled."""

    store: bool
    bytes: int
    address: int
    local: bool = False


@dataclass(frozen=True)
class Step:
    """An executed instruction, with the registers that it reads and writes."""

    opcode: str
    reads: frozenset[str]
    writes: frozenset[str]
    access: Access | None = None


@dataclass
class Thread:
    """Registers, predicates and constants, by name: R0, UR0, P0, UP0."""

    parameters: bytes
    parameters_at: int
    special: dict[str, int]
    values: dict[str, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    local: dict[int, int] = field(default_factory=dict)  # memory of its own
    reads: set[str] = field(default_factory=set)

    def constant(self, offset: int, size: int) -> int:
        at = offset - self.parameters_at
        if at < 0 or at + size > len(self.parameters):
            return self.special.get(f"c{offset:#x}", 0)  # the launch's own: stack, descriptors, grid
        return int.from_bytes(self.parameters[at : at + size], "little")

    def register(self, name: str) -> int:
        if name in ("RZ", "URZ", "SRZ"):
            return 0
        self.reads.add(name)
        return self.values.get(name, 0)

    def predicate(self, name: str) -> bool:
        inverted, plain = name.startswith("!"), name.lstrip("!")
        if plain in ("PT", "UPT"):
            return not inverted
        self.reads.add(plain)
        return bool(self.values.get(plain, 0)) != inverted

    def value(self, operand: str, size: int = 4) -> int:
        """Of a source operand, as an unsigned number of ``size`` bytes."""
        operand = re.sub(r"\.(reuse|64|H0_H0|H1_H1)\b", "", operand)
        wide = (1 << 8 * size) - 1
        if operand.startswith("~"):
            return ~self.value(operand[1:], size) & wide
        if re.match(r"-(?:U?R|c\[|\|)", operand):
            return -self.value(operand[1:], size) & wide
        if constant := re.fullmatch(r"c\[0x0\]\[(?P<at>[^\]]*)\]", operand):
            return self.constant(self.sum_of(constant["at"]), size)
        if re.fullmatch(r"c\[0x[1-9]\]\[[^\]]*\]", operand):  # another bank's: literals of floats
            return 0
        if re.fullmatch(r"\|?U?R(?:\d+|Z)\|?", operand):
            name = operand.strip("|")
            low = self.register(name)
            return low if size == 4 else low | self.register(after(name)) << 32
        if re.fullmatch(r"-?0x[0-9a-f]+", operand):
            return int(operand, 16) & wide
        try:
            return struct.unpack("<I", struct.pack("<f", float(operand.replace("+", ""))))[0]
        except (ValueError, OverflowError):
            raise NotImplementedError(f"operand {operand}") from None

    def sum_of(self, address: str) -> int:
        """``R2.64+UR4+0x10``."""
        total = 0
        for part in re.findall(r"-?[^+\s]+", address.replace("+-", "+ -")):
            total += signed(self.value(part, 8 if ".64" in part else 4), 64 if ".64" in part else 32)
        return total

    def put(self, name: str, value: int, size: int = 4) -> None:
        name = name.removesuffix(".64")
        if name in ("RZ", "URZ", "PT", "UPT"):
            return
        self.values[name] = value & MASK
        if size == 8:
            self.put(after(name), value >> 32)


def after(register: str) -> str:
    """The register that holds the higher half of a pair."""
    found = re.fullmatch(r"(U?R)(\d+)", register)
    return f"{found[1]}{int(found[2]) + 1}" if found else register


def signed(value: int, bits: int = 32) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def is_predicate(operand: str) -> bool:
    return re.fullmatch(r"!?U?P(?:\d|T)", operand) is not None


# What an opcode does: (thread, modifiers, operands) → nothing. Results come first among the operands.
Meaning = Callable[[Thread, list[str], list[str]], None]


def parted(operands: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Predicates that are written, sources, predicates that are read, of all operands after the first result."""
    first = next((i for i, one in enumerate(operands) if not is_predicate(one)), len(operands))
    last = next((i for i in range(len(operands), first, -1) if not is_predicate(operands[i - 1])), first)
    return operands[:first], operands[first:last], operands[last:]


def add(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    carries, sources, carried = parted(operands[1:])
    wide = "64" in modifiers
    size, bits = (8, 64) if wide else (4, 32)
    total = 0
    for source in sources:
        if source.startswith("-"):
            total += (~t.value(source[1:], size) & ((1 << bits) - 1)) + 1
        else:
            total += t.value(source, size)
    if "X" in modifiers:
        total += sum(t.predicate(one) for one in carried)
    t.put(operands[0], total, size)
    for i, carry in enumerate(carries):
        t.put(carry, int(total >> bits > i))


def multiply_add(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    carries, (a, b, c), carried = parted(operands[1:])
    of = (lambda x: t.value(x)) if "U32" in modifiers else (lambda x: signed(t.value(x)))
    if "WIDE" in modifiers:
        total = (of(a) * of(b) & (1 << 64) - 1) + t.value(c, 8)
        if "X" in modifiers:
            total += sum(t.predicate(one) for one in carried)
        t.put(operands[0], total, 8)
        for carry in carries:
            t.put(carry, total >> 64 & 1)
    elif "HI" in modifiers:
        t.put(operands[0], (of(a) * of(b) >> 32) + t.value(c))
    else:
        total = t.value(a) * t.value(b) + t.value(c)
        t.put(operands[0], total + sum(t.predicate(one) for one in carried) * ("X" in modifiers))


def shift_add(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    carries, sources, carried = parted(operands[1:])
    if "HI" in modifiers:
        a, b = sources[:2]
        low = t.value(a)
        high = MASK * (low >> 31) if "SX32" in modifiers else t.value(sources[2])
        shifted = ((high << 32 | low) << t.value(sources[-1])) >> 32 & MASK
    else:
        a, b = sources[:2]
        shifted = t.value(a) << t.value(sources[2]) & MASK
    total = shifted + (t.value(b) if not b.startswith("-") else (~t.value(b[1:]) & MASK) + 1)
    if "X" in modifiers:
        total += sum(t.predicate(one) for one in carried)
    t.put(operands[0], total)
    for carry in carries:
        t.put(carry, total >> 32 & 1)


def logic(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    written = [operands[0]] if is_predicate(operands[0]) else []
    result, a, b, c, table, *read = operands[len(written) :]
    x, y, z, lut = t.value(a), t.value(b), t.value(c), int(table, 16)
    found = 0
    for i in range(8):
        if lut >> i & 1:
            found |= (x if i & 4 else ~x) & (y if i & 2 else ~y) & (z if i & 1 else ~z)
    found &= MASK
    t.put(result, found)
    for one in written:
        t.put(one, int(found != 0 or any(t.predicate(p) for p in read)))


def predicate_logic(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    p, q, a, b, c, first, second = operands
    which = t.predicate(a) << 2 | t.predicate(b) << 1 | t.predicate(c)
    for one, table in ((p, first), (q, second)):
        t.put(one, int(table, 16) >> which & 1)


COMPARISONS = ("EQ", "NE", "LT", "LE", "GT", "GE")


def compare(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    how = next(m for m in modifiers if m in COMPARISONS)
    wide = bool({"S64", "U64", "64"} & set(modifiers))
    size, bits = (8, 64) if wide else (4, 32)
    p, q, a, b, *read = operands
    x, y = t.value(a, size), t.value(b, size)
    if "U32" not in modifiers and "U64" not in modifiers:
        x, y = signed(x, bits), signed(y, bits)
    found = {"EQ": x == y, "NE": x != y, "LT": x < y, "LE": x <= y, "GT": x > y, "GE": x >= y}[how]
    if "EX" in modifiers and x == y:  # the lower halves decide
        found = t.predicate(read[-1])
    with_ = t.predicate(read[0]) if read else True
    t.put(p, int(found or with_) if "OR" in modifiers else int(found and with_))
    t.put(q, int(not found or with_) if "OR" in modifiers else int(not found and with_))


def select(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    result, a, b, p = operands
    size = 8 if "64" in modifiers else 4
    t.put(result, t.value(a, size) if t.predicate(p) else t.value(b, size), size)


def shift(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    result, low, by, *rest = operands
    count, bits = t.value(by), 64 if {"U64", "S64", "64"} & set(modifiers) else 32
    pair = (t.value(rest[0]) if rest else 0) << 32 | t.value(low)
    if "L" in modifiers:
        t.put(result, (pair << count) >> (32 if "HI" in modifiers else 0))
    elif "HI" in modifiers:
        whole = signed(pair, 64) if {"S32", "S64"} & set(modifiers) else pair
        t.put(result, whole >> min(count, 32 if bits == 32 else 63) >> 32)
    else:
        t.put(result, pair >> count)


def move(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    size = 8 if "64" in modifiers else 4
    t.put(operands[0], t.value(operands[1], size), size)


def load_constant(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    size = {"64": 8, "U8": 1, "S8": 1, "U16": 2, "128": 16}.get(modifiers[-1] if modifiers else "", 4)
    at = re.fullmatch(r"c\[0x0\]\[(?P<at>[^\]]*)\]", operands[1].removesuffix(".64"))
    assert at, operands
    value, name = t.constant(t.sum_of(at["at"]), size), operands[0].removesuffix(".64")
    for _ in range(max(size // 4, 1)):
        t.put(name, value)
        name, value = after(name), value >> 32


def special(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    t.put(operands[0], t.special.get(operands[1], 0), 4 if "32" in modifiers or not operands[1].endswith("RZ") else 8)


def least_or_most(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    result, *sources, least = operands
    of = (lambda x: t.value(x)) if "U32" in modifiers else (lambda x: signed(t.value(x)))
    values = [of(sources[0]), of(sources[1])]
    if len(sources) == 3:  # VIADDMNMX: a + b, then with c
        values = [signed(values[0] + values[1] & MASK), of(sources[2])]
    t.put(result, min(values) if t.predicate(least) else max(values))


def halves(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    """HFMA2 of zeros is how a constant is loaded; of anything else a float."""
    result, a, b, *constants = operands
    if "RZ" in a and "RZ" in b and len(constants) == 2:
        high, low = (struct.unpack("<H", struct.pack("<e", float(c.replace("+", ""))))[0] for c in constants)
        t.put(result, high << 16 | low)
    else:
        t.put(result, 0)


def predicates_to_register(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    packed = sum(bool(t.values.get(f"P{i}")) << i for i in range(7))
    t.reads.update(f"P{i}" for i in range(7))
    mask = t.value(operands[3])
    t.put(operands[0], packed & mask | t.value(operands[2]) & ~mask)


def nothing(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    pass


def a_float(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    t.put(operands[0], 0)
    for operand in operands[1:]:
        for name in re.findall(r"\bU?R\d+", operand):
            t.register(name)
        if is_predicate(operand):
            t.predicate(operand)


def a_double(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    a_float(t, modifiers, operands)
    t.put(operands[0], 0, 8)


def a_float_comparison(t: Thread, modifiers: list[str], operands: list[str]) -> None:
    a_float(t, modifiers, operands[1:])
    t.put(operands[0], 0)
    if is_predicate(operands[1]):
        t.put(operands[1], 0)


MEANINGS: dict[str, Meaning] = {
    **dict.fromkeys(("IADD3", "UIADD3", "VIADD", "IADD", "UIADD"), add),
    **dict.fromkeys(("IMAD", "UIMAD"), multiply_add),
    **dict.fromkeys(("LEA", "ULEA"), shift_add),
    **dict.fromkeys(("LOP3", "ULOP3"), logic),
    **dict.fromkeys(("PLOP3", "UPLOP3"), predicate_logic),
    **dict.fromkeys(("ISETP", "UISETP"), compare),
    **dict.fromkeys(("SEL", "USEL"), select),
    **dict.fromkeys(("SHF", "USHF"), shift),
    **dict.fromkeys(("MOV", "UMOV", "R2UR", "MOV32I"), move),
    **dict.fromkeys(("LDC", "ULDC", "LDCU"), load_constant),
    **dict.fromkeys(("S2R", "S2UR", "CS2R", "CS2UR"), special),
    **dict.fromkeys(("IMNMX", "VIMNMX", "UIMNMX", "VIADDMNMX", "UVIMNMX", "UVIADDMNMX"), least_or_most),
    **dict.fromkeys(("HFMA2",), halves),
    **dict.fromkeys(("P2R",), predicates_to_register),
    **dict.fromkeys(("FSETP", "DSETP"), a_float_comparison),
    **dict.fromkeys(("FCHK",), lambda t, m, o: t.put(o[0], 0)),
    **dict.fromkeys(
        (
            "FADD",
            "FMUL",
            "FFMA",
            "FSEL",
            "MUFU",
            "F2FP",
            "I2FP",
            "I2F",
            "F2I",
            "FMNMX",
            "HADD2",
            "PRMT",
            "UFADD",
            "UFMUL",
            "UI2F",
        ),
        a_float,
    ),
    **dict.fromkeys(("DADD", "DMUL", "DFMA"), a_double),
    **dict.fromkeys(("F2F",), lambda t, m, o: (a_double if m[0] == "F64" else a_float)(t, m, o)),
    **dict.fromkeys(("NOP", "BSSY", "BSYNC", "BAR", "WARPSYNC", "STS", "DEPBAR", "MEMBAR", "YIELD", "BREAK"), nothing),
}


def access(t: Thread, opcode: str, modifiers: list[str], operands: list[str]) -> Access | None:
    """Of a load or store; a load writes 0."""
    store, local = opcode.startswith("ST"), opcode in ("LDL", "STL")
    size = next((int(m) // 8 for m in modifiers if m in ("64", "128")), 2 if "U16" in modifiers else 4)
    place = next(one for one in operands if "[" in one)
    inside = re.search(r"\[(?P<at>[^\[\]]*)\]$", place)
    assert inside, operands
    address = 0 if opcode in ("LDS", "STS") else t.sum_of(inside["at"]) & (1 << 64) - 1
    if store:
        for n, i in enumerate(block(operands[-1], size)):
            value = t.register(f"R{i}")
            if local:
                t.local[address + 4 * n] = value
    else:
        for n, i in enumerate(block(operands[0], size)):
            t.put(f"R{i}", t.local.get(address + 4 * n, 0) if local else 0)
    return None if opcode in ("LDS", "STS") else Access(store, size, address, local)


def block(register: str, size: int) -> range:
    """The numbers of the registers of an access."""
    name = register.removesuffix(".reuse")
    first = 0 if name == "RZ" else int(name[1:])
    return range(0) if name == "RZ" else range(first, first + max(size // 4, 1))


def run(kernel: Kernel, parameters: bytes, special_registers: dict[str, int]) -> list[Step]:
    """All instructions that one thread executes.

    Raises:
        NotImplementedError: an opcode or operand that is not known here.
        RuntimeError: the way does not end.
    """
    t = Thread(parameters, kernel.parameters_at, special_registers)
    at, returns = 0, []
    for _ in range(LONGEST):
        line = kernel.instructions[at]
        t.reads, before = set(), dict(t.values)
        at += 1
        found, taken = None, not line.guard or t.predicate(line.guard)
        opcode, *modifiers = line.opcode.split(".")
        operands = list(line.operands)
        if taken and opcode == "EXIT":
            t.steps.append(Step("EXIT", frozenset(), frozenset()))
            return t.steps
        if taken and opcode in ("BRA", "CALL", "RET", "JMP"):
            if opcode == "CALL":
                returns.append(at)
            guards = [one for one in operands[:-1] if is_predicate(one)]
            if all(t.predicate(one) for one in guards):
                at = returns.pop() if opcode == "RET" else kernel.labels[re.sub(r"[`()]", "", operands[-1])]
        elif taken and opcode in ("LDG", "STG", "LDL", "STL", "LDS"):
            found = access(t, opcode, modifiers, operands)
        elif taken and opcode not in ("BRA", "CALL", "RET", "EXIT"):
            if opcode not in MEANINGS:
                raise NotImplementedError(f"{kernel.name} ({kernel.architecture}): {line}")
            MEANINGS[opcode](t, modifiers, operands)
        t.steps.append(Step(line.opcode, frozenset(t.reads), results(line, before, taken), found))
    raise RuntimeError(f"{kernel.name}: more than {LONGEST} instructions")


def results(line: Instruction, before: dict[str, int], taken: bool) -> frozenset[str]:
    """The registers that an instruction writes."""
    if not taken or not line.operands or line.opcode.startswith(("ST", "BRA", "BAR", "EXIT", "NOP", "BS")):
        return frozenset()
    first = line.operands[0].removesuffix(".64")
    if not re.fullmatch(r"U?R\d+", first):
        return frozenset(one for one in line.operands[:2] if is_predicate(one))
    size = next((int(m) // 32 for m in line.opcode.split(".") if m in ("64", "128")), 1)
    size = max(size, 2 if ".WIDE" in line.opcode or line.opcode.startswith(("CS2R", "D")) else 1)
    names = [first]
    for _ in range(size - 1):
        names.append(after(names[-1]))
    return frozenset(names)
