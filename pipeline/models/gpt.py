"""A small causal transformer for sequences of tokens.

Shapes: B batch, L positions, C tokens of the vocabulary, W width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

_HEAD_WIDTH = 64


class GPT(nn.Module):
    """GPT-2's arrangement of torch's own layers: learned positions, norms before the layers, the head tied to the
    embedding.

    Args:
        vocabulary: C.
        length: L, the longest sequence.
        width: W, in heads of about 64.
        depth: Layers.

    References:
        Radford et al. Language Models are Unsupervised Multitask Learners. 2019, section 2.3.
    """

    def __init__(self, *, vocabulary: int, length: int, width: int, depth: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(_layer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Token ids int64 [B, L'], L' up to L -> logits [B, L', C] of the token that follows each."""
        length = tokens_BL.shape[1]
        x = self.tokens(tokens_BL) + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=x.device, dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return F.linear(self.norm(x), self.tokens.weight)


def _layer(width: int) -> nn.TransformerEncoderLayer:
    """Of as many heads as come next to 64 features each and divide the width."""
    heads = max(1, round(width / _HEAD_WIDTH))
    while width % heads:
        heads -= 1
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
