"""Finds how much memory this process can still get, from what the operating system reports.

Works on Linux; elsewhere nothing is known. Not pure: it reads files of the kernel.
"""

import sys
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# In each version: the limit, the use, and the part of the use that the kernel frees on demand.
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def free_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Returns the bytes that this process can still get; None if the machine does not say.

    Three limits count, and the smallest decides: the machine's memory without swapping, the
    process's control groups (versions 1 and 2), and its address space (`ulimit -v`).
    """
    found = [*_machine_left(proc), *_cgroups_left(proc, cgroups), *_address_space_left(proc)]
    return max(min(found), 0) if found else None


def resident_memory(proc: Path = PROC) -> int:
    """Returns the bytes of memory that this process holds; 0 if the machine does not say."""
    return _lines(proc / "self/status").get("VmRSS", 0)


def _lines(path: Path) -> dict[str, int]:
    """Returns name -> bytes for a file of lines such as `VmRSS: 12 kB` or `inactive_file 12`."""
    if not path.is_file():
        return {}
    words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    return {
        parts[0]: int(parts[1]) * (1024 if parts[2:] == ["kB"] else 1)
        for parts in words
        if len(parts) > 1 and parts[1].isdecimal()
    }


def _machine_left(proc: Path) -> list[int]:
    found = _lines(proc / "meminfo").get("MemAvailable")
    return [] if found is None else [found]


def _cgroups_left(proc: Path, cgroups: Path) -> list[int]:
    """Returns what each limited group leaves: the process's own groups and all above them."""
    memberships = proc / "self/cgroup"
    if not memberships.is_file():
        return []
    left = []
    for line in memberships.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (cgroups / "memory", V1) if controllers else (cgroups, V2)
        folder = root / path.lstrip("/")
        # In a container the path may be the host's: its own group is then the root.
        for group in [folder, *folder.parents]:
            if group == root or root in group.parents:
                left += _group_left(group, *files)
    return left


def _group_left(group: Path, limit: str, use: str, reclaimable: str) -> list[int]:
    try:
        most, used = int((group / limit).read_text()), int((group / use).read_text())
    except (OSError, ValueError):  # no such group, or `max`
        return []
    return [most - used + _lines(group / "memory.stat").get(reclaimable, 0)]


def _address_space_left(proc: Path) -> list[int]:
    if sys.platform == "win32":
        return []
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    return [limit - _lines(proc / "self/status").get("VmSize", 0)]
