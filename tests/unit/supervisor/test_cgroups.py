import pytest

from supervisor.cgroups import cpu_quotas, memory_figures
from supervisor.machine import parse_cpu_quota
from supervisor.room import cgroup_free_bytes

LIMITLESS_V1 = "9223372036854771712\n"


@pytest.fixture
def kernel(tmp_path):
    """Writes the tree of groups and which of them this process is in; returns where both are."""

    def write(membership: str, files: dict[str, str]):
        for name, text in files.items():
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tree" / name).write_text(text)
        (tmp_path / "membership").write_text(membership)
        return tmp_path / "tree", tmp_path / "membership"

    return write


def quota(places) -> int | None:
    found = [parse_cpu_quota(text) for text in cpu_quotas(*places)]
    return min((cpus for cpus in found if cpus is not None), default=None)


def free(places) -> int | None:
    found = [cgroup_free_bytes(*figures) for figures in memory_figures(*places)]
    return min((each for each in found if each is not None), default=None)


def test_a_container_is_limited_by_the_root_that_it_sees(kernel):
    places = kernel("0::/\n", {"cpu.max": "200000 100000\n", "memory.max": "1000\n", "memory.current": "400\n"})
    assert (quota(places), free(places)) == (2, 600)


def test_a_unit_of_systemd_is_limited_by_its_own_group_and_by_every_one_around_it(kernel):
    service = "system.slice/emb-provider.service"
    files = {f"{service}/cpu.max": "400000 100000\n", f"{service}/memory.max": "max\n"}
    files |= {f"{service}/memory.current": "300\n"}
    places = kernel(f"0::/{service}\n", files)
    assert (quota(places), free(places)) == (4, None)
    files = {"system.slice/cpu.max": "300000 100000\n", "system.slice/memory.max": "1000\n"}
    kernel(f"0::/{service}\n", files | {"system.slice/memory.current": "700\n"})
    assert (quota(places), free(places)) == (3, 300)


def test_version_1_has_a_tree_for_each_controller(kernel):
    files = {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}
    files |= {"cpu/cpu.cfs_quota_us": "500000\n", "cpu/cpu.cfs_period_us": "100000\n"}
    files |= {"memory/b/memory.limit_in_bytes": "1000\n", "memory/b/memory.usage_in_bytes": "900\n"}
    files |= {"memory/b/memory.stat": "inactive_file 10\ntotal_inactive_file 200\n"}
    files |= {"memory/memory.limit_in_bytes": LIMITLESS_V1, "memory/memory.usage_in_bytes": "900\n"}
    places = kernel("5:memory:/b\n4:cpu,cpuacct:/a\n1:name=systemd:/c\n0::/\n", files)
    assert (quota(places), free(places)) == (5, 300)


def test_a_group_of_version_1_counts_whichever_controllers_share_its_tree(kernel):
    files = {"cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}
    assert quota(kernel("4:cpuacct,cpu:/a\n3:cpuset:/b\n", files)) == 3


def test_what_a_group_would_give_back_of_its_file_cache_is_free(kernel):
    files = {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "anon 650\ninactive_file 200\n"}
    assert free(kernel("0::/\n", files)) == 300


@pytest.mark.parametrize("membership", ["4:cpu:/docker/0123\n", "0::/../../elsewhere\n", "", "no group\n"])
def test_a_path_that_begins_above_what_is_mounted_leaves_the_root(kernel, membership):
    files = {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n", "cpu.max": "700000 100000\n"}
    assert quota(kernel(membership, files)) == 1


def test_where_nothing_is_mounted_nothing_is_limited(tmp_path):
    places = tmp_path / "tree", tmp_path / "membership"
    assert (quota(places), free(places)) == (None, None)
