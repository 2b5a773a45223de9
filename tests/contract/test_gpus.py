"""The contract of the port `Gpus` over a driver and an nvidia-smi that are told what to say:
nvidia-ml-py really loads a library and calls it, in a process of its own."""

import os
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest

from schemas.events.profile import GpuProcess
from tests.contract.gpu_machine import GIB, REMEMBER_S, Machine

pytestmark = pytest.mark.needs("g++")

MIB = 1 << 20
LOST, MISMATCH = 15, 18

TWO = {
    "count": 2,
    "total.0": 24 * GIB, "free.0": 20 * GIB, "reserved.0": GIB // 2,
    "total.1": 80 * GIB, "free.1": 80 * GIB,
    "compute.count.0": 1, "compute.0.pid.0": 4001, "compute.0.used.0": 3 * GIB,
}  # fmt: skip
"""Of the first GPU's 24 GiB, 20 are free and half a one is the driver's own."""

FIRST = {
    "index": "0", "uuid": "GPU-00000000", "name": "Fake GPU 0",
    "memory.total": "24576", "memory.used": "3584", "memory.free": "20480",
}  # fmt: skip
SECOND = {
    "index": "1", "uuid": "GPU-00000001", "name": "Fake GPU 1",
    "memory.total": "81920", "memory.used": "0", "memory.free": "81920",
}  # fmt: skip
APP = {"gpu_uuid": "GPU-00000000", "pid": "4001", "used_memory": "3072", "process_name": "/opt/fake/process-4001"}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def bare(machine: Machine) -> Machine:
    if find_library("nvidia-ml"):
        pytest.skip("this machine has NVIDIA's own library: absence can't be played on it")
    return machine


def by_nvml(machine: Machine) -> None:
    machine.install_driver()
    machine.driver_says(TWO)


def by_an_old_driver(machine: Machine) -> None:
    machine.install_driver("-DOLD")
    machine.driver_says({**TWO, "reserved.0": 0, "free.0": 20 * GIB + GIB // 2})


def by_nvidia_smi(machine: Machine) -> None:
    machine.install_driver()
    machine.driver_says({"init": MISMATCH})
    machine.install_smi()
    machine.smi_says([FIRST, SECOND], [APP])


@pytest.mark.parametrize("way", [by_nvml, by_an_old_driver, by_nvidia_smi])
def test_every_way_tells_bytes_names_and_processes(machine: Machine, way: Callable[[Machine], None]) -> None:
    way(machine)
    heard = machine.read()
    first, second = heard.reading.gpus
    assert (first.index, first.name, first.uuid) == (0, "Fake GPU 0", "GPU-00000000")
    assert (first.total, first.used) == (24 * GIB, 3 * GIB + GIB // 2)
    assert first.processes == [GpuProcess(4001, "/opt/fake/process-4001", 3 * GIB)]
    assert (second.total, second.used, second.free, second.processes) == (80 * GIB, 0, 80 * GIB, [])
    assert heard.reading.source == ("nvidia-smi" if way is by_nvidia_smi else "nvml")
    assert heard.took_s < 2


# --- NVML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("counted_in", [0, 1])
def test_what_the_driver_keeps_for_itself_is_neither_used_nor_free(machine: Machine, counted_in: int) -> None:
    machine.install_driver()
    machine.driver_says({**TWO, "used_has_reserved": counted_in})
    first = machine.read().reading.gpus[0]
    assert (first.used, first.free) == (3 * GIB + GIB // 2, 20 * GIB)
    assert first.total - first.used - first.free == GIB // 2


def test_every_reading_is_a_fresh_one(machine: Machine) -> None:
    by_nvml(machine)
    assert machine.read().reading.free == 100 * GIB
    machine.driver_says({**TWO, "free.1": 10 * GIB})
    assert machine.read().reading.free == 30 * GIB


def test_a_process_is_listed_once_with_what_is_known_of_it(machine: Machine) -> None:
    processes = {
        # 1 computes and draws: the same memory twice. 2 has parts on two MIG instances.
        "compute.count.0": 4,
        "compute.0.pid.0": 1, "compute.0.used.0": 5 * MIB,
        "compute.1.pid.0": 2, "compute.1.used.0": 7 * MIB,
        "compute.2.pid.0": 2, "compute.2.used.0": 8 * MIB,
        "compute.3.pid.0": 3,  # the driver won't say how much
        "graphics.count.0": 2,
        "graphics.0.pid.0": 1, "graphics.0.used.0": 5 * MIB,
        "graphics.1.pid.0": 9, "graphics.1.used.0": MIB,
    }  # fmt: skip
    machine.install_driver()
    machine.driver_says({**TWO, **processes, "mig.0": 1, "nameless.9": 1})
    reading = machine.read().reading
    listed = reading.gpus[0].processes
    assert listed is not None
    assert [(process.pid, process.used) for process in listed] == [(1, 5 * MIB), (2, 15 * MIB), (3, None), (9, MIB)]
    assert "GPU 0 is split into MIG instances" in reading.reason


def test_a_name_that_the_driver_does_not_know_is_the_systems(machine: Machine) -> None:
    own = {"compute.0.pid.0": os.getpid(), f"nameless.{os.getpid()}": 1}
    machine.install_driver()
    machine.driver_says({**TWO, **own})
    listed = machine.read().reading.gpus[0].processes
    assert listed is not None
    assert listed[0].name == Path("/proc/self/comm").read_text().strip()


@pytest.mark.parametrize(
    ("refused", "expected"), [({"compute.code.0": 4}, None), ({"compute.code.0": 3}, None), ({"graphics.code.0": 3}, 1)]
)
def test_processes_are_unknown_where_the_driver_refuses(
    machine: Machine, refused: dict[str, int], expected: int | None
) -> None:
    machine.install_driver()
    machine.driver_says({**TWO, **refused})
    first = machine.read().reading.gpus[0]
    assert (None if first.processes is None else len(first.processes)) == expected
    assert first.total == 24 * GIB


@pytest.mark.parametrize("where", ["handle.0", "memory.0"])
def test_a_lost_gpu_is_named_and_the_others_are_read(machine: Machine, where: str) -> None:
    machine.install_driver()
    machine.driver_says({**TWO, where: LOST})
    reading = machine.read().reading
    assert [gpu.index for gpu in reading.gpus] == [1]
    assert reading.reason.startswith("GPU 0 tells no memory: the GPU is lost")
    machine.driver_says({**TWO, "epoch": 1})  # reset: only who opens the driver anew is answered
    assert [gpu.index for gpu in machine.read().reading.gpus] == [0, 1]


def test_a_driver_that_was_reset_is_opened_anew(machine: Machine) -> None:
    by_nvml(machine)
    assert machine.read().reading.source == "nvml"
    machine.driver_says({**TWO, "epoch": 1})
    assert machine.read().reading.source == "none"
    time.sleep(REMEMBER_S)
    assert machine.read().reading.source == "nvml"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (4, "the NVIDIA driver refuses this user"),
        (9, "its kernel module isn't loaded"),
        (MISMATCH, "different versions"),
        (27, "the NVIDIA driver says: Fake Error 27 (code 27)"),
    ],
)
def test_a_driver_that_says_no_is_the_reason(machine: Machine, code: int, why: str) -> None:
    machine.install_driver()
    machine.driver_says({"init": code})
    reading = machine.read().reading
    assert (reading.gpus, reading.source) == ([], "none")
    assert why in reading.reason
    assert reading.reason.endswith("no nvidia-smi is on the daemon's PATH")


def test_a_driver_without_a_gpu_and_one_that_hides_its_memory(machine: Machine) -> None:
    machine.install_driver()
    machine.driver_says({"count": 0})
    assert machine.read().reading.reason.startswith("the NVIDIA driver lists no GPU; ")
    machine.driver_says({"count": 1, "memory.0": 3})
    time.sleep(REMEMBER_S)
    assert "GPU 0 tells no memory: the NVIDIA driver says: Not Supported (code 3)" in machine.read().reading.reason


def test_a_library_that_is_none_is_the_reason(machine: Machine) -> None:
    (machine.libraries / "libnvidia-ml.so.1").write_text("not a library")
    assert "the NVIDIA driver library can't be loaded: " in machine.read().reading.reason


# --- a driver that is stuck ---------------------------------------------------------------------


def test_a_stuck_driver_is_a_reason_in_time_and_works_again_when_it_is_back(machine: Machine) -> None:
    by_nvml(machine)
    machine.install_smi()
    machine.smi_says([FIRST])
    machine.driver_says({**TWO, "stuck": 1})
    heard = machine.read(at_once=5)
    assert {reading.source for reading in heard.readings} == {"none"}
    assert heard.readings[0].reason.startswith("the NVIDIA driver has not answered for 1.8")
    assert 1.5 < heard.took_s < 2
    for _ in range(3):
        heard = machine.read()
        assert heard.took_s < 0.2
        assert "has not answered for" in heard.reading.reason
    assert heard.threads == 1
    assert machine.smi_pids == []  # it would only get stuck too
    machine.driver_says(TWO)
    time.sleep(0.2)
    heard = machine.read()
    assert heard.reading.source == "nvml"
    assert heard.took_s < 0.5
    assert machine.log.read_text().count("has not answered") == 1  # said once, not with every reading


def test_a_process_ends_whatever_the_driver_does(machine: Machine) -> None:
    by_nvml(machine)
    machine.driver_says({**TWO, "stuck": 1})
    machine.read()
    assert machine.close() == 0


def test_a_reader_that_leaves_takes_no_reading_with_it(machine: Machine) -> None:
    by_nvml(machine)
    heard = machine.read(at_once=3, cancelled=3)
    assert [reading.source for reading in heard.readings] == ["nvml"] * 3


# --- nvidia-smi ---------------------------------------------------------------------------------


def test_nvidia_smi_is_asked_when_the_driver_library_is_of_another_version(machine: Machine) -> None:
    by_nvidia_smi(machine)
    reading = machine.read().reading
    assert reading.source == "nvidia-smi"
    assert reading.reason.startswith("read by nvidia-smi: the NVIDIA driver's library and its loaded kernel module")
    machine.driver_says(TWO)
    assert machine.read().reading.source == "nvml"


def test_a_stuck_nvidia_smi_is_killed(bare: Machine) -> None:
    bare.install_smi()
    bare.smi_says(stuck=True)
    heard = bare.read()
    assert heard.took_s < 2
    assert "nvidia-smi has not answered within 1.6 s" in heard.reading.reason
    assert len(bare.smi_pids) == 2
    assert [pid for pid in bare.smi_pids if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.parametrize(
    "words",
    [
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "No devices were found",
        'Field "memory.used" is not a valid field to query.',
    ],
)
def test_what_nvidia_smi_complains_of_is_the_reason(bare: Machine, words: str) -> None:
    bare.install_smi()
    bare.smi_says(words=words, code=9)
    reading = bare.read().reading
    assert reading.source == "none"
    assert reading.reason.endswith(f"nvidia-smi shows no GPU: {words}")


def test_an_nvidia_smi_that_can_not_be_run_is_the_reason(bare: Machine) -> None:
    program = bare.programs / "nvidia-smi"
    program.write_bytes(b"\x7fELF of another processor")
    program.chmod(0o755)
    assert f"{program} can't be run: " in bare.read().reading.reason


# --- nothing ------------------------------------------------------------------------------------


def test_a_machine_without_a_gpu_says_so_and_costs_nothing_to_ask_again(bare: Machine) -> None:
    first = bare.read()
    assert first.reading.gpus == []
    assert first.reading.source == "none"
    assert first.reading.free is None
    assert first.reading.reason == (
        "no NVIDIA driver library (libnvidia-ml.so.1) is on this machine; no nvidia-smi is on the daemon's PATH"
    )
    many = bare.read(at_once=1000)
    assert many.took_s < 0.25
    assert not many.imported


def test_a_failed_nvidia_smi_is_not_run_again_for_some_seconds(bare: Machine) -> None:
    bare.install_smi()
    bare.smi_says(words="No devices were found", code=6)
    for _ in range(5):
        assert bare.read().reading.source == "none"
    assert len(bare.smi_pids) == 2


@pytest.mark.parametrize("way", [by_nvml, by_nvidia_smi])
def test_a_driver_that_is_installed_meanwhile_is_found(bare: Machine, way: Callable[[Machine], None]) -> None:
    assert bare.read().reading.source == "none"
    way(bare)
    time.sleep(REMEMBER_S)
    assert bare.read().reading.free == 100 * GIB


def test_only_the_source_that_was_chosen_is_read(machine: Machine) -> None:
    machine.install_driver()
    machine.driver_says(TWO)
    machine.install_smi()
    machine.smi_says(gpus=[FIRST])
    found = {}
    for source in ("auto", "nvml", "nvidia-smi", "none"):
        machine.source = source
        found[source] = machine.read().reading
        assert machine.close() == 0
    assert {source: (reading.source, len(reading.gpus)) for source, reading in found.items()} == {
        "auto": ("nvml", 2), "nvml": ("nvml", 2), "nvidia-smi": ("nvidia-smi", 1), "none": ("none", 0),
    }  # fmt: skip
    assert "[slot] gpus" in found["none"].reason


def test_nvml_alone_leaves_nvidia_smi_alone(bare: Machine) -> None:
    bare.install_smi()
    bare.smi_says(gpus=[FIRST])
    bare.source = "nvml"
    assert bare.read().reading.source == "none"
    assert bare.smi_pids == []
