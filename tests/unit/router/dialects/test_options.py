"""One reader for the fields of all dialects: what each word means, and which of two counts."""

import msgspec
import pytest

from emb_model_provider.errors import InvalidRequestError
from router.dialects.fields import Fields
from router.dialects.options import Options, read_options


def read(fields: dict[str, object]) -> dict[str, object]:
    """Return what a body says that is not as without it."""
    found, usual = msgspec.structs.asdict(read_options(Fields(fields))), msgspec.structs.asdict(Options())
    return {name: value for name, value in found.items() if value != usual[name]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"model": "m", "input": "a", "encoding_format": "float"}, {}),
        ({"truncate": None, "max_tokens": None, "priority": None, "on_error": None}, {}),
        ({"input_type": "query"}, {"role": "query"}),
        ({"task": "query"}, {"role": "query"}),
        ({"task": "a", "input_type": "b"}, {"role": "b"}),
        ({"dimensions": 1}, {"dimensions": 1}),
        ({"dimensions": 5.0}, {"dimensions": 5}),  # of JSON's numbers 5.0 is the same one
        ({"dimensions": 2.0**63}, {"dimensions": 2**63}),
        ({"truncate_prompt_tokens": -1.0}, {"overlong": "truncate"}),
        ({"priority": 0.0}, {}),
        ({"priority": -1.0}, {"priority": "interactive"}),
        ({"output_dimension": 8}, {"dimensions": 8}),
        ({"output_dimension": 8, "dimensions": 4}, {"dimensions": 4}),
        ({"normalized": False}, {"normalize": False}),
        ({"normalized": True, "normalize": False}, {"normalize": False}),
        ({"prompt": "q: ", "prompt_name": "query"}, {"prompt": "q: ", "prompt_name": "query"}),
        # Where a text is cut, if it may be.
        ({"truncate": True}, {"overlong": "truncate"}),
        ({"truncate": False}, {"overlong": "error"}),
        ({"truncate": False, "truncation_direction": "left"}, {"overlong": "error"}),
        ({"truncate": True, "truncation_direction": "Left"}, {"overlong": "start"}),
        ({"truncate": True, "truncation_side": "right"}, {"overlong": "end"}),
        ({"truncation_side": "left"}, {"overlong": "start"}),
        ({"truncation_side": "left", "truncation_direction": "right"}, {"overlong": "end"}),
        ({"truncate": "NONE"}, {"overlong": "error"}),
        ({"truncate": "START"}, {"overlong": "start"}),
        ({"truncate": "end", "truncation_side": "left"}, {"overlong": "end"}),
        # vLLM's name for a limit, which cuts.
        ({"truncate_prompt_tokens": -1}, {"overlong": "truncate"}),
        ({"truncate_prompt_tokens": 7}, {"overlong": "truncate", "max_tokens": 7}),
        ({"truncate_prompt_tokens": 0, "max_tokens": 9}, {"overlong": "truncate", "max_tokens": 9}),
        ({"truncate_prompt_tokens": 1, "max_tokens": 9}, {"overlong": "truncate", "max_tokens": 1}),
        ({"truncate_prompt_tokens": -1, "max_tokens": 9}, {"overlong": "truncate", "max_tokens": 9}),
        ({"truncate_prompt_tokens": 7, "truncation_side": "left"}, {"overlong": "start", "max_tokens": 7}),
        ({"truncate_prompt_tokens": 7, "truncate": "none"}, {"overlong": "error", "max_tokens": 7}),
        ({"max_tokens": 1}, {"max_tokens": 1}),
        ({"max_tokens": 2**31 - 1}, {"max_tokens": 2**31 - 1}),
        # A number is vLLM's, of which the lower comes first.
        ({"priority": 0}, {}),
        ({"priority": -1}, {"priority": "interactive"}),
        ({"priority": 1}, {"priority": "bulk"}),
        ({"priority": "Bulk"}, {"priority": "bulk"}),
        ({"timeout_ms": 1}, {"timeout_s": 0.001}),
        ({"timeout_ms": 86_400_000}, {"timeout_s": 86_400.0}),
        ({"on_error": "null", "usage_details": True}, {"partial": True, "details": True}),
        ({"on_error": "fail", "usage_details": False}, {}),
        ({"late_chunking": False}, {}),
    ],
)
def test_a_word_means_the_same_in_every_dialect(fields, expected):
    assert read(fields) == expected


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"late_chunking": True}, "is not supported: each input is encoded by itself"),
        ({"truncate": 1}, "true, false or one of NONE, START, END"),
        ({"max_tokens": 0}, "from 1 to"),
        ({"max_tokens": 2**31}, "from 1 to"),
        ({"dimensions": 0}, "from 1,"),
        ({"dimensions": 1e30}, r"a whole number from 1 of 64 bits at most, not the number 1e\+30\."),
        ({"truncate_prompt_tokens": -2}, "from -1 to"),
        ({"timeout_ms": 86_400_001}, "from 1 to 86400000"),
        ({"timeout_ms": 1e30}, r"from 1 to 86400000, not the number 1e\+30\."),  # as orjson reads 1 and thirty zeros
        ({"timeout_ms": -1e30}, r"not the number -1e\+30\."),
        ({"timeout_ms": 0.5}, r"not a fraction\."),
        ({"timeout_ms": 0.0}, r"not the number 0\."),
        ({"priority": True}, "priority"),
        ({"priority": 0.5}, "priority"),
    ],
)
def test_what_means_nothing_is_refused_with_what_would(fields, said):
    with pytest.raises(InvalidRequestError, match=said):
        read(fields)


def test_a_prompt_that_is_the_input_of_its_dialect_is_none():
    fields = Fields({"prompt": "a text", "truncate": True})
    assert read_options(fields, reads_prompt=False) == Options(overlong="truncate")
