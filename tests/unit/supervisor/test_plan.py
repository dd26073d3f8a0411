import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.modelmap import ModelSpec
from shard.batching.lane import count_lanes, threads_of_lane
from supervisor.machine import Machine, parse_cpu_quota
from supervisor.plan import (
    child_environment,
    format_cpus,
    place,
    router_environment,
    shard_environment,
    warn_of_threads,
)
from tests.support.statuses import make_info


def machine(count: int, gpus: int = 0, cpu_count: int | None = None) -> Machine:
    return Machine(tuple(range(count)), cpu_count or count, tuple(str(gpu) for gpu in range(gpus)))


def spec(name: str, **fields) -> ModelSpec:
    return ModelSpec(id=name, name=name, **fields)


def test_a_single_model_gets_every_cpu():
    (only,) = place((spec("a"),), machine(8)).values()
    assert (only.device, only.threads, only.cpus, only.visible_gpus) == ("cpu", 8, (), "")


@given(st.integers(1, 6), st.integers(1, 64))
def test_models_without_cpu_sets_never_oversubscribe_together(models, cpus):
    places = place(tuple(spec(f"m{index}") for index in range(models)), machine(cpus))
    threads = [one.threads for one in places.values()]
    assert min(threads) >= 1
    assert sum(threads) == max(models, cpus)
    assert max(threads) - min(threads) <= 1


def test_a_model_with_a_cpu_set_keeps_it_and_the_others_stay_off_it():
    places = place((spec("a", cpus=(0, 1)), spec("b"), spec("c")), machine(6))
    assert (places["a"].cpus, places["a"].threads) == ((0, 1), 2)
    assert (places["b"].cpus, places["b"].threads) == ((2, 3, 4, 5), 2)
    assert places["c"].threads == 2


@given(st.integers(1, 6), st.integers(1, 64))
def test_models_on_cards_divide_the_cpus_that_tokenise_for_them(models, cpus):
    places = place(tuple(spec(f"m{index}", device="cuda") for index in range(models)), machine(cpus))
    threads = [one.threads for one in places.values()]
    assert set(threads) == {max(1, min(16, cpus // models))}


def test_a_container_limit_bounds_the_threads():
    (only,) = place((spec("a"),), machine(64, cpu_count=2)).values()
    assert only.threads == 2


@pytest.mark.parametrize(
    ("one", "of", "said"),
    [
        (spec("a", threads=8), machine(8), None),
        (spec("a", threads=9), machine(8), "threads = 9 and 8 CPUs"),
        (spec("a", threads=4), machine(64, cpu_count=2), "threads = 4 and 2 CPUs"),
        (spec("a", threads=2, cpus=(5,)), machine(8), "threads = 2 and 1 CPU:"),
        (spec("a", threads=2, cpus=(0, 1, 2)), machine(8), None),
        (spec("a", threads=9, device="cuda"), machine(8, gpus=1), "threads = 9 and 8 CPUs"),
        (spec("a"), machine(1), None),
    ],
)
def test_more_threads_than_cpus_are_warned_of(one, of, said):
    warnings = warn_of_threads((one,), place((one,), of), of)
    assert len(warnings) == (said is not None)
    assert said is None or f"Model 'a' has {said}" in warnings[0]


def test_threads_count_against_the_cpus_that_sets_of_others_leave():
    models = (spec("a", cpus=(0, 1, 2)), spec("b", threads=2))
    (warning,) = warn_of_threads(models, place(models, machine(4)), machine(4))
    assert "Model 'b' has threads = 2 and 1 CPU" in warning


def test_models_that_name_no_gpu_take_turns_and_a_named_one_is_kept():
    models = (spec("a"), spec("b"), spec("c", device="cuda:0"), spec("d", device="cpu"))
    places = place(models, machine(8, gpus=2))
    assert [places[name].visible_gpus for name in "abcd"] == ["0", "1", "0", ""]
    assert [places[name].device for name in "abcd"] == ["auto", "auto", "cuda", "cpu"]


def test_cuda_numbers_count_the_cards_the_operator_made_visible():
    cards = Machine((0,), 1, ("3", "5"))
    assert place((spec("a", device="cuda:1"),), cards)["a"].visible_gpus == "5"


def test_no_card_is_used_that_the_operator_has_not_made_visible():
    one = spec("a", device="cuda:2"), spec("b", device="cuda"), spec("c", device="auto")
    shown = place(one, Machine((0,), 1, ("3", "5")))
    assert (shown["a"].device, shown["a"].visible_gpus) == ("cuda:2", "3,5"), "which is refused: there are two"
    hidden = place(one, Machine((0,), 1, ()))
    assert [hidden[name].visible_gpus for name in "abc"] == ["", "", ""]


def test_a_card_that_was_asked_for_and_not_found_is_left_to_cuda_to_find():
    unknown = Machine((0,), 1, (), has_other_gpus=True)
    places = place((spec("a", device="cuda:2"), spec("b", device="cuda"), spec("c")), unknown)
    assert [places[name].visible_gpus for name in "abc"] == ["2", "0", ""]
    assert [places[name].device for name in "abc"] == ["cuda", "cuda", "cpu"]


def test_a_cpu_this_machine_lacks_is_an_error_that_says_what_there_is():
    with pytest.raises(ConfigurationError, match=r"'a' asks for cpus \[9\].*Available: 0-3"):
        place((spec("a", cpus=(0, 9)),), machine(4))


def test_a_shards_environment_pins_threads_hides_gpus_and_holds_none_of_our_settings():
    (placement,) = place((spec("a", threads=3),), machine(4)).values()
    env = shard_environment(placement, {"PATH": "/bin", "EMB_PROVIDER_API_KEYS": "secret"})
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "3"
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["PATH"] == "/bin"
    assert "secret" not in env.values()
    assert child_environment({"EMB_PROVIDER_PORT": "1"}) == {}


@pytest.mark.parametrize(
    ("theirs", "order"), [(None, "PCI_BUS_ID"), ("", "PCI_BUS_ID"), ("FASTEST_FIRST", "FASTEST_FIRST")]
)
def test_cards_are_counted_as_on_the_bus_unless_the_operator_wants_the_fastest_first(theirs, order):
    (placement,) = place((spec("a", device="cuda:1"),), machine(4, gpus=2)).values()
    env = shard_environment(placement, {} if theirs is None else {"CUDA_DEVICE_ORDER": theirs})
    assert (env["CUDA_DEVICE_ORDER"], env["CUDA_VISIBLE_DEVICES"]) == (order, "1")


def test_a_process_ends_with_its_own_exit_code_where_python_is_to_wait_for_commands_at_the_end():
    assert child_environment({"PYTHONINSPECT": "1", "PYTHONUTF8": "1"}) == {"PYTHONUTF8": "1"}


def test_docstrings_are_not_taken_from_libraries_that_read_in_them():
    assert child_environment({"PYTHONOPTIMIZE": "2", "PYTHONUTF8": "1"}) == {"PYTHONUTF8": "1"}


def test_a_router_has_no_threads_for_arithmetic():
    env = router_environment({"PATH": "/bin", "EMB_PROVIDER_PORT": "1", "OPENBLAS_NUM_THREADS": "64"})
    assert env == {"PATH": "/bin", "OPENBLAS_NUM_THREADS": "1"}


def environment_of(places, name="a", **env) -> dict[str, str]:
    return shard_environment(places[name], env)


def test_threads_that_have_their_cpus_to_themselves_get_one_each():
    env = environment_of(place((spec("a"),), machine(2)))
    assert (env["OMP_PROC_BIND"], env["OMP_PLACES"]) == ("close", "{0},{1}")
    models = (spec("a", cpus=(1, 3), device="cpu"), spec("b", device="cpu"), spec("c", device="cuda"))
    beside = place(models, machine(4, gpus=1))
    assert environment_of(beside)["OMP_PLACES"] == "{1},{3}"
    assert environment_of(beside, "b")["OMP_PLACES"] == "{0},{2}"
    assert "OMP_PLACES" not in environment_of(beside, "c")


@pytest.mark.parametrize(
    ("models", "cpus"),
    [
        ((spec("a"), spec("b")), 4),
        ((spec("a", cpus=(0, 1)), spec("b", cpus=(1, 2))), 4),
        ((spec("a", threads=2),), 4),
        ((spec("a", threads=3, cpus=(0, 1)),), 4),
        ((spec("a"),), 1),
        ((spec("a"),), 5),
    ],
    ids=["shared", "overlapping", "fewer threads", "more threads", "one thread", "more threads than are placed"],
)
def test_other_threads_go_where_the_kernel_puts_them(models, cpus):
    assert "OMP_PROC_BIND" not in environment_of(place(models, machine(cpus)))


@given(st.integers(1, 64))
def test_threads_are_placed_only_where_no_lane_but_the_first_has_several(cpus):
    env = environment_of(place((spec("a"),), machine(cpus)))
    lanes = count_lanes(make_info(device="cpu", batching="packed").encoder, cpus)
    assert "OMP_PLACES" not in env or threads_of_lane(cpus, lanes) == 1


def test_a_limit_on_processor_time_is_no_set_of_cpus():
    assert "OMP_PROC_BIND" not in environment_of(place((spec("a"),), machine(8, cpu_count=2)))


@pytest.mark.parametrize("name", ["OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"])
def test_an_operator_who_places_threads_is_not_overruled(name):
    env = environment_of(place((spec("a"),), machine(2)), **{name: "theirs"})
    placing = {key: value for key, value in env.items() if key in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")}
    assert placing == {name: "theirs"}


@given(st.lists(st.none() | st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=4))
def test_no_two_models_have_the_same_cpu_to_themselves(sets):
    models = tuple(spec(f"m{index}", cpus=None if cpus is None else tuple(cpus)) for index, cpus in enumerate(sets))
    own = [cpu for one in place(models, machine(4)).values() for cpu in one.own_cpus]
    assert len(own) == len(set(own))


@pytest.mark.parametrize(
    ("text", "cpus"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_cgroup_quota_is_read_as_whole_cpus(text, cpus):
    assert parse_cpu_quota(text) == cpus


@pytest.mark.parametrize(("cpus", "text"), [((0, 1, 2, 5), "0-2,5"), ((3,), "3"), ((1, 3), "1,3"), ((), "")])
def test_cpu_sets_are_written_as_the_kernel_writes_them(cpus, text):
    assert format_cpus(cpus) == text
