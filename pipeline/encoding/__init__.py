"""What a row stores and how it becomes dense logits again; the only tail rule.

    settings                      what a kind is given: its numbers, rows to encode, how a tail is filled in
    groups                        searches among very many classes, and rows that stay in a cache
    kind                          what a kind answers: row arrays, encode, tail_shift, decode, bytes
    dense, topk, topk_tail        the kinds, one a file; `head` is of the last two, `packing` squeezes numbers
    kinds                         the table, and `Encoding`: a kind by its name, with its numbers
    encode, decode                the two ways, for any kind
    sparse                        rows without a block of all classes, what losses can work from
    tail_predictor, tail_basis, tail_mass   what the classes outside the head are, their code, their mass
    fitting/                      fits predictor and basis; stage two imports neither it nor `encode`

Each may import what stands before it. May import torch, numpy and `stores`.
"""

from logitbank.pipeline.encoding.decode import decode, decode_log_prob, finite, sparse, with_tail_shift
from logitbank.pipeline.encoding.kinds import KINDS, Encoding, ladder
from logitbank.pipeline.encoding.settings import TAIL_RULES

__all__ = [
    "KINDS",
    "TAIL_RULES",
    "Encoding",
    "decode",
    "decode_log_prob",
    "finite",
    "ladder",
    "sparse",
    "with_tail_shift",
]
