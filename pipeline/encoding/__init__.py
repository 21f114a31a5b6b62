"""What a row stores and how it becomes dense logits again; the only tail rule.

`kinds` says which arrays an encoding has, `encode` fills them, `decode` reads them, `packing` squeezes numbers into
bytes. `tail_predictor` says what the classes outside the head are; `tail_fit`, `tail_low_rank` and `tail_basis` fit
it, and stage two does not import them. May import torch, numpy and `stores`.
"""

from logitbank.pipeline.encoding.decode import TAIL_RULES, decode, decode_log_prob, finite, head_logits, prepare
from logitbank.pipeline.encoding.kinds import KINDS, Encoding

__all__ = ["KINDS", "TAIL_RULES", "Encoding", "decode", "decode_log_prob", "finite", "head_logits", "prepare"]
