"""How a heap is cut into chunks, and the statement that reads one."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from ordermigrate.chunks import split_blocks

BLOCKS = st.integers(min_value=0, max_value=5_000)
SIZES = st.integers(min_value=1, max_value=700)


@given(BLOCKS, SIZES)
@example(0, 1)
@example(1, 1)
@example(8, 8)
@example(9, 8)
def test_the_chunks_of_a_heap_are_a_partition_of_its_blocks(blocks: int, size: int) -> None:
    ranges = list(split_blocks(blocks, size))
    firsts = [first for first, _ in ranges]
    ends = [end for _, end in ranges]
    assert firsts[0] == 0
    assert ends[-1] is None  # what the heap has grown by since is in the last one
    assert ends[:-1] == firsts[1:]
    closed = [(first, end) for first, end in ranges if end is not None]
    assert all(end - first == size for first, end in closed)
    # Each block, and each that may still come, is in exactly one.
    for block in {0, blocks - 1, blocks, blocks + 10 * size, size, size - 1} - {-1}:
        held = [r for r in ranges if r[0] <= block and (r[1] is None or block < r[1])]
        assert len(held) == 1


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_the_number_of_chunks_is_that_of_the_size_and_never_none(blocks: int) -> None:
    size = max(1, blocks // 100)
    expected = max(1, -(-blocks // size))
    assert sum(1 for _ in split_blocks(blocks, size)) == expected
