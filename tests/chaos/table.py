"""The one table of a chaos run, and the same as JSON. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.ledger import Ledger
from tests.chaos.watch import Sample, growth, slope_per_hour


@dataclass(frozen=True)
class Ending:
    """How it stood when everything was over."""

    exit_code: int
    processes_left: int
    sockets_left: int
    zombies: int
    unrecovered: int
    encoded_again: int
    restarts: int


@dataclass(frozen=True)
class Report:
    """All that a run has found."""

    seconds: float
    seed: int
    injected: Counter[str]
    recovery_s: dict[str, list[float]]
    ledger: Ledger
    samples: dict[str, list[Sample]]
    ending: Ending

    def problems(self) -> list[str]:
        """Return what must not be, in words; empty for a run that has proved its point."""
        ledger, ending = self.ledger, self.ending
        limits = {
            "requests lost": ledger.lost,
            "wrong vectors": ledger.wrong,
            "duplicate answers": ledger.duplicate,
            "healthy requests blamed": ledger.blamed,
            "processes left": ending.processes_left,
            "socket files left": ending.sockets_left,
            "lasting zombies": ending.zombies,
            "faults without recovery": ending.unrecovered,
            "exit code": ending.exit_code,
        }
        found = [f"{what}: {count}" for what, count in limits.items() if count]
        if not ledger.answered:
            found.append("nothing was answered")
        if (more := growth(self.samples["supervisor"], "files")) > 3:
            found.append(f"the supervisor has {more:g} more descriptors than at the start")
        return found

    def as_json(self) -> dict[str, object]:
        ledger = self.ledger
        return {
            "seconds": self.seconds,
            "seed": self.seed,
            "faults": {
                name: {"injected": count, **_percentiles(self.recovery_s.get(name, []))}
                for name, count in sorted(self.injected.items())
            },
            "requests": {
                name: getattr(ledger, name)
                for name in (
                    *("sent", "texts", "answered", "vectors_checked", "cancelled", "poison_sent", "cut"),
                    *("blamed", "lost", "wrong", "duplicate", "slowest_s"),
                )
            },
            "refused": dict(ledger.refused),
            "poison": dict(ledger.poison),
            "recovery": _percentiles(self._all_recoveries()),
            "ending": vars(self.ending),
            "growth": {
                role: {
                    what: {
                        "end": getattr(samples[-1], what),
                        "growth": growth(samples, what),
                        "per_hour": slope_per_hour(samples, what),
                        "watched_s": samples[-1].at_s - samples[0].at_s,
                    }
                    for what in ("resident_mb", "files", "threads")
                }
                for role, samples in self.samples.items()
                if samples
            },
            "problems": self.problems(),
            "notes": ledger.notes,
            "sentences": ledger.sentences,
        }

    def rows(self) -> list[tuple[str, str, str]]:
        ledger, ending = self.ledger, self.ending
        rows = [
            (f"fault: {name}", str(count), _shown(self.recovery_s.get(name, [])))
            for name, count in sorted(self.injected.items())
        ]
        rows += [
            ("all faults", str(sum(self.injected.values())), _shown(self._all_recoveries())),
            ("requests", f"{ledger.sent:,}", f"{ledger.texts:,} texts"),
            (
                "answered",
                f"{ledger.answered:,}",
                f"{ledger.vectors_checked:,} vectors, each compared with its true value",
            ),
            ("encoded more than once", f"{ending.encoded_again:,}", "texts: sent again, or in a batch that was split"),
            ("refused with a reason", str(sum(ledger.refused.values())), _counts(ledger.refused)),
            ("bad texts, refused with a reason", str(sum(ledger.poison.values())), _counts(ledger.poison)),
            ("left by the client", str(ledger.cancelled), ""),
            ("cut with the router, asked again", str(ledger.cut), ""),
            ("healthy, but blamed (must be 0)", str(ledger.blamed), ""),
            ("lost (must be 0)", str(ledger.lost), f"slowest answer {ledger.slowest_s:.1f} s"),
            ("wrong (must be 0)", str(ledger.wrong), ""),
            ("duplicate (must be 0)", str(ledger.duplicate), ""),
            ("processes left (must be 0)", str(ending.processes_left), f"lasting zombies {ending.zombies}"),
            ("sockets left (must be 0)", str(ending.sockets_left), f"exit code {ending.exit_code}"),
            ("restarts of shards", str(ending.restarts), ""),
        ]
        for role, samples in self.samples.items():
            if len(samples) >= 10:
                rows.append((f"{role}, longest-lived", f"{samples[-1].resident_mb:.0f} MB", _growths(samples)))
        return rows

    def render(self) -> str:
        """Return it as a Markdown table."""
        lines = ["| what | number | detail |", "|---|---:|---|"]
        lines += [f"| {name} | {number} | {detail} |" for name, number, detail in self.rows()]
        return "\n".join(lines)

    def _all_recoveries(self) -> list[float]:
        return [seconds for found in self.recovery_s.values() for seconds in found]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of values that are not empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"p50_s": round(percentile(values, 0.5), 3), "p99_s": round(percentile(values, 0.99), 3)}


def _shown(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"answered again after p50 {percentile(values, 0.5):.2f} s, p99 {percentile(values, 0.99):.2f} s"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.most_common())


def _growths(samples: list[Sample]) -> str:
    watched_s = samples[-1].at_s - samples[0].at_s
    return (
        f"in {watched_s:.0f} s: {growth(samples, 'resident_mb'):+.1f} MB, {growth(samples, 'files'):+.0f} descriptors, "
        f"{growth(samples, 'threads'):+.0f} threads"
    )
