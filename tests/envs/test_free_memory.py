"""Free memory as the kernel tells it: hand-made files of /proc and of control groups."""

import resource

import pytest

from pdjax_envs.free_memory import free_memory, resident_memory

KIB, GIB = 1024, 2**30
UNLIMITED = 9223372036854771712  # as control groups version 1 say it


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(str(content))


@pytest.fixture
def proc(tmp_path):
    """A machine with 8 GiB to give, and a process of 1 GiB that is in no group."""
    proc = tmp_path / "proc"
    write(proc, meminfo=f"MemTotal: {16 * GIB // KIB} kB\nMemAvailable: {8 * GIB // KIB} kB\n")
    write(proc / "self", status=f"Name: python\nVmSize: {5 * GIB // KIB} kB\nVmRSS:\t{KIB**2} kB\n")
    return proc


@pytest.fixture
def cgroups(tmp_path):
    return tmp_path / "cgroup"


def group(folder, limit, used, reclaimable, version):
    if version == 2:
        write(folder, memory__max=limit, memory__current=used)
        write(folder, memory__stat=f"anon 5\ninactive_file {reclaimable}\n")
    else:
        write(folder, memory__limit_in_bytes=limit, memory__usage_in_bytes=used)
        write(folder, memory__stat=f"inactive_file 7\ntotal_inactive_file {reclaimable}\n")


def test_without_limits_it_is_what_the_machine_has(proc, cgroups):
    assert free_memory(proc, cgroups) == 8 * GIB
    assert resident_memory(proc) == GIB


def test_what_no_machine_says_is_unknown(tmp_path):
    assert free_memory(tmp_path, tmp_path) is None
    assert resident_memory(tmp_path) == 0


def test_a_group_of_version_2_and_the_group_that_holds_it(proc, cgroups):
    write(proc / "self", cgroup="0::/user/run\n")
    group(cgroups / "user/run", "max", 3 * GIB, 0, version=2)
    assert free_memory(proc, cgroups) == 8 * GIB
    group(cgroups / "user", 4 * GIB, 3 * GIB, GIB // 2, version=2)
    assert free_memory(proc, cgroups) == 1.5 * GIB  # 4 - (3 - .5)


def test_a_group_of_version_1_among_others(proc, cgroups):
    write(proc / "self", cgroup="7:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    group(cgroups / "memory", UNLIMITED, 3 * GIB, 0, version=1)
    group(cgroups / "memory/job", 4 * GIB, 3 * GIB, GIB, version=1)
    assert free_memory(proc, cgroups) == 2 * GIB


def test_in_a_container_the_groups_path_is_the_hosts(proc, cgroups):
    write(proc / "self", cgroup="0::/docker/0123\n")
    group(cgroups, 2 * GIB, GIB, 0, version=2)
    assert free_memory(proc, cgroups) == GIB


def test_a_group_over_its_limit_leaves_nothing(proc, cgroups):
    write(proc / "self", cgroup="0::/\n")
    group(cgroups, GIB, 2 * GIB, 0, version=2)
    assert free_memory(proc, cgroups) == 0


def test_a_limit_on_address_space_counts(proc, cgroups, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (7 * GIB, 9 * GIB))
    assert free_memory(proc, cgroups) == 2 * GIB  # 7 - 5


def test_this_machine_says():
    free = free_memory()
    assert free is not None and free > 0
    assert resident_memory() > 2**20
