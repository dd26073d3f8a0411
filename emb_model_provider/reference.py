"""Writes what can be generated from the tables: ``.env.example`` and the configuration page in two languages.

``python -m emb_model_provider.reference --write`` writes the files below the current directory, ``--check`` exits
with 1 and one sentence per file that is out of date. The prose stands in ``reference_text``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Final

from emb_model_provider.entry_table import ENTRY_KEYS, NAME
from emb_model_provider.mapping import ALIAS_RULE
from emb_model_provider.reference_text import (
    ENV_HEADER,
    EXAMPLE_MAPPING,
    PAGES,
    Page,
)
from emb_model_provider.setting_table import MODEL_MAPPING, SETTINGS, Section, Setting
from emb_model_provider.value_kinds import Language

_COMMENT_COLUMNS: Final = 110


def generated_files() -> dict[str, str]:
    """Return the text of every generated file by its path below the project's root."""
    return {
        ".env.example": env_example(),
        "docs/configuration.md": configuration_page("en"),
        "docs/zh/configuration.md": configuration_page("zh"),
    }


def env_example() -> str:
    """Return ``.env.example``: every setting, commented out, so that the file as it stands changes nothing."""
    parts = [ENV_HEADER.strip()]
    for section in Section:
        parts.append(f"# ---- {section.value.en} ----")
        parts.extend(_env_row(row) for row in SETTINGS if row.section is section)
    return "\n\n".join(parts) + "\n"


def _env_row(row: Setting[object]) -> str:
    lines = _wrapped(f"{row.help.en} Allowed: {row.kind.allowed.en}. Default: {_default(row, 'en') or 'none'}.")
    if row is MODEL_MAPPING:
        assignment = f"{row.name}={EXAMPLE_MAPPING}"
    else:
        # Where there is no plain default an example says more than an empty value.
        assignment = f"{row.name}={_plain_default(row) or row.example}"
    return "\n".join(f"# {line}" for line in lines) + "\n" + "\n".join(f"#{line}" for line in assignment.splitlines())


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.replace("`", "").split():
        if len(lines[-1]) + len(word) > _COMMENT_COLUMNS:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def configuration_page(language: Language) -> str:
    """Return the configuration page in one language."""
    page = PAGES[language]
    parts = [page.opening.strip(), page.sources.strip(), f"## {page.all_settings}"]
    for section in Section:
        rows = [_setting_cells(row, language) for row in SETTINGS if row.section is section]
        parts += [f"### {section.value.say(language)}", _table(page.setting_columns, rows)]
    parts += [page.entries.strip(), _table(page.entry_columns, _entry_rows(page, language))]
    parts += [page.aliases.format(rule=ALIAS_RULE).strip(), page.example.format(mapping=EXAMPLE_MAPPING).strip()]
    return "\n\n".join([*parts, page.rules.strip()]) + "\n"


def _setting_cells(row: Setting[object], language: Language) -> list[str]:
    kind = row.kind
    default = _default(row, language)
    shown = f"`{default}`" if row.unset is None and default else default
    return [f"`{row.name}`", kind.type_name.say(language), kind.allowed.say(language), shown, row.help.say(language)]


def _entry_rows(page: Page, language: Language) -> Iterable[list[str]]:
    for key in ENTRY_KEYS:
        left_out = f"`{key.setting}`" if key.setting else page.required if key is NAME else "–"
        kind = key.kind
        yield [
            f"`{key.name}`",
            kind.type_name.say(language),
            kind.allowed_in_json.say(language),
            left_out,
            key.help.say(language),
        ]


def _default(row: Setting[object], language: Language) -> str:
    return row.unset.say(language) if row.unset else _plain_default(row)


def _plain_default(row: Setting[object]) -> str:
    if row.unset is not None:
        return ""
    if isinstance(row.default, bool):
        return str(row.default).lower()
    return f"{row.default:g}" if isinstance(row.default, float) else str(row.default)


def _table(columns: tuple[str, ...], rows: Iterable[list[str]]) -> str:
    cells = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def stale_files(root: Path) -> list[str]:
    """Return one sentence for each generated file under ``root`` that is missing or differs from the tables."""
    return [
        sentence
        for name, wanted in generated_files().items()
        if (sentence := _difference(name, root / name, wanted)) is not None
    ]


def _difference(name: str, path: Path, wanted: str) -> str | None:
    if not path.exists():
        return f"{name} is missing."
    pairs = zip_longest(path.read_text(encoding="utf-8").splitlines(), wanted.splitlines())
    for number, (found, expected) in enumerate(pairs, start=1):
        if found != expected:
            return f"{name}:{number} is out of date.\n  - {found or ''}\n  + {expected or ''}"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Write or check the generated files; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m emb_model_provider.reference", description=main.__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the files below the current directory")
    action.add_argument("--check", action="store_true", help="exit with 1 if a file is out of date")
    if parser.parse_args(arguments).write:
        for name, text in generated_files().items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text, encoding="utf-8")
        return 0
    stale = stale_files(Path.cwd())
    for sentence in stale:
        sys.stderr.write(sentence + "\n")
    if stale:
        sys.stderr.write("Run: python -m emb_model_provider.reference --write\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
