"""How many rows a chunk has, and how often a head is multiplied."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from limbeck.losses import chunks, linear_divergence, linear_policy_loss, linear_token_logprobs

N, V, H = 24, 50, 6


@pytest.fixture
def free(monkeypatch):
    """Sets the free memory, in bytes; choices made under it are forgotten."""
    chunks.chunk_choice.cache_clear()
    yield lambda size: monkeypatch.setattr(chunks, "_free_memory", lambda device: size)
    chunks.chunk_choice.cache_clear()


@pytest.mark.parametrize(
    ("device", "vocab", "rows"),
    [
        ("cpu", 49_152, 256),
        ("cpu", 256_000, 256),
        ("cuda", 49_152, 2048),
        ("cuda", 151_936, 1024),
        ("cuda", 2**22, 256),
    ],
)
def test_rows_of_a_chunk_with_memory_to_spare(free, device, vocab, rows):
    free(1 << 50)
    found, reason = chunks.chunk_choice(vocab, torch.float32, device)
    assert found == rows and f"{rows} rows of {vocab:,} ids" in reason


def test_little_memory_halves_the_chunk_and_says_so(free):
    row = 2 * 151_936 * 4
    free(8 * 100 * row)
    rows, reason = chunks.chunk_choice(151_936, torch.float32, "cpu")
    assert rows == 64 and "64 rows" in reason and "free memory" in reason
    assert chunks.chunk_choice(151_936, torch.float64, "cpu")[0] == 32
    free(1 << 50)
    assert chunks.chunk_choice(151_936, torch.float32, "cpu")[0] == 64, "one choice a process"


def test_the_smallest_chunk_has_sixteen_rows(free):
    free(0)
    assert chunks.chunk_choice(151_936, torch.float32, "cpu")[0] == 16


def test_free_memory_of_this_machine_is_a_number_of_bytes():
    assert 1 << 20 < chunks._free_memory(torch.device("cpu")) < 1 << 50


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@contextmanager
def products(expected):
    with Products() as counter:
        yield
    assert counter.count == expected


def leaves(*, weight_needs=False):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(N, H, generator=generator), torch.randn(V, H, generator=generator)
    ids = torch.randint(0, V, (N,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(weight_needs), ids


def test_log_probabilities_with_a_frozen_head_multiply_nothing_in_the_backward():
    hidden, weight, ids = leaves()
    with products(2 * 3):
        logp = linear_token_logprobs(hidden, weight, ids, chunk_rows=8)
    with products(0):
        logp.sum().exp().backward()


def test_log_probabilities_without_gradient_cost_one_product_a_chunk():
    hidden, weight, ids = leaves(weight_needs=True)
    with torch.no_grad(), products(3):
        linear_token_logprobs(hidden, weight, ids, chunk_rows=8)
    with torch.no_grad(), products(3):
        linear_token_logprobs(hidden, weight.detach(), ids, chunk_rows=8)


@pytest.mark.parametrize(("weight_needs", "expected"), [(True, 3), (False, 2)])
def test_the_policy_loss_multiplies_what_needs_a_gradient(weight_needs, expected):
    hidden, weight, ids = leaves(weight_needs=weight_needs)
    with products(3 * expected):
        linear_policy_loss(hidden, weight, ids, lambda logp, _: -logp, chunk_rows=8).backward()


@pytest.mark.parametrize(("weight_needs", "expected"), [(True, 4), (False, 3)])
def test_tokens_of_weight_zero_are_never_multiplied(weight_needs, expected):
    hidden, weight, _ = leaves(weight_needs=weight_needs)
    weights = torch.arange(N) % 3 == 0
    with products(expected):  # the 8 active rows are one chunk
        linear_divergence(
            hidden, weight, hidden.detach(), weight.detach() + 1, beta=0.5, weights=weights, chunk_rows=8
        ).backward()
