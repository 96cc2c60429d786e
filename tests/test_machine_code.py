"""The gate on the kernels' machine code (.ci/machine_code.py): what it is made of, without nvcc and a GPU."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".ci"
if not FOLDER.is_dir():
    pytest.skip("the tests are not in the source tree, which has .ci", allow_module_level=True)
sys.path.insert(0, str(FOLDER))

import machine_code  # noqa: E402
from sass import cases, emulator, listing, model  # noqa: E402


def run(*lines: str, parameters: bytes = b"", special: dict[str, int] | None = None) -> list[emulator.Step]:
    kernel = listing.Kernel("test", "sm_90", parameters_at=0x210)
    listing.read_section(kernel, "\n".join(f"/*0000*/ {line} ;" if not line.endswith(":") else line for line in lines))
    return emulator.run(kernel, parameters, special or {})


def stored(*lines: str, parameters: bytes = b"", special: dict[str, int] | None = None) -> int:
    """The address of the only store, which the lines leave in R2 and R3."""
    steps = run(*lines, "STG.E.128 desc[UR4][R2.64], R4", "EXIT", parameters=parameters, special=special)
    (found,) = [step.access for step in steps if step.access]
    assert found.store and found.bytes == 16
    return found.address


@pytest.mark.parametrize(
    "lines, address",
    [
        (["MOV R2, 0x10", "MOV R3, 0x1"], 1 << 32 | 16),
        (["MOV R0, 0xffffffff", "IADD3 R2, P0, R0, 0x2, RZ", "IADD3.X R3, RZ, RZ, RZ, P0, !PT"], 1 << 32 | 1),
        (["MOV R0, 0x5", "IADD3 R2, P0, R0, -0x1, RZ", "MOV R3, R2", "CS2R R2, SRZ"], 0),
        (["MOV R0, 0x80000000", "IMAD.WIDE.U32 R2, R0, 0x4, RZ"], 1 << 33),
        (["MOV R0, 0xffffffff", "IMAD.WIDE R2, R0, 0x4, RZ"], (1 << 64) - 4),
        (["MOV R0, 0xc0000000", "LEA R2, P0, R0, 0x1, 0x2", "LEA.HI.X R3, R0, RZ, RZ, 0x2, P0"], 3 << 32 | 1),
        (["MOV R0, 0xc0000001", "LEA R2, P0, R0, 0xfffffffe, 0x2", "LEA.HI.X R3, R0, RZ, RZ, 0x2, P0"], 4 << 32 | 2),
        (["MOV R0, 0x7", "ISETP.GT.AND P0, PT, R0, 0x7, PT", "SEL R2, R0, 0x9, P0", "MOV R3, RZ"], 9),
        (["MOV R0, 0xf0", "LOP3.LUT R2, R0, 0x3c, RZ, 0xc0, !PT", "MOV R3, RZ"], 0x30),
        (["MOV R0, 0x1", "MOV R1, 0x80", "SHF.R.U64 R2, R1, 0x4, R0", "MOV R3, RZ"], 0x10000008),
        (["S2R R2, SR_TID.X", "MOV R3, RZ"], 77),
        (["ULDC.64 UR4, c[0x0][0x210]", "MOV R2, UR4", "MOV R3, UR5"], 0x1122334455667788),
    ],
)
def test_integers_are_those_of_the_machine(lines, address):
    assert stored(*lines, parameters=struct.pack("<Q", 0x1122334455667788), special={"SR_TID.X": 77}) == address


def test_a_loop_runs_as_often_as_its_parameter_says():
    lines = [
        "MOV R0, RZ",
        ".L_x_1:",
        "IADD3 R0, R0, 0x1, RZ",
        "ISETP.GE.AND P0, PT, R0, c[0x0][0x210], PT",
        "@!P0 BRA `(.L_x_1)",
        "EXIT",
    ]
    assert len(run(*lines, parameters=struct.pack("<I", 5))) == 2 + 3 * 5


def test_what_is_not_known_is_an_error_that_names_it():
    with pytest.raises(NotImplementedError, match=r"FROBNICATE\.X R1, R2"):
        run("FROBNICATE.X R1, R2", "EXIT")


def test_loads_issued_together_are_waited_for_once():
    loads = [f"LDG.E.128 R{4 * i}, desc[UR4][R{40 + 2 * i}.64]" for i in range(4)]
    setup = [f"MOV R{40 + 2 * i}, {hex(64 * i)}" for i in range(4)]
    uses = [f"FADD R60, R{4 * i}, RZ" for i in range(4)]
    together = run(*setup, *loads, *uses, "EXIT")
    apart = run(*setup, *(line for pair in zip(loads, uses, strict=True) for line in pair), "EXIT")
    waited, flying = model.timeline(together, 700)
    assert flying == 4 and 690 <= waited <= 700
    waited, flying = model.timeline(apart, 700)
    assert flying == 1 and 4 * 690 <= waited <= 4 * 700


def test_narrow_stores_ask_the_cache_for_more():
    wide = run("MOV R3, 0x1000", "STG.E.128 desc[UR4][R2.64], R4", "EXIT")
    narrow = run("MOV R3, 0x1000", *(f"STG.E desc[UR4][R2.64+{hex(4 * i)}], R{i}" for i in range(4)), "EXIT")
    a, b = (model.way(steps, 16, 4) for steps in (wide, narrow))
    assert (a.narrowest, b.narrowest) == (16, 4)
    assert a.bytes == b.bytes == 32 * 16
    assert b.sectors == 4 * a.sectors == 4 * 16
    assert model.way([*wide, *narrow], 16, 4).narrowest == 4


def test_a_network_has_the_throughput_of_its_narrowest_station_and_of_one_customer_alone():
    assert model.throughput(1, [2.0, 3.0], 5.0) == pytest.approx(1 / 10)
    assert model.throughput(1000, [2.0, 3.0], 5.0) == pytest.approx(1 / 3, rel=1e-3)
    assert model.throughput(4, [0.0, 0.0, 1e-9], 8.0) == pytest.approx(4 / 8)
    # The second customer finds the first at the stations for 1/5 and 3/10 of the time, half served.
    assert model.throughput(2, [2.0, 3.0], 5.0) == pytest.approx(2 / (5 + 2 * 1.1 + 3 * 1.15))
    found = [model.throughput(n, [2.0, 3.0], 20.0) for n in range(1, 20)]
    assert found == sorted(found)


def test_warps_are_as_many_as_registers_and_shared_memory_hold():
    h100 = next(device for device in model.DEVICES if device.name == "H100")
    assert [model.resident_warps(h100, registers, 0) for registers in (32, 64, 128, 168, 255)] == [64, 32, 16, 12, 8]
    assert model.resident_warps(h100, 32, 100 << 10) == 8
    rtx = next(device for device in model.DEVICES if device.name == "RTX 5090")
    assert model.resident_warps(rtx, 32, 0) == 48


def test_the_committed_table_has_every_case_of_every_device():
    import csv

    with (ROOT / "benchmarks" / "results" / "predicted" / "kernels.csv").open(newline="") as stream:
        rows = [(one["case"], one["dtype"], one["steps"], one["device"]) for one in csv.DictReader(stream)]
    wanted = {(c.name, c.dtype, str(c.steps), d.name) for c in cases.cases() for d in model.DEVICES}
    assert len(rows) == len(set(rows)) and set(rows) == wanted


def test_a_kernel_that_is_no_longer_built_is_a_fault():
    row = {"case": "if", "dtype": "float32", "steps": "4", "device": "H100"}
    committed = {machine_code.key(row): 0.9, ("if", "float32", "10", "H100"): 0.9, ("if", "float32", "4", "A100"): 0.9}
    (fault,) = machine_code.missing([row], committed)  # none of an A100's kernels is in the file: another one's
    assert fault.startswith("float32 if, T = 10, H100: no kernel of this case")
    assert not list(machine_code.missing([row, {**row, "steps": "10"}], committed))


@pytest.mark.parametrize(
    "content", [None, "", "case,dtype,steps,device\nif,float32,4,H100\n", "case,dtype,steps,device,fraction\nif,float"]
)
def test_a_damaged_committed_table_is_an_error_before_anything_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str | None
):
    table, library = tmp_path / "kernels.csv", tmp_path / "_core.so"
    library.touch()
    if content is not None:
        table.write_text(content)
    monkeypatch.setattr(machine_code, "TABLE", table)
    with pytest.raises(SystemExit):
        machine_code.main([str(library)])
    assert str(table) in capsys.readouterr().err


def test_arguments_that_cannot_be_judged_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cubin = tmp_path / "one.cubin"
    cubin.touch()
    for arguments, said in (
        (["--write", str(cubin)], "--write takes a built library, which has all kernels, and no cubins"),
        ([str(tmp_path / "none.so")], "is no file"),
    ):
        with pytest.raises(SystemExit):
            machine_code.main(arguments)
        assert said in capsys.readouterr().err
