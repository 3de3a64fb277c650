"""What is left of the memory, as a made-up system tells it, and as this one does."""

import pytest
import torch

from kdengine.api import ConfigurationError, memory

CPU = torch.device("cpu")
GIB = 2**30


def system(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return memory.free_host_memory(root)


MEMINFO = {"proc/meminfo": "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n"}


def test_what_the_system_has_available(tmp_path):
    assert system(tmp_path, MEMINFO) == 8 * GIB


def test_a_control_group_leaves_less(tmp_path):
    own = "sys/fs/cgroup/service/job/memory"
    files = {
        "proc/self/cgroup": "0::/service/job\n",
        f"{own}.max": f"{4 * GIB}\n",
        f"{own}.current": f"{3 * GIB}\n",
        f"{own}.stat": f"anon 5\ninactive_file {GIB}\n",
        "sys/fs/cgroup/service/memory.max": "max\n",
        "sys/fs/cgroup/service/memory.current": "7\n",
    }
    assert system(tmp_path, MEMINFO | files) == 2 * GIB


def test_the_group_around_it_may_leave_the_least(tmp_path):
    files = {"proc/self/cgroup": "0::/service/job\n"}
    for group, limit in (("service", 2), ("service/job", 4)):
        place = f"sys/fs/cgroup/{group}/memory"
        files |= {f"{place}.max": str(limit * GIB), f"{place}.current": str(GIB), f"{place}.stat": "inactive_file 0"}
    assert system(tmp_path, MEMINFO | files) == GIB


def test_control_groups_of_version_1(tmp_path):
    own = "sys/fs/cgroup/memory/job/memory"
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/\n3:memory:/job\n1:name=systemd:/\n",
        f"{own}.limit_in_bytes": str(5 * GIB),
        f"{own}.usage_in_bytes": str(2 * GIB),
        f"{own}.stat": f"total_inactive_file {GIB}\n",
    }
    assert system(tmp_path, MEMINFO | files) == 4 * GIB


def test_a_system_that_does_not_tell_has_at_most_what_it_has(tmp_path):
    assert system(tmp_path, {}) is None or system(tmp_path, {}) > 2**28


def test_this_system_has_some():
    assert memory.free_memory(CPU) > 2**20
    assert memory.free_memory(torch.device("meta")) is None


def test_on_cuda_what_is_free_and_what_the_allocator_keeps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 9 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * GIB)
    assert memory.free_memory(torch.device("cuda", 0)) == 7 * GIB


def test_more_than_there_is_is_refused_with_what_to_do():
    memory.require_memory("a thousand bytes", 1000, CPU, "take less")
    with pytest.raises(ConfigurationError) as caught:
        memory.require_memory("the loss crd: two banks", 2**60, CPU, "make feat_dim smaller")
    said = str(caught.value)
    assert said.startswith(
        "the loss crd: two banks would take 1,152,921,504,606,846,976 bytes (1073741824.00 GiB) on cpu"
    )
    assert said.endswith("GiB are free; make feat_dim smaller")


def test_what_nobody_knows_is_not_refused():
    memory.require_memory("anything", 2**60, torch.device("meta"), "take less")
