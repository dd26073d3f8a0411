"""What became of every request: the counts that the table shows. Pure; filled by ``clients``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: Answers that say why, and when it makes sense to ask again.
REFUSALS = frozenset({408, 413, 422, 429, 503, 504})


@dataclass
class Ledger:
    """Counts by outcome. ``notes`` are the first few requests of each kind that must not occur."""

    sent: int = 0
    texts: int = 0
    answered: int = 0
    vectors_checked: int = 0
    cancelled: int = 0
    cut: int = 0
    poison_sent: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    poison: Counter[str] = field(default_factory=Counter)
    blamed: int = 0
    lost: int = 0
    wrong: int = 0
    duplicate: int = 0
    slowest_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    #: The first answer of each refusal.
    sentences: dict[str, str] = field(default_factory=dict)

    def note(self, what: str) -> None:
        if len(self.notes) < 40:
            self.notes.append(what)

    def took(self, seconds: float) -> None:
        self.slowest_s = max(self.slowest_s, seconds)

    def is_clean(self) -> bool:
        return self.lost == self.wrong == self.duplicate == 0


@dataclass(frozen=True)
class Sent:
    """One request as it was sent: who asked, for what, and whether its texts are to blame for what happens."""

    request_id: str
    model_id: str
    texts: tuple[str, ...]
    poisoned: bool


def judge(
    ledger: Ledger, sent: Sent, status: int, headers: Mapping[str, str], body: object, right: Sequence[Sequence[float]]
) -> None:
    """Enter one answer. ``right`` are the true vectors; ``body`` is the parsed JSON, ``None`` for what is none."""
    if (echoed_id := headers.get("x-request-id", "")) != sent.request_id:
        ledger.duplicate += 1
        ledger.note(f"{sent.request_id}: got the answer of {echoed_id!r}")
        return
    if status == 200:
        if (problem := find_fault(body, right)) is None:
            ledger.answered += 1
            ledger.vectors_checked += len(right)
        else:
            ledger.wrong += 1
            ledger.note(f"{sent.request_id} ({sent.model_id}, {len(sent.texts)} texts): {problem}")
        return
    code = _error_code(body)
    ledger.sentences.setdefault(f"{status} {code}", str(body)[:300])
    if code is None or (status in (429, 503) and "Retry-After" not in headers):
        ledger.lost += 1
        ledger.note(f"{sent.request_id}: status {status} without a reason or a time to come back: {str(body)[:200]}")
    elif sent.poisoned:
        ledger.poison[f"{status} {code}"] += 1
    elif status in REFUSALS:
        ledger.refused[f"{status} {code}"] += 1
    else:
        ledger.blamed += 1
        ledger.note(f"{sent.request_id}: healthy, but {status} {code}: {str(body)[:200]}")


def find_fault(body: object, right: Sequence[Sequence[float]]) -> str | None:
    """Return what is wrong with an answer's vectors, or ``None``."""
    if not isinstance(body, dict) or not isinstance(body.get("data"), list):
        return "200 without data"
    rows = body["data"]
    if [row.get("index") for row in rows] != list(range(len(right))):
        return f"indexes {[row.get('index') for row in rows][:8]} … for {len(right)} texts"
    for index, (row, expected) in enumerate(zip(rows, right, strict=True)):
        found = row["embedding"]
        if len(found) != len(expected) or any(not abs(a - b) < 1e-6 for a, b in zip(found, expected, strict=True)):
            return f"vector {index} is not that of its text"
    return None


def _error_code(body: object) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not error.get("message"):
        return None
    return str(error.get("code") or error.get("type"))
