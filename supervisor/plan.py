"""Where each model's process runs: device, CPUs, threads and environment. Pure; ``tree`` carries it out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from emb_model_provider.dotenv_file import PREFIX
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.lifecycle import THREAD_PLACING
from emb_model_provider.modelmap import ModelSpec
from supervisor.machine import CARD_ORDER, ORDER_OF_THE_BUS, Machine

#: A GPU shard's CPU threads only tokenise and launch kernels; a quick card reads as fast as all of these can write.
_MOST_GPU_SHARD_THREADS = 16
#: Up to here each of a shard's lanes computes on one core, so that only the pool of the first has threads to place.
_MOST_PLACED_THREADS: Final = 4
#: Turns of GNU OpenMP's loop in which a thread waits before it sleeps: 1.5 to 3 ms of x86's `pause`. Its own 300,000
#: are 8 to 14, in which nobody else gets that core. On other processors a turn is next to nothing.
_SPINS: Final = {"x86_64": "60000"}


@dataclass(frozen=True, slots=True)
class Placement:
    """One shard's place. ``visible_gpus`` is its ``CUDA_VISIBLE_DEVICES``; empty ``cpus`` means any CPU.

    ``own_cpus`` are as many as it has threads, and no other model computes there; empty where that is not so.
    """

    device: str
    visible_gpus: str
    cpus: tuple[int, ...]
    threads: int
    own_cpus: tuple[int, ...] = ()


def place(models: tuple[ModelSpec, ...], machine: Machine) -> dict[str, Placement]:
    """Return the placement of every model by id; raise ``ConfigurationError`` for CPUs this machine lacks.

    Models without a CPU set share what no set claims, and divide it: together they never start more compute
    threads than there are CPUs (but each has at least one).
    """
    _check_cpu_sets(models, machine)
    devices = _choose_devices(models, machine)
    claimed = {cpu for spec in models for cpu in spec.cpus or ()}
    free = tuple(cpu for cpu in machine.cpus if cpu not in claimed) or machine.cpus
    free_threads = max(1, min(len(free), machine.cpu_count - len(claimed)))
    sharing = [spec for spec in models if spec.cpus is None and devices[spec.id][0] == "cpu"]
    threads = _divide(free_threads, [spec.threads for spec in sharing])
    shares = {spec.id: share for spec, share in zip(sharing, threads, strict=True)}
    on_cards = sum(spec.cpus is None and devices[spec.id][0] != "cpu" for spec in models)
    gpu_shard_threads = min(_MOST_GPU_SHARD_THREADS, max(1, free_threads // max(1, on_cards)))
    placements: dict[str, Placement] = {}
    for spec in models:
        device, visible = devices[spec.id]
        if spec.cpus is not None:
            cpus, count = spec.cpus, spec.threads or len(spec.cpus)
        else:
            cpus = free if claimed else ()
            count = shares.get(spec.id) or spec.threads or gpu_shard_threads
        placements[spec.id] = Placement(device, visible, cpus, count)
    return _give_own_cpus(placements, machine.cpus)


def warn_of_threads(models: tuple[ModelSpec, ...], places: Mapping[str, Placement], machine: Machine) -> list[str]:
    """Return a sentence for each model that is to have more compute threads than CPUs to run them on."""
    warnings = []
    for spec in models:
        count = min(len(places[spec.id].cpus or machine.cpus), machine.cpu_count)
        if spec.threads is not None and spec.threads > count:
            cpus = "1 CPU" if count == 1 else f"{count} CPUs"
            warnings.append(
                f"Model {spec.id!r} has threads = {spec.threads} and {cpus}: threads that share a CPU wait for each "
                "other, which is slow. Leave threads out."
            )
    return warnings


def _give_own_cpus(placements: Mapping[str, Placement], all_cpus: tuple[int, ...]) -> dict[str, Placement]:
    computing = {name: set(one.cpus or all_cpus) for name, one in placements.items() if one.device == "cpu"}

    def own(name: str, threads: int) -> Collection[int]:
        cpus = computing.get(name, set())
        others = set[int]().union(*(theirs for other, theirs in computing.items() if other != name))
        return cpus if len(cpus) == threads and not cpus & others else ()

    return {name: replace(one, own_cpus=tuple(sorted(own(name, one.threads)))) for name, one in placements.items()}


def _check_cpu_sets(models: tuple[ModelSpec, ...], machine: Machine) -> None:
    problems = [
        f"Model {spec.id!r} asks for cpus {sorted(set(spec.cpus) - set(machine.cpus))}, which this process may not "
        f"use. Available: {format_cpus(machine.cpus)}."
        for spec in models
        if spec.cpus is not None and not set(spec.cpus) <= set(machine.cpus)
    ]
    if problems:
        raise ConfigurationError(*problems)


def _choose_devices(models: tuple[ModelSpec, ...], machine: Machine) -> dict[str, tuple[str, str]]:
    """Return (device, CUDA_VISIBLE_DEVICES) by id; models that name no GPU take turns over all of them."""
    turns = itertools.cycle(machine.gpus or ("0" if machine.has_other_gpus else "",))
    devices: dict[str, tuple[str, str]] = {}
    for spec in models:
        if spec.device == "cpu" or (spec.device == "auto" and not machine.gpus):
            devices[spec.id] = ("cpu", "")
        elif spec.device.startswith("cuda:"):
            devices[spec.id] = _choose_card(spec.device, machine)
        else:
            devices[spec.id] = (spec.device, next(turns))
    return devices


def _choose_card(device: str, machine: Machine) -> tuple[str, str]:
    index = int(device.removeprefix("cuda:"))
    if index < len(machine.gpus):
        return "cuda", machine.gpus[index]
    if machine.has_other_gpus:
        return "cuda", str(index)
    # Shown all that there are, its process says that this one is not among them.
    return device, ",".join(machine.gpus)


def _divide(threads: int, wishes: list[int | None]) -> list[int]:
    """Give each its wish, and the others equal parts of what is left, at least one."""
    left = threads - sum(wish for wish in wishes if wish is not None)
    others = sum(wish is None for wish in wishes)
    share, extra = divmod(max(0, left), others) if others else (0, 0)
    result: list[int] = []
    for wish in wishes:
        if wish is not None:
            result.append(wish)
            continue
        result.append(max(1, share + (extra > 0)))
        extra -= 1
    return result


def shard_environment(placement: Placement, env: Mapping[str, str]) -> dict[str, str]:
    """Return a shard's environment: the user's, without our settings, with its threads and GPUs."""
    threads = str(placement.threads)
    return child_environment(env) | {
        # Weights in large pages: one short text, which is little but reading them all, takes a tenth less.
        "GLIBC_TUNABLES": env.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
        "CUDA_VISIBLE_DEVICES": placement.visible_gpus,
        CARD_ORDER: env.get(CARD_ORDER) or ORDER_OF_THE_BUS,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        # A shard's stderr is a log; downloads are reported as messages.
        "TQDM_DISABLE": "1",
        **_place_threads(thread_cpus(placement, env), env),
    }


def thread_cpus(placement: Placement, env: Mapping[str, str]) -> tuple[int, ...]:
    """Return the CPU of each compute thread; none where the kernel chooses, or an operator has.

    On a machine with few CPUs the kernel often wakes a thread on the very CPU on which another waits for it in a loop,
    until that one gives up: after a pause, one short text took 14 ms in place of 5 (docs/performance.md).
    """
    placeable = 1 < len(placement.own_cpus) <= _MOST_PLACED_THREADS
    return placement.own_cpus if placeable and not any(name in env for name in THREAD_PLACING) else ()


def _place_threads(cpus: tuple[int, ...], env: Mapping[str, str]) -> dict[str, str]:
    """Return what tells OpenMP so, for the threads of the first lane."""
    if not cpus:
        return {}
    placing = {"OMP_PROC_BIND": "close", "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus)}
    spins = env.get("GOMP_SPINCOUNT") or _SPINS.get(os.uname().machine)
    return placing | ({"GOMP_SPINCOUNT": spins} if spins else {})


def router_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return a router's environment: it multiplies no matrices, and needs none of a thread and a buffer per CPU."""
    return child_environment(env) | {"OPENBLAS_NUM_THREADS": "1"}


def child_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the user's environment without our settings: they travel on the control channel only.

    Without ``PYTHONINSPECT`` too, under which Python ends each process with code 1, whatever it has to say, and without
    ``PYTHONOPTIMIZE``: 2 takes away docstrings, in which transformers reads.
    """
    left_out = (PREFIX, "PYTHONINSPECT", "PYTHONOPTIMIZE")
    return {name: value for name, value in env.items() if not name.startswith(left_out)}


def format_cpus(cpus: tuple[int, ...]) -> str:
    """Return a CPU set as the kernel writes it: (0, 1, 2, 5) is "0-2,5"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1][1:] = [cpu]
        else:
            runs.append([cpu])
    return ",".join("-".join(str(cpu) for cpu in run) for run in runs)
