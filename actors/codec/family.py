"""Which module a family is."""

from collections.abc import Mapping

from actors.codec.base import FamilyCodec
from actors.codec.families import additive, gptq, passthrough, pq, rabitq, rotated, rpq, scalar, vq
from schemas.codec import Family

FAMILIES: Mapping[Family, FamilyCodec] = {
    "pq": pq,
    "rpq": rpq,
    "vq": vq,
    "scalar": scalar,
    "rotated": rotated,
    "rabitq": rabitq,
    "additive": additive,
    "gptq": gptq,
    "bf16": passthrough,
    "f32": passthrough,
}
