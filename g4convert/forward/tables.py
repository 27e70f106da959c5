"""Embedding tables that stay packed: a lookup decodes only the looked-up rows.

    weight_packed    int32 [v, k * b / 32]
    weight_scale     [v, groups], in the dtype it is stored in

As vLLM's `CompressedTensorsEmbeddingWNA16Int` does, but in the dtype of the model: `scale * code`, times the scale of
the embedding. Letters: v rows of the table, k width of a row, b num_bits.
"""

import torch

from g4convert.forward.modules import PackedWeight


class PackedTable(torch.nn.Module):
    """An embedding on packed words; takes the place of a `Gemma4TextScaledWordEmbedding`.

    Args:
        table: the embedding to replace, on any device; its weight is not kept.
        num_bits: 2 to 8.
        groups: scales of a row.
        scale_dtype: as stored.
    """

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor
    embed_scale: torch.Tensor

    def __init__(self, table: torch.nn.Embedding, *, num_bits: int, groups: int, scale_dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.num_bits = table.num_embeddings, table.embedding_dim, num_bits
        self.padding_idx, self.dtype = table.padding_idx, table.weight.dtype
        words, device = -(-self.embedding_dim * num_bits // 32), table.weight.device
        rows = self.num_embeddings
        self.register_buffer("weight_packed", torch.empty(rows, words, dtype=torch.int32, device=device))
        self.register_buffer("weight_scale", torch.empty(rows, groups, dtype=scale_dtype, device=device))
        self.register_buffer("embed_scale", table.get_buffer("embed_scale"), persistent=False)

    @property
    def weight(self) -> "_EmbeddingRows":
        """Decoded rows by index: transformers reads the padding token's row."""
        return _EmbeddingRows(self)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Decode rows, [...] -> [..., k], in the dtype of the model."""
        flat = ids.reshape(-1)
        weight = PackedWeight(
            self.weight_packed[flat], self.weight_scale[flat], None, self.embedding_dim, self.num_bits
        )
        return weight.dense(self.dtype).view(*ids.shape, self.embedding_dim)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look up ids [...] and return rows [..., k], in the dtype of the model."""
        return self.rows(input_ids) * self.embed_scale.to(self.dtype)

    def extra_repr(self) -> str:
        """Return the text that `print(model)` shows."""
        groups = self.weight_scale.shape[1]
        return f"{self.num_embeddings}, {self.embedding_dim}, num_bits={self.num_bits}, groups={groups}"


class _EmbeddingRows:
    """View of a packed table's weight that is indexed by row: `weight[7, :]`."""

    def __init__(self, table: PackedTable) -> None:
        self._table = table
        self.dtype, self.device = table.dtype, table.weight_packed.device

    def __getitem__(self, place: tuple[int, slice]) -> torch.Tensor:
        row, columns = place
        return self._table.rows(torch.tensor([row], device=self.device))[0, columns]
