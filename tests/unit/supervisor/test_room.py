from supervisor.room import (
    available_bytes,
    cgroup_free_bytes,
    fits,
    gpu_free_bytes,
    has_room,
    needed_bytes,
)
from tests.support.statuses import make_info

MIB = 1024 * 1024
ENCODER = make_info(private_bytes=300 * MIB, weights_bytes=400 * MIB, device="cpu").encoder
MEMINFO = "MemTotal:       32000000 kB\nMemFree:         1000000 kB\nMemAvailable:    2048000 kB\n"


def test_a_second_process_needs_its_own_memory_its_weights_and_an_interpreter():
    assert needed_bytes(ENCODER) == (300 + 400 + 512) * MIB
    assert needed_bytes(ENCODER.replace(device="cuda:0")) == (300 + 512) * MIB, "its weights lie on the card"


def test_what_is_available_is_what_machine_and_container_both_have():
    assert available_bytes(MEMINFO, None) == 2048000 * 1024
    assert available_bytes(MEMINFO, 5 * MIB) == 5 * MIB
    assert available_bytes("", None) == 0, "unknown is none"


def test_a_containers_file_cache_can_be_dropped():
    statistics = "anon 5\ninactive_file 300\nactive_file 900\n"
    assert cgroup_free_bytes("1000\n", "900\n", statistics) == 400
    assert cgroup_free_bytes("1000\n", "2000\n", "") == 0
    assert cgroup_free_bytes("max\n", "900\n", statistics) is None
    assert cgroup_free_bytes("", "", "") is None


def test_something_stays_free_for_others():
    assert fits(100 * MIB, 400 * MIB)
    assert not fits(300 * MIB, 400 * MIB)


def test_a_model_larger_than_the_machine_has_no_room_and_a_small_one_has():
    assert not has_room(ENCODER.replace(weights_bytes=1 << 50), "", {})
    assert not has_room(ENCODER.replace(weights_bytes=1 << 50, device="cuda:0"), "0", {}), "or the card cannot be asked"


FREE_ON_CARD = 5 * MIB


class Management:
    """NVIDIA's library, on whose cards there are ``FREE_ON_CARD`` bytes."""

    def __init__(self, _name):
        self.nvmlInit_v2 = self.nvmlShutdown = lambda: 0
        self.nvmlDeviceGetHandleByIndex_v2 = self.nvmlDeviceGetHandleByUUID = lambda _which, _device: 0
        self.nvmlDeviceGetMemoryInfo = lambda _device, memory: setattr(memory._obj, "free", FREE_ON_CARD) or 0


def test_the_memory_of_a_card_is_asked_by_its_number_only_where_that_is_its_place_on_the_bus(monkeypatch):
    monkeypatch.setattr("supervisor.room.ctypes.CDLL", Management)
    assert gpu_free_bytes("1", {}) == gpu_free_bytes("GPU-8932f937", {}) == FREE_ON_CARD
    otherwise = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert gpu_free_bytes("1", otherwise) is None, "it may be another card"
    assert gpu_free_bytes("GPU-8932f937", otherwise) == FREE_ON_CARD
