"""Looks settings up, in the environment first and in a ``.env`` file then, and collects what is wrong with them.

Made by ``load_settings`` once; ``settings`` and ``model_settings`` take every value from it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from emb_model_provider.dotenv_file import PREFIX, DotenvFile
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.positioned_json import Document, document_of_variable
from emb_model_provider.setting_table import NAMES, SETTINGS, Setting
from emb_model_provider.value_kinds import WrongValueError

T = TypeVar("T")

ENVIRONMENT: Final = "the environment"
_QUOTED: Final = re.compile(r"(['\"]).*\1", re.DOTALL)
_URL_PASSWORD: Final = re.compile(r"//[^/\s]*@")
#: Compared without what all names share, which would make every name look near.
_KNOWN_SUFFIXES: Final = tuple(row.name.removeprefix(PREFIX) for row in SETTINGS)
_SEPARATORS: Final = re.compile(r"[-. ]")
#: Names that work in the environment, where the hubs' clients and torch read them, and what to write in a file.
_NAMES_OF_OTHERS: Final[dict[str, str | None]] = {
    "HF_ENDPOINT": "HUGGINGFACE_ENDPOINT",
    "HF_TOKEN": "HUGGINGFACE_TOKEN",
    "HF_HUB_CACHE": "HUGGINGFACE_CACHE_DIR",
    "HF_HUB_OFFLINE": "OFFLINE",
    "MODELSCOPE_ENDPOINT": "MODELSCOPE_ENDPOINT",
    "MODELSCOPE_CACHE": "MODELSCOPE_CACHE_DIR",
    **dict.fromkeys(("HF_HOME", "CUDA_VISIBLE_DEVICES", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")),
}


@dataclass(frozen=True, slots=True)
class Found:
    """The text of one value and the words that say where it stands."""

    text: str
    where: str
    document: Document | None = None


class Values:
    """Looks values up by row and collects what is wrong with them."""

    def __init__(self, env: Mapping[str, str], dotenv: DotenvFile | None) -> None:
        self._env = env
        self._dotenv = dotenv
        self.problems: list[str] = list(dotenv.problems) if dotenv else []
        self.warnings: list[str] = list(dotenv.warnings) if dotenv else []
        self._warn_of_unknown_names()
        self._warn_of_names_of_others()

    def find(self, row: Setting[object]) -> Found | None:
        """Return the value that counts; ``None`` where it is missing or empty and so means the default."""
        found = self._look_up(row.name)
        return found if found and (found.text or row.takes_empty) else None

    def get(self, row: Setting[T]) -> T:
        """Return the checked value; a wrong one becomes a problem and the default stands in for it."""
        found = self.find(row)
        if found is None:
            return row.default
        try:
            check_quotes(found)
            return row.kind.parse(found.text)
        except WrongValueError as error:
            # A password in a URL is a secret in the wrong place, and still one.
            shown = "***" if row.secret else _URL_PASSWORD.sub("//***@", found.text)
            self.problems.append(f"{row.name}={shown!r} ({found.where}) cannot be used: {error}.")
            return row.default

    def where(self, row: Setting[object]) -> str:
        """Return ``.env:12`` or the environment, for the message about a value that is set."""
        found = self.find(row)
        return found.where if found else "the default"

    def refuse_above(self, row: Setting[float], value: float, limit_row: Setting[float], limit: float) -> None:
        """Note that the value of ``row`` is above that of ``limit_row``, where it is."""
        if value > limit:
            self.problems.append(
                f"{row.name}={value:g} ({self.where(row)}) must not exceed {limit_row.name}={limit:g}"
                f" ({self.where(limit_row)})."
            )

    def blame(self, rows: Iterable[Setting[object]], error: ConfigurationError) -> None:
        """Note what is wrong with the files that ``rows`` name."""
        place = " and ".join(f"{row.name} ({self.where(row)})" for row in rows)
        self.problems.extend(f"{place}: {problem}" for problem in error.problems)

    def path(self, text: str) -> str:
        """Replace a leading ``~`` by the home directory, as a shell would."""
        home = self._env.get("HOME", "")
        return home.rstrip("/") + text[1:] if home and (text == "~" or text.startswith("~/")) else text

    def warn_ignored(self, rows: Iterable[Setting[object]], reason: str) -> None:
        """Warn of each of ``rows`` that is set although it means nothing here."""
        for row in rows:
            if self.find(row):
                self.warnings.append(f"{row.name} ({self.where(row)}) is ignored, because {reason}.")

    def _look_up(self, name: str) -> Found | None:
        if name in self._env:
            text = self._env[name]
            return Found(text.strip(), ENVIRONMENT, document_of_variable(text, ENVIRONMENT))
        assignment = self._dotenv.assignments.get(name) if self._dotenv else None
        if self._dotenv is None or assignment is None:
            return None
        return Found(assignment.value.strip(), f"{self._dotenv.label}:{assignment.line}", assignment.document)

    def _warn_of_unknown_names(self) -> None:
        in_file = self._dotenv.assignments if self._dotenv else {}
        for name in sorted({*self._env, *in_file} - NAMES):
            near = _near_suffix(name)
            if near is None:
                continue
            found = self._look_up(name)
            advice = f" Did you mean {PREFIX}{near}?" if near else ""
            where = found.where if found else ENVIRONMENT
            self.warnings.append(f"{name} ({where}) is no setting of this program and is ignored.{advice}")

    def _warn_of_names_of_others(self) -> None:
        """Warn of what would work in the environment and does nothing in the file, where nobody else looks."""
        for name in sorted(self._dotenv.assignments if self._dotenv else {}):
            ours = _NAMES_OF_OTHERS.get(name.upper(), name)
            found = self._look_up(name)
            if ours == name or name in self._env or found is None or (ours and self._look_up(PREFIX + ours)):
                continue
            instead = f"write {PREFIX}{ours} instead, or " if ours else ""
            self.warnings.append(
                f"{name} ({found.where}) is ignored, because only names with {PREFIX} count in the file: {instead}set "
                "it in the environment of the server."
            )


def _near_suffix(name: str) -> str | None:
    """Return what may be meant by an unknown name, without the prefix; "" if nothing is near, ``None`` if not ours."""
    name = _SEPARATORS.sub("_", name.upper())
    if name.startswith(PREFIX):
        near = difflib.get_close_matches(name.removeprefix(PREFIX), _KNOWN_SUFFIXES, n=1)
        return near[0] if near else ""
    # A mistake in the prefix: unheard, it could take the keys from a server that was meant to be closed.
    for suffix in _KNOWN_SUFFIXES:
        head = name.removesuffix(suffix)
        if head != name and head.startswith(PREFIX[0]) and difflib.get_close_matches(head, [PREFIX], cutoff=0.9):
            return suffix
    return None


def check_quotes(found: Found) -> None:
    """Raise ``WrongValueError`` for quotes that no shell and no parser of a file has taken off."""
    if found.where == ENVIRONMENT and _QUOTED.fullmatch(found.text):
        raise WrongValueError("the quotes would be part of it, as docker --env-file passes them on; leave them out")
