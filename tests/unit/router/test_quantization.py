import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.quantization import int8_limit, quantize


def unit_rows(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 99))
def test_binary_types_are_those_of_sentence_transformers(count, dimension, seed):
    rows = unit_rows(count, dimension, seed)
    packed = np.packbits(rows > 0, axis=1)  # what quantize_embeddings does, which needs torch to import
    assert np.array_equal(quantize(rows, "ubinary"), packed)
    assert np.array_equal(quantize(rows, "binary"), (packed.astype(np.int16) - 128).astype(np.int8))


@given(st.integers(1, 5), st.integers(1, 1024), st.integers(0, 99))
def test_int8_and_uint8_say_the_same_and_keep_order(count, dimension, seed):
    rows = unit_rows(count, dimension, seed)
    signed = quantize(rows, "int8")
    assert signed.dtype == np.int8
    assert signed.min() >= -127
    assert np.array_equal(signed.astype(int) + 128, quantize(rows, "uint8").astype(int))
    step = int8_limit(dimension) / 127
    inside = np.abs(rows) <= int8_limit(dimension)
    assert np.abs(signed * step - rows)[inside].max() <= 0.51 * step


@pytest.mark.parametrize("dimension", [64, 384, 1024, 4096])
def test_int8_costs_next_to_nothing_in_cosine_whatever_the_dimension(dimension):
    rows = unit_rows(50, dimension)
    made = quantize(rows, "int8").astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    assert (made * rows).sum(axis=1).min() > 0.9997


def test_numbers_beyond_the_range_are_cut_and_not_wrapped():
    rows = np.zeros((1, 1024), dtype=np.float32)
    rows[0, :2] = 0.9, -0.436
    assert quantize(rows, "int8")[0, :2].tolist() == [127, -127]
    assert quantize(rows, "uint8")[0, :2].tolist() == [255, 1]


def test_float16_is_little_endian_and_float_the_same_array():
    rows = unit_rows(2, 8)
    assert quantize(rows, "float16").dtype == np.dtype("<f2")
    assert quantize(rows, "float") is rows


@pytest.mark.parametrize(("kind", "byte"), [("ubinary", 0b0100_0000), ("binary", 0b0100_0000 - 128)])
def test_a_number_that_is_exactly_zero_is_not_above_zero(kind, byte):
    rows = np.array([[0.0, 1.0, -1.0, -0.0, 0.0, 0.0, 0.0, 0.0]], dtype="<f4")
    assert quantize(rows, kind).tolist() == [[byte]]


@pytest.mark.parametrize("dimension", [1, 16, 64])
def test_no_number_of_a_vector_of_length_1_is_beyond_1(dimension):
    assert int8_limit(dimension) == 1.0
