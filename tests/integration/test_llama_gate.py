"""Prompts routed by a gate on a real llama-server: a request's scales are those that the model speaks with, and change
nothing for the others."""

import urllib.error
from collections.abc import Iterator

import pytest

from tests.integration.llama_house import Llamas, llama_house, router_arguments
from tests.unit.gate_setting import examples

pytestmark = pytest.mark.slow

WORDS = {"style": ["river", "autumn", "morning", "letter"], "law": ["court", "clause", "statute", "appeal"]}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llamas]:
    folder = tmp_path_factory.mktemp("gate")
    with llama_house(folder, router_arguments(folder), agent__enabled=False) as made:
        made.profile("p", "tiny", adapters=[{"name": "law", "scale": 0.5}, {"name": "style", "scale": 0.25}])
        made.activate("p")
        yield made


def greedy(llamas: Llamas, **more: object) -> str:
    """Asked of the server itself, so that chance has no part in it."""
    body = {"model": "tiny", "prompt": "Once upon", "n_predict": 12, "temperature": 0, "seed": 1, **more}
    return str(llamas.ask("/completion?autoload=false", body)["content"])


def test_a_request_s_scales_are_what_the_model_speaks_with(llamas: Llamas) -> None:
    ids = {
        lora["path"].rpartition("/")[2]: lora["id"] for lora in llamas.ask("/lora-adapters?model=tiny&autoload=false")
    }
    style, law = ids["style.gguf"], ids["law.gguf"]

    def with_scales(**scales: float) -> str:
        lora = [{"id": style, "scale": scales["style"]}, {"id": law, "scale": scales["law"]}]
        return greedy(llamas, lora=lora, cache_prompt=False)

    texts = [with_scales(style=2.0, law=0.0), with_scales(style=0.0, law=2.0), with_scales(style=0.0, law=0.0)]
    assert len(set(texts)) == 3
    assert [with_scales(style=2.0, law=0.0), with_scales(style=0.0, law=2.0)] == texts[:2]  # whatever came between
    assert greedy(llamas, lora=[{"id": style, "scale": 2.0}], cache_prompt=False) == texts[0]


def test_a_gate_routes_and_leaves_the_set_scales(llamas: Llamas) -> None:
    pairs = [{"prompt": one.prompt, "adapter": one.adapter} for one in examples(40, WORDS)]
    *_, trained = llamas.call("POST", "/gate/p/train", {"examples": pairs})
    assert trained["gate"]["mode"] == "trained"
    for prompt, best in (("the court, an appeal, a clause", "law"), ("autumn morning by the river", "style")):
        for routing in ("top1", "floor"):
            said = llamas.call(
                "POST", "/vectors/profile/p/generate", {"prompt": prompt, "routing": routing, "max_tokens": 8}
            )
            scales = {one["adapter"]: one["weight"] for one in said["weights"]}
            assert max(scales, key=lambda name: {one["adapter"]: one["weight"] for one in said["gate"]}[name]) == best
            assert said["text"]
            if routing == "top1":
                assert scales == {"law": 0.5 if best == "law" else 0.0, "style": 0.25 if best == "style" else 0.0}
    assert llamas.scales() == {"style": 0.25, "law": 0.5}


def test_a_server_refuses_what_is_no_list_of_scales(llamas: Llamas) -> None:
    with pytest.raises(urllib.error.HTTPError):
        greedy(llamas, lora=1)
