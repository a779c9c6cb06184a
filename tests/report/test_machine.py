from zfu_lib.report.machine import Machine, obstacles, remarks
from zfu_lib.report.profiles import Cost, Download

LAPTOP = Machine(cores=2, memory_gb=8, memory_free_gb=5, disk_free_gb=20, gpus=())
SERVER = Machine(cores=16, memory_gb=128, memory_free_gb=120, disk_free_gb=500, gpus=(("H200", 139.0),))
MODEL = Download("nobody/no-such-model", 60.0)


def test_what_fits_is_not_refused() -> None:
    assert obstacles(Cost("any laptop", 3, 4), "quick", LAPTOP) == []
    assert obstacles(Cost("one GPU", 3, 4, gpu_memory_gb=80, downloads=(MODEL,)), "paper", SERVER, hub=True) == []


def test_memory_and_disk_are_limits() -> None:
    found = obstacles(Cost("server", 3, memory_gb=9, disk_gb=21), "quick", LAPTOP)
    assert [line.split(" of ")[1].split(",")[0] for line in found] == ["memory", "disk"]


def test_downloads_count_as_disk() -> None:
    assert "60.1 GB of disk" in obstacles(Cost("a", 1, 1, downloads=(MODEL,)), "full", LAPTOP)[0]


def test_paper_needs_its_gpu_and_full_does_not() -> None:
    cost = Cost("one GPU", 25, 4, gpu_memory_gb=80)
    assert "GPU with 80 GB; found: none" in obstacles(cost, "paper", LAPTOP)[0]
    assert obstacles(cost, "full", LAPTOP) == []
    assert "scaled down" in remarks(cost, "full", LAPTOP)[0]
    assert obstacles(Cost("two GPUs", 25, 4, gpu_memory_gb=200), "paper", SERVER) != []


def test_paper_needs_the_hub() -> None:
    cost = Cost("a", 1, 1, downloads=(MODEL,))
    assert "hub" in obstacles(cost, "paper", SERVER, hub=False)[0]


def test_busy_memory_is_a_remark_only() -> None:
    cost = Cost("a", 1, memory_gb=7)
    assert obstacles(cost, "quick", LAPTOP) == []
    assert "free now" in remarks(cost, "quick", LAPTOP)[0]
