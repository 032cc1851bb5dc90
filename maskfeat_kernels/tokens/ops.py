"""The compiled ops of the token moves: schema, fake kernel, batching rule and meaning of each."""

from functools import partial

import torch

from ..library import LIBRARY, Op, compiled, define, describe, fold, loop, op
from . import reference

for _schema in (
    "masked_gather(Tensor tokens, Tensor token_ids) -> Tensor",
    "masked_scatter_add(Tensor values, Tensor token_ids, SymInt length) -> Tensor",
    "mask_tokens(Tensor tokens, Tensor mask_token, Tensor mask) -> Tensor",
    "masked_sum(Tensor x, Tensor mask) -> Tensor",
):
    define(_schema)

masked_gather = compiled("masked_gather")
masked_scatter_add = compiled("masked_scatter_add")
mask_tokens = compiled("mask_tokens")
masked_sum = compiled("masked_sum")


def register_token_ops(masked_gather: Op, masked_scatter_add: Op, mask_tokens: Op, masked_sum: Op) -> None:
    """Give these ops their fake kernels, batching rules and meanings, the same for each backend."""
    for move, fake, rule, meaning in (
        (masked_gather, lambda x, ids: x.new_empty((*ids.shape, x.shape[2])), fold, reference.masked_gather),
        (
            *(masked_scatter_add, lambda x, ids, length: x.new_empty((x.shape[0], length, x.shape[2]))),
            *(fold, reference.masked_scatter_add),
        ),
        (mask_tokens, lambda tokens, mask_token, mask: tokens.new_empty(tokens.shape), loop, reference.mask_tokens),
        (masked_sum, lambda x, mask: x.new_empty(x.shape[2]), loop, reference.masked_sum),
    ):
        torch.library.register_vmap(move, partial(rule, move), lib=LIBRARY)
        describe(move, fake, meaning)


register_token_ops(*map(op, ("masked_gather", "masked_scatter_add", "mask_tokens", "masked_sum")))
