"""[codec] of lakehouse.toml."""

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.certificate import CausalLmGate, ColumnGate, EncoderGate

Floor = Annotated[float, Meta(ge=0, le=1)]


class CodecConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    allowed_roots: list[str] = []
    """Folders with checkpoints, texts and activations that may be read by path, and decoded checkpoints written to."""
    top1: Floor = 0.99
    """A language model's certificate demands this agreement of the most likely token, by its lower bound. 0.99 is
    about what 8 bits reach; 4 bits reach 0.94 to 0.96."""
    top5: Floor = 0.999
    """The reference's most likely token is among the candidate's five."""
    cosine: Floor = 0.99
    """An encoder's certificate demands this mean cosine of embeddings, by its lower bound."""
    neighbours: Floor = 0.95
    """Share of the 10 nearest neighbours that stay so, by its lower bound."""
    recall: Floor = 0.95
    """A vector column's certificate demands this recall@10 of search over codes with exact rescoring, by its lower
    bound."""
    oversample: Annotated[int, Meta(ge=1, le=100)] = 10
    """Candidates per hit that a search over codes rescores exactly."""

    @property
    def causal_lm(self) -> CausalLmGate:
        return CausalLmGate(self.top1, self.top5)

    @property
    def encoder(self) -> EncoderGate:
        return EncoderGate(self.cosine, self.neighbours)

    @property
    def column(self) -> ColumnGate:
        return ColumnGate(self.recall, oversample=self.oversample)
