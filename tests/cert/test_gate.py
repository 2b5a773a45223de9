"""Merges of adapters that PEFT made, against transformers and PEFT on tiny causal models: logits of a merged adapter
and of a merged base, cuts, refusals; losses without merging; weights found by loss."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.errors import Unfit
from actors.gate import core_mlp
from actors.gate.adapters import open_adapters
from actors.gate.base_merge import write_base
from actors.gate.core_lora import Unmergeable
from actors.gate.exporting import ExportOrder, export_job
from actors.gate.losses import MixedModel, read_text
from actors.gate.merging import Merge, Weighted, write_adapter
from actors.gate.phase import Phase
from actors.tensors.shard_writer import write_arrays
from benchmarks.small_adapters import TARGETS, load, peft_mix, save_random, tiny_llama, train_adapter
from schemas.events.gate import ExportGate
from schemas.gate import AdapterWeight, ExportManifest, MixSource
from tests.unit.gate_adapters import read_all

pytestmark = [  # PEFT asks transformers by an old name, and says what it does of itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]

LLAMA = ["q_proj", "v_proj", "down_proj"]
WEIGHTS = {"one": 0.7, "two": 0.25, "three": 1.3}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def adapters(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of different ranks, modules and scalings."""
    folder = tmp_path_factory.mktemp("adapters")
    configs: dict[str, dict[str, Any]] = {
        "one": {"r": 4, "lora_alpha": 8, "target_modules": LLAMA},
        "two": {"r": 6, "lora_alpha": 3, "target_modules": ["q_proj", "up_proj"], "use_rslora": True},
        "three": {
            "r": 2, "lora_alpha": 16, "target_modules": LLAMA,
            "rank_pattern": {"layers.1.self_attn.q_proj": 5}, "alpha_pattern": {"down_proj": 1},
        },
    }  # fmt: skip
    return {
        name: save_random(llama, folder / name, seed, **config) for seed, (name, config) in enumerate(configs.items())
    }


def logits(model: Any, seed: int = 0) -> np.ndarray:
    import torch

    ids = torch.from_numpy(np.random.default_rng(seed).integers(1, 120, size=(3, 24)))
    with torch.inference_mode():
        return np.asarray(model(input_ids=ids).logits.float().numpy())


def merge(adapters: dict[str, Path], weights: dict[str, float], rank: int | None = None) -> Merge:
    return Merge([Weighted(each, weights[each.name]) for each in open_adapters(adapters)], rank)


def ordered(
    asked: ExportGate, source: MixSource, folders: dict[str, Path], weights: list[float], base: Path, text: Path
) -> ExportOrder:
    return ExportOrder(
        asked=asked,
        folders=folders,
        mix=[AdapterWeight(name, weight) for name, weight in zip(folders, weights, strict=True)],
        source=source,
        scales=[1.0] * len(folders),
        run=None,
        model="small",
        base=base,
        base_sha256=None,
        text=text,
        created=1.0,
    )


def with_adapter(base: Path, folder: Path) -> Any:
    import peft

    return peft.PeftModel.from_pretrained(load(base), str(folder)).eval()


def summed(base: Path, adapters: dict[str, Path], weights: dict[str, float]) -> Any:
    """The base with Σ wᵢ ΔWᵢ, each ΔW as PEFT itself makes it."""
    import peft
    import torch

    model = load(base)
    deltas: dict[str, Any] = {}
    for name, folder in adapters.items():
        wrapped = peft.PeftModel.from_pretrained(load(base), str(folder))
        for module_name, module in wrapped.base_model.model.named_modules():
            if hasattr(module, "get_delta_weight") and "default" in module.lora_A:
                delta = weights[name] * module.get_delta_weight("default").double()
                deltas[module_name] = deltas.get(module_name, 0) + delta
    with torch.no_grad():
        for module_name, delta in deltas.items():
            weight = model.get_submodule(module_name).weight
            weight.copy_((weight.double() + delta).float())
    return model


def test_a_merged_adapter_has_the_logits_of_the_weighted_sum(
    llama: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    write_adapter(merge(adapters, WEIGHTS), tmp_path / "mix")
    found, expected = logits(with_adapter(llama, tmp_path / "mix")), logits(summed(llama, adapters, WEIGHTS))
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(expected - logits(load(llama))).max() > 0.05  # the adapters do something
    assert np.abs(found - logits(peft_mix(llama, adapters, list(WEIGHTS.values())))).max() < 1e-5


def test_peft_loads_it_without_a_word(llama: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    """No key is missing and none is left over."""
    import peft

    write_adapter(merge(adapters, WEIGHTS), tmp_path / "mix")
    config = peft.LoraConfig.from_pretrained(str(tmp_path / "mix"))
    assert (config.r, config.lora_alpha, config.use_rslora) == (15, 15, False)
    wrapped = peft.get_peft_model(load(llama), config)
    told = peft.set_peft_model_state_dict(wrapped, peft.load_peft_weights(str(tmp_path / "mix")))
    assert [key for key in told.missing_keys if "lora_" in key] == []
    assert told.unexpected_keys == []


def test_a_merged_base_has_them_too(llama: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    assert (llama / "model.safetensors.index.json").is_file()  # of several shards
    list(write_base(merge(adapters, WEIGHTS), llama, tmp_path / "merged"))
    found, expected = logits(load(tmp_path / "merged")), logits(summed(llama, adapters, WEIGHTS))
    assert np.abs(found - expected).max() < 1e-5


def test_layers_that_store_their_weights_the_other_way_round(lm: Path, tmp_path: Path) -> None:
    """GPT-2's Conv1D."""
    two = {
        name: save_random(lm, tmp_path / name, seed, r=4 + seed, lora_alpha=8, target_modules=TARGETS)
        for seed, name in enumerate(("one", "two"))
    }
    weights = {"one": 0.7, "two": 0.4}
    expected = logits(summed(lm, two, weights))
    write_adapter(merge(two, weights), tmp_path / "mix")
    assert np.abs(logits(with_adapter(lm, tmp_path / "mix")) - expected).max() < 1e-5
    list(write_base(merge(two, weights), lm, tmp_path / "merged"))
    assert np.abs(logits(load(tmp_path / "merged")) - expected).max() < 1e-5


def test_a_cut_loses_what_it_says(llama: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    report = write_adapter(merge(adapters, WEIGHTS, 6), tmp_path / "cut")
    whole = summed(llama, adapters, WEIGHTS)
    cut = with_adapter(llama, tmp_path / "cut").merge_and_unload()
    base = load(llama)
    for each in report.errors:
        a, b, start = (model.get_submodule(each.module).weight.detach().double() for model in (whole, cut, base))
        measured = float((a - b).norm() / (a - start).norm())
        assert measured == pytest.approx(each.error, abs=2e-5), each.module
    assert 0.05 < report.error < 1


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embedding"),
    ],
)
def test_what_peft_makes_and_is_no_sum_is_refused(llama: Path, tmp_path: Path, config: Any, says: str) -> None:
    folder = save_random(llama, tmp_path / "odd", 0, **{"r": 4, "target_modules": LLAMA, **config})
    with pytest.raises(Unmergeable, match=says):
        merge({"odd": folder}, {"odd": 1.0})


def test_adapters_of_another_base_are_refused(lm: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    other = save_random(lm, tmp_path / "other", 0, r=4, target_modules=TARGETS)
    with pytest.raises(Unmergeable, match="different base"):
        open_adapters({**adapters, "other": other})
    with pytest.raises(Unmergeable, match="of another base"):
        list(write_base(merge(adapters, WEIGHTS), lm, tmp_path / "merged"))


def test_losses_without_merging_are_those_of_the_merged_model(lm: Path, tmp_path: Path) -> None:
    two = {
        name: save_random(lm, tmp_path / name, seed, r=4, lora_alpha=8, target_modules=TARGETS, use_rslora=bool(seed))
        for seed, name in enumerate(("one", "two"))
    }
    weights = {"one": 0.7, "two": 0.4}
    list(write_base(merge(two, weights), lm, tmp_path / "merged"))
    text = lm / "held-out.txt"
    with MixedModel(lm, open_adapters(two)).hooked() as model:
        prompts = read_text(text, model.tokenizer, 60, 40).test
        mixed, nothing = (model.loss(np.array(w), prompts) for w in ([0.7, 0.4], [0.0, 0.0]))
    merged = MixedModel(tmp_path / "merged", [])
    assert mixed == pytest.approx(merged.loss(np.empty(0), prompts), abs=1e-5)
    assert nothing == pytest.approx(MixedModel(lm, []).loss(np.empty(0), prompts), abs=1e-6)


def test_the_loss_of_a_cut_is_that_of_the_cut_model(lm: Path, tmp_path: Path) -> None:
    """What the manifest tells is of what was written."""
    two = {
        name: save_random(lm, tmp_path / name, seed, r=4, lora_alpha=32, target_modules=TARGETS)
        for seed, name in enumerate(("one", "two"))
    }
    asked = ExportGate("p", "base", prompts=40, tokens=32, rank=1, max_error=1.0)
    order = ordered(asked, "explicit", two, [0.7, 0.4], lm, lm / "held-out.txt")
    (tmp_path / "out").mkdir()
    (told,) = [each for each in export_job(order, tmp_path / "out") if isinstance(each, ExportManifest)]
    assert told.evaluation is not None
    assert told.merge.error > 0.3
    with MixedModel(lm, open_adapters(two)).hooked() as model:
        prompts = read_text(lm / "held-out.txt", model.tokenizer, 40, 32).test
        exact = model.loss(np.array([0.7, 0.4]), prompts)
        cut = model.merged_loss(merge(two, {"one": 0.7, "two": 0.4}, 1), prompts)
        assert model.loss(np.array([0.7, 0.4]), prompts) == exact  # the adapters are in their places again
    written = MixedModel(tmp_path / "out", []).loss(np.empty(0), prompts)
    assert told.evaluation.losses[-1].loss == pytest.approx(written, abs=1e-5)
    assert cut == pytest.approx(written, abs=1e-5)
    assert abs(written - exact) > 1e-3


def test_a_loss_that_isn_t_finite_is_refused(lm: Path, tmp_path: Path) -> None:
    """A manifest couldn't hold it."""
    two = {name: save_random(lm, tmp_path / name, seed, r=4, target_modules=TARGETS) for seed, name in enumerate("ab")}
    base = tmp_path / "base"
    shutil.copytree(lm, base)
    weights = read_all(base)
    (norm,) = [name for name in weights if name.endswith("ln_f.weight")]
    write_arrays(base / "model.safetensors", {**weights, norm: np.full_like(weights[norm], np.nan)}, {"format": "pt"})
    order = ordered(
        ExportGate("p", "peft", prompts=16, tokens=8), "uniform", two, [0.5, 0.5], base, lm / "held-out.txt"
    )
    with pytest.raises(Unfit, match=r"the loss of base on held-out\.txt isn't finite: the weights of base"):
        list(export_job(order, tmp_path / "out"))


@pytest.mark.slow
def test_weights_found_by_loss_are_no_worse_than_what_they_began_with(lm: Path, tmp_path: Path) -> None:
    """One adapter learnt the text's kind, the other noise: the weight goes to the first."""
    text = lm / "held-out.txt"
    texts = text.read_text(encoding="utf-8").split("\n\n")
    good = train_adapter(lm, tmp_path / "good", texts[:60], steps=40)
    noise = save_random(lm, tmp_path / "noise", 1, r=8, lora_alpha=64, target_modules=TARGETS)
    rest = tmp_path / "rest.txt"
    rest.write_text("\n\n".join(texts[60:140]), encoding="utf-8")
    asked = ExportGate("p", "peft", weights="static_loss", prompts=80, tokens=48)
    order = ordered(asked, "static_loss", {"good": good, "noise": noise}, [0.5, 0.5], lm, rest)
    out = tmp_path / "out"
    out.mkdir()
    said = list(export_job(order, out))
    (told,) = [each for each in said if isinstance(each, ExportManifest)]
    phases = [each for each in said if isinstance(each, Phase)]
    tried = [each.done for each in phases if each.phase == "search"]
    assert tried == list(range(1, len(tried) + 1))
    assert [(each.done, each.total) for each in phases if each.phase == "loss"][1:] == [(n, 5) for n in range(1, 6)]
    assert told.evaluation is not None
    losses = {each.of: each.loss for each in told.evaluation.losses}
    assert losses["static_loss"] <= min(losses["uniform"], losses["adapter noise"])
    assert told.weights[0].weight > 0.85
    assert sum(one.weight for one in told.weights) == pytest.approx(1)
    assert json.loads((out / "export_manifest.json").read_text())["evaluation"]["fitted_on"] == 40


def test_the_gate_s_network_is_torch_s() -> None:
    """Loss and steps with torch's own gelu, cross-entropy, gradients and AdamW."""
    import torch

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 12)) / np.sqrt(12), rng.integers(0, 3, 16)
    net = core_mlp.initial(12, 3, 64, rng)
    first = second = core_mlp.Mlp(*(np.zeros_like(part) for part in net))
    theirs = {name: torch.tensor(part, requires_grad=True) for name, part in zip(net._fields, net, strict=True)}
    groups = [
        {"params": [p for name, p in theirs.items() if name.startswith("w")], "weight_decay": 0.01},
        {"params": [p for name, p in theirs.items() if name.startswith("b")], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=3e-4)
    for step in range(1, 21):
        loss, gradient = core_mlp.loss_and_gradient(net, x, y, 0.01)
        net, first, second = core_mlp._adamw(net, gradient, first, second, step, core_mlp.Recipe())
        hidden = torch.tensor(x * np.sqrt(12)) @ theirs["w1"] + theirs["b1"]
        z = torch.nn.functional.gelu(hidden, approximate="tanh") @ theirs["w2"] + theirs["b2"]
        entropy = torch.distributions.Categorical(logits=z).entropy().mean()
        expected = torch.nn.functional.cross_entropy(z, torch.tensor(y)) - 0.01 * entropy
        assert loss == pytest.approx(expected.item(), abs=1e-12)
        optimiser.zero_grad()
        expected.backward()
        optimiser.step()
    for name, part in zip(net._fields, net, strict=True):
        np.testing.assert_allclose(part, theirs[name].detach().numpy(), atol=1e-10)
