"""How much of a text is Chinese, Japanese or Korean, how much Latin: cheap, for metrics only. Pure.

Only a sample is looked at: of a request at most 16 inputs, spread evenly, of each the first 128 characters. A CJK
character is taken for one token, four Latin ones (with digits, spaces and ASCII punctuation) for one, two of any other
script for one. The true number of tokens is then shared out in these proportions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_SAMPLED_INPUTS: Final = 16
_SAMPLED_CHARS: Final = 128
#: Hangul, kana, Han with their extensions, CJK punctuation, full-width forms.
_CJK: Final = re.compile(
    "[\u1100-\u11ff\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]+"
)
_OTHER: Final = re.compile(
    "[\u0250-\u10ff\u1200-\u2e7f\ua4d0-\ua95f\ua980-\uabff\ue000-\uf8ff\ufb00-\ufe2f\ufe50-\ufeff\ufff0-\U0001ffff]+"
)
_LATIN_ALONE: Final = (("latin", 1.0),)
_IDS_ALONE: Final = (("ids", 1.0),)

Shares = tuple[tuple[str, float], ...]


def script_shares(texts: Sequence[str]) -> Shares:
    """Return the share of tokens that each script has; together 1. No texts: token ids."""
    if not texts:
        return _IDS_ALONE
    step = -(-len(texts) // _SAMPLED_INPUTS)
    sample = texts if step == 1 else texts[::step]
    if all(map(str.isascii, sample)):  # a flag of the string: costs nothing
        return _LATIN_ALONE
    cjk = other = total = 0
    for text in sample:
        head = text[:_SAMPLED_CHARS]
        total += len(head)
        if not head.isascii():
            cjk += sum(map(len, _CJK.findall(head)))
            other += sum(map(len, _OTHER.findall(head)))
    weights = (("cjk", float(cjk)), ("latin", (total - cjk - other) / 4), ("other", other / 2))
    whole = sum(weight for _, weight in weights)
    return tuple((script, weight / whole) for script, weight in weights if weight) or _LATIN_ALONE
