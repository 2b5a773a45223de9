"""Whether what was measured passes a gate: what it found, in words and numbers; nothing when it passes.

A certificate looks at lower bounds, and demands positions enough for its claim. A control, which must fail, has to fail
by its upper bounds: that it might be bad isn't enough."""

from actors.codec.base import CodecError
from actors.codec.certify.compare import enough
from schemas.certificate import (
    Agreement,
    CausalLmFunction,
    CausalLmGate,
    ColumnFunction,
    ColumnGate,
    EncoderFunction,
    EncoderGate,
    Estimate,
    Function,
    Gate,
)


def failures(gate: Gate, function: Function) -> list[str]:
    match gate, function:
        case CausalLmGate(), CausalLmFunction():
            return _causal_lm(gate, function.agreement)
        case EncoderGate(), EncoderFunction():
            return [
                *_below("cosine", function.cosine, gate.cosine),
                *_below("10 nearest neighbours", function.neighbours, gate.neighbours),
            ]
        case ColumnGate(), ColumnFunction():
            return _below(f"recall@{gate.k}", function.recall, gate.recall)
    raise CodecError(f"a gate for {type(gate).__name__} can't judge {type(function).__name__}")


def _causal_lm(gate: CausalLmGate, agreement: Agreement) -> list[str]:
    found = []
    for name, share, level in (("top-1", agreement.top1, gate.top1), ("top-5", agreement.top5, gate.top5)):
        found += _below(name, share, level)
        if level > 0 and share.count < enough(level):
            found.append(
                f"{name} ≥ {level} takes {enough(level):,} positions, there are {share.count:,}: give more text"
            )
    if gate.mean_kl is not None and agreement.mean_kl > gate.mean_kl:
        found.append(f"mean KL {agreement.mean_kl:.4g} nats > {gate.mean_kl}")
    return found


def _below(name: str, share: Estimate, level: float) -> list[str]:
    if share.lower >= level:
        return []
    return [f"{name} {share.mean:.4f}, at least {share.lower:.4f} < {level}"]


def surely_below(gate: Gate, shares: dict[str, Estimate]) -> tuple[bool, str]:
    """Of a control: whether one of the shares is below its level by its upper bound, and the figure that says so, or
    that doesn't. `shares` by the gate's field names."""
    told = {name: (share, float(getattr(gate, name))) for name, share in shares.items()}
    for name, (share, level) in told.items():
        if share.high < level:
            return True, f"{name} {share.mean:.3f}, at most {share.high:.3f} < {level}"
    return False, ", ".join(
        f"{name} {share.mean:.3f} to {share.high:.3f} ≥ {level}" for name, (share, level) in told.items()
    )
