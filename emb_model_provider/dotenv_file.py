"""Reads a ``.env`` file: python-dotenv's rules, plus JSON over many lines without quotes for one key.

python-dotenv alone reads the first line of such JSON, ``{``, and takes the rest for broken lines. So the
bindings are walked one by one; where the mapping's own key begins, the JSON decides where its value ends.
The supervisor is the caller; the text of every value keeps the line it came from.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dotenv.parser import Binding, parse_stream
from dotenv.variables import Atom, Variable, parse_variables

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.positioned_json import Document, JsonMistakeError, scan_json
from emb_model_provider.small_file import read_small_file

PREFIX: Final = "EMB_PROVIDER_"
MAPPING_NAME: Final = PREFIX + "MODEL_MAPPING"

_MAX_FILE_BYTES: Final = 1024 * 1024
_MAPPING_START: Final = re.compile(
    rf"\s*(?:export[^\S\n]+)?('?){MAPPING_NAME}\1[^\S\n]*=(?:\s*(?=[\{{｛])|[^\S\n]*(?=['\"]))"
)
_NEXT_ASSIGNMENT: Final = re.compile(r"^[^\S\n]*(?:export[^\S\n]+)?'?[A-Za-z_][A-Za-z0-9_]*'?[^\S\n]*=", re.MULTILINE)
_QUOTED: Final = {
    "'": re.compile(r"'((?:\\.|[^'\\])*)'", re.DOTALL),
    '"': re.compile(r'"((?:\\.|[^"\\])*)"', re.DOTALL),
}
#: A double-quoted value whose inner quotes were left as they are: dotenv cannot read it, the JSON shows where it ends.
_BARE_INSIDE_QUOTES: Final = re.compile(r'"\s*(?=\{\s*["}])')
_END_OF_VALUE: Final = re.compile(r"[^\S\n]*(?:#[^\n]*)?(?:\n|\Z)")
_ESCAPES: Final = {"'": re.compile(r"\\[\\']"), '"': re.compile(r"\\[\\'\"abfnrtv]")}
_ESCAPED: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_IS_DIRECTORY: Final = (
    " Docker makes an empty directory where a file that is to be mounted is missing: remove it and write the file."
)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One value of the file and the line of its name. ``document`` is set for the mapping's JSON."""

    value: str
    line: int
    document: Document | None = None


@dataclass(frozen=True, slots=True)
class DotenvFile:
    """What one ``.env`` file says; ``label`` is how messages name the file, ``problems`` settings it fails to say."""

    label: str
    assignments: Mapping[str, Assignment]
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def read_dotenv(
    path: Path | None, environ: Mapping[str, str] | None = None, *, again: bool = False
) -> DotenvFile | None:
    """Read the file at ``path``, which must exist, or ``./.env``, which need not; raise ``ConfigurationError``.

    ``environ`` serves ``${NAME}`` in values; it is the process's own where none is given. ``again`` is for a reload.
    """
    environ = os.environ if environ is None else environ
    if path is None:
        path = Path(".env")
        try:
            # A virtual environment is often called .env, too: such a directory is not ours. An empty one is what Docker
            # has made of a file that was to be mounted. Passed over, a link to a file that is gone could take the keys
            # from a server that was meant to be closed.
            if not (path.exists() or path.is_symlink()) or (path.is_dir() and not _is_empty(path)):
                return None
        except PermissionError:
            raise ConfigurationError(
                "This user may not look into the current directory, where a .env may be: start from another one, or "
                "name the file with --env-file."
            ) from None
    return _read(path, environ, again=again)


def _is_empty(directory: Path) -> bool:
    try:
        return not any(directory.iterdir())
    except OSError:  # what may not be looked into is somebody else's
        return False


def _read(path: Path, environ: Mapping[str, str], *, again: bool) -> DotenvFile:
    try:
        raw, _ = read_small_file(path, _MAX_FILE_BYTES + 1, again=again)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = _IS_DIRECTORY if isinstance(error, IsADirectoryError) and _is_empty(path) else ""
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            hint = f" It is a link to {path.readlink()}."
        raise ConfigurationError(f"The settings file {path} cannot be read: {reason}.{hint}") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {_MAX_FILE_BYTES} bytes: that is no settings file.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, raw, error.start) from None
    if "\0" in text:  # UTF-16 without its mark
        raise _not_utf8(path, raw, raw.index(b"\0"))
    return parse_dotenv(text, str(path), environ)


def _not_utf8(path: Path, raw: bytes, at: int) -> ConfigurationError:
    line = raw.count(b"\n", 0, at) + 1
    return ConfigurationError(f"{path}:{line} is not UTF-8 text; save the file as UTF-8.")


def parse_dotenv(text: str, label: str, environ: Mapping[str, str]) -> DotenvFile:
    """Return the assignments in ``text``. ``environ`` serves ``${NAME}`` in values, after the file's own names."""
    walk = _Walk(text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), label, environ)
    walk.run()
    return DotenvFile(label, walk.assignments, tuple(walk.warnings), tuple(walk.problems))


class _Walk:
    """One pass over the text, from binding to binding."""

    def __init__(self, text: str, label: str, environ: Mapping[str, str]) -> None:
        self._text = text
        self._label = label
        self._known: dict[str, str | None] = dict(environ)
        self._at = 0
        self.assignments: dict[str, Assignment] = {}
        self.warnings: list[str] = []
        self.problems: list[str] = []

    def run(self) -> None:
        while self._at < len(self._text):
            self._run_to_mapping()

    def _run_to_mapping(self) -> None:
        """Take dotenv's bindings until the mapping has been read; its end is where dotenv is started again."""
        # dotenv drops a byte order mark wherever it is started: the offsets would no longer be ours.
        while self._text.startswith("\ufeff", self._at):
            self._at += 1
        lines_before = self._line(self._at) - 1
        for binding in parse_stream(io.StringIO(self._text[self._at :])):
            start = _MAPPING_START.match(self._text, self._at)
            if start:
                self._take_mapping(start)
                return
            self._take(binding, lines_before)
            self._at += len(binding.original.string)

    def _take_mapping(self, start: re.Match[str]) -> None:
        name_at = self._text.index(MAPPING_NAME, start.start())
        document, self._at = _mapping_document(self._text, start.end(), self._label)
        self._add(MAPPING_NAME, Assignment(document.text, self._line(name_at), document))

    def _take(self, binding: Binding, lines_before: int) -> None:
        original = binding.original.string
        blank = original[: len(original) - len(original.lstrip())]
        line = lines_before + binding.original.line + blank.count("\n")
        where = f"{self._label}:{line}"
        if _names_a_setting(binding):  # ignored, it could take the keys from a server that was meant to be closed
            self.problems.append(
                f"{where} is no NAME=value, though it names a setting. Is a quote left open, or is there a wide '＝' or"
                " a mark that cannot be seen?"
            )
        elif binding.error:
            self.warnings.append(f"{where} is neither NAME=value nor a comment and is ignored. Is a quote left open?")
        elif binding.key is not None and binding.value is None:
            self.warnings.append(f"{where} has no '=' after the name and is ignored.")
        elif binding.key is not None and binding.value is not None:
            atoms = list(parse_variables(binding.value))
            if PREFIX in binding.key:
                self._warn_of_unset(binding.key, atoms, where)
            value = "".join(atom.resolve(self._known) for atom in atoms)
            self._known[binding.key] = value
            self._add(binding.key, Assignment(value, line))

    def _warn_of_unset(self, key: str, atoms: Iterable[Atom], where: str) -> None:
        """Warn of ``${NAME}`` that nothing stands for: it could take the keys from a server."""
        self.warnings.extend(
            f"{where}: ${{{atom.name}}} in {key} is set nowhere and counts as empty; if that is meant, write "
            f"${{{atom.name}:-}}."
            for atom in atoms
            if isinstance(atom, Variable) and atom.default is None and atom.name not in self._known
        )

    def _add(self, name: str, assignment: Assignment) -> None:
        before = self.assignments.get(name)
        if before is not None and name.startswith(PREFIX):
            self.warnings.append(
                f"{self._label}:{assignment.line} sets {name} a second time; line {before.line} does not count."
            )
        self.assignments[name] = assignment

    def _line(self, at: int) -> int:
        return self._text.count("\n", 0, at) + 1


def _names_a_setting(binding: Binding) -> bool:
    """Tell whether a binding that sets nothing of ours was meant to."""
    if binding.error:
        return PREFIX in binding.original.string
    return binding.key is not None and PREFIX in binding.key and not binding.key.isidentifier()


def _mapping_document(text: str, at: int, label: str) -> tuple[Document, int]:
    """Return the JSON that begins at ``at`` and the offset of the line after it.

    A value that is not JSON is returned up to the next assignment, for the reader of the JSON to complain about.
    """
    quote = text[at]
    if quote in "{｛":  # the wide one is for the reader of the JSON to complain about
        return _bare_document(text, at, "", label)
    bare = _BARE_INSIDE_QUOTES.match(text, at) if quote == '"' else None
    if bare:
        return _bare_document(text, bare.end(), '"', label)
    quoted = _QUOTED[quote].match(text, at)
    end = quoted and _END_OF_VALUE.match(text, quoted.end())
    if quoted is None or end is None:
        return _broken_document(text, at, label)
    value, offsets = _unescape(text, quoted.start(1), quoted.end(1), quote)
    return Document(value, text, offsets, label, is_file=True), end.end()


def _bare_document(text: str, at: int, closing: str, label: str) -> tuple[Document, int]:
    try:
        end = scan_json(text, at).end
    except JsonMistakeError:
        return _broken_document(text, at, label)
    after = end
    if closing:
        after += len(text) - end - len(text[end:].lstrip())
        if not text.startswith(closing, after):
            return _broken_document(text, at, label)
        after += len(closing)
    rest = _END_OF_VALUE.match(text, after)
    if rest is None:
        return _broken_document(text, at, label)
    return Document(text[at:end], text, range(at, end + 1), label, is_file=True), rest.end()


def _broken_document(text: str, at: int, label: str) -> tuple[Document, int]:
    following = _NEXT_ASSIGNMENT.search(text, text.find("\n", at) + 1 or len(text))
    end = following.start() if following else len(text)
    return Document(text[at:end], text, range(at, end + 1), label, is_file=True), end


def _unescape(text: str, start: int, end: int, quote: str) -> tuple[str, list[int]]:
    """Undo dotenv's backslashes between ``start`` and ``end`` and say where each character stood."""
    chars: list[str] = []
    offsets: list[int] = []
    at = start
    while at < end:
        escape = _ESCAPES[quote].match(text, at, end)
        chars.append(_ESCAPED.get(text[at + 1], text[at + 1]) if escape else text[at])
        offsets.append(at)
        at += 2 if escape else 1
    return "".join(chars), [*offsets, end]
