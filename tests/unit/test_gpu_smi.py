"""What nvidia-smi prints, read: its brackets, its commas, its complaints."""

import os

import pytest

from daemon.gpu.reading import name_of, one_a_process
from daemon.gpu.smi import parse_gpus, with_processes
from schemas.events.profile import Gpu, GpuProcess

MIB = 1 << 20
GPUS = [Gpu(0, "A", "GPU-a", 100, 50, 50), Gpu(1, "B", "GPU-b", 100, 0, 100)]


def test_mebibytes_become_bytes_and_a_name_keeps_its_commas() -> None:
    gpus, notes = parse_gpus("0, GPU-a, 24564, 1234, 22990, NVIDIA Fancy, 24 GB\n\n")
    assert gpus == [Gpu(0, "NVIDIA Fancy, 24 GB", "GPU-a", 24564 * MIB, 1234 * MIB, 22990 * MIB)]
    assert notes == []


@pytest.mark.parametrize("word", ["[N/A]", "[Not Supported]", "[Insufficient Permissions]", "[GPU is lost]", "N/A", ""])
def test_a_gpu_that_tells_no_memory_is_left_out_and_named(word: str) -> None:
    gpus, notes = parse_gpus(f"0, GPU-a, {word}, {word}, {word}, GB10\n1, GPU-b, 10, 4, 6, B\n")
    assert [gpu.index for gpu in gpus] == [1]
    assert notes == [f"GPU 0 tells no memory: nvidia-smi shows {word}, {word}, {word} for total, used and free"]


def test_a_complaint_between_the_lines_is_kept() -> None:
    lost = "Unable to determine the device handle for GPU1: 0000:0A:00.0: GPU is lost.  Reboot the system"
    gpus, notes = parse_gpus(f"0, GPU-a, 10, 4, 6, A\n{lost}\n")
    assert [gpu.index for gpu in gpus] == [0]
    assert notes == [lost]


def test_processes_go_to_their_gpu() -> None:
    a, b = with_processes(GPUS, "GPU-b, 7, 300, /usr/bin/x, --y\nGPU-a, 8, [N/A], python\nGPU-c, 9, 1, elsewhere\n")
    assert a.processes == [GpuProcess(8, "python", None)]
    assert b.processes == [GpuProcess(7, "/usr/bin/x, --y", 300 * MIB)]


@pytest.mark.parametrize(
    "line",
    ["[Not Supported]", "[N/A], [N/A], [N/A], [N/A]", "MIG-1234, 7, 300, python", "No running processes found"],
)
def test_a_line_that_names_no_gpu_leaves_every_list_unknown(line: str) -> None:
    assert [gpu.processes for gpu in with_processes(GPUS, f"GPU-a, 8, 1, python\n{line}\n")] == [None, None]


def test_a_line_that_can_not_be_read_leaves_its_gpus_list_unknown() -> None:
    text = "GPU-a, [Insufficient Permissions], [N/A], [N/A]\nGPU-a, 7, 1, late\nGPU-b, 8, 1, python\n"
    a, b = with_processes(GPUS, text)
    assert a.processes is None
    assert b.processes == [GpuProcess(8, "python", MIB)]


@pytest.mark.parametrize("word", ["[Not Found]", "[Insufficient Permissions]"])
def test_a_process_without_a_name_gets_the_systems(word: str) -> None:
    (gpu, _) = with_processes(GPUS, f"GPU-a, {os.getpid()}, 1, {word}\n")
    assert gpu.processes == [GpuProcess(os.getpid(), name_of(os.getpid()), MIB)]
    assert name_of(os.getpid())
    assert name_of(2**22 + 1) == ""  # no Linux gives so high an id


def test_a_process_is_one_entry() -> None:
    computes = [GpuProcess(1, "a", 5), GpuProcess(2, "b", 7), GpuProcess(2, "b", 8), GpuProcess(3, "c", None)]
    draws = [GpuProcess(1, "a", 6), GpuProcess(3, "c", 4)]
    assert one_a_process(draws, computes) == [GpuProcess(1, "a", 6), GpuProcess(2, "b", 15), GpuProcess(3, "c", 4)]
    assert one_a_process() == []
