"""What a llama.cpp server says about its models, read into values."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.models.llamacpp_adapters import Lora, is_local, wanted_scales
from daemon.models.llamacpp_listing import Listing, Model, Props, find_model, is_single, plain, read_models, shards
from schemas.names import ModelName
from schemas.profile import Adapter


def routed(id: str, *args: str, status: str = "unloaded", **more: object) -> dict[str, object]:
    return {"id": id, "status": {"value": status, "args": ["llama-server", *args]}, **more}


def models(*entries: dict[str, object], props: Props | None = None) -> list[Model]:
    return read_models(msgspec.convert({"data": entries}, Listing), props)


@pytest.mark.parametrize(
    ("id", "name"),
    [
        ("tiny", "tiny"),
        ("tiny.gguf", "tiny"),
        ("/models/Qwen3-8B-Q4_K_M.gguf", "Qwen3-8B-Q4_K_M"),
        ("/models/Kimi-K2-00001-of-00006.gguf", "Kimi-K2"),
        ("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"),
        ("my model (new).gguf", "my_model__new_"),
        ("_draft", "draft"),
        (".gguf", "model"),
    ],
)
def test_a_models_name_is_its_id_or_that_of_its_file(id: str, name: str) -> None:
    assert plain(id) == name


@given(st.text(max_size=80))
def test_a_name_is_one_that_a_profile_may_hold_and_stays_as_it_is(text: str) -> None:
    name = plain(text)
    assert msgspec.convert(name, ModelName) == name
    assert plain(name) == name


@given(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,60}\Z").filter(lambda name: ".gguf" not in name.lower()))
def test_a_name_that_fits_and_is_no_file_is_untouched(name: str) -> None:
    assert plain(name) == name


def test_a_routers_entry_is_read_from_the_arguments_of_its_process() -> None:
    args = (
        "--lora",
        "/l/a.gguf,/l/b.gguf",
        "--port",
        "4711",
        "--lora-scaled",
        "/l/c:d.gguf:0.5",
        "--model",
        "/m/t.gguf",
    )
    (model,) = models(routed("tiny", *args, status="loaded", aliases=["mini"], meta={"size": 5, "n_ctx": 6}))
    assert model == Model(
        id="tiny",
        name="tiny",
        aliases=("mini",),
        router=True,
        status="loaded",
        size=5,
        context_length=6,
        port=4711,
        file="/m/t.gguf",
        adapters=("/l/a.gguf", "/l/b.gguf", "/l/c:d.gguf"),
    )


def test_an_entry_without_arguments_or_meta_is_read_too() -> None:
    (model,) = models({"id": "hf/x:Q4", "status": {"value": "downloading"}})
    assert (model.file, model.port, model.size, model.running) == ("", 0, None, False)


def test_a_failed_process_shows_its_exit_code() -> None:
    (model,) = models({"id": "x", "status": {"value": "unloaded", "failed": True, "exit_code": 134}})
    assert (model.failed, model.exit_code) == (True, 134)


def test_a_server_without_statuses_is_in_single_mode() -> None:
    listing = msgspec.convert({"data": [{"id": "/m/tiny.gguf", "meta": {"size": 5}}]}, Listing)
    assert is_single(listing)
    assert not is_single(Listing([]))  # a router without models
    (awake,) = read_models(listing, Props("/m/tiny.gguf"))
    (asleep,) = read_models(listing, Props("/m/tiny.gguf", True))
    assert (awake.name, awake.router, awake.status, asleep.status) == ("tiny", False, "loaded", "sleeping")


def test_an_id_goes_before_an_alias_and_an_alias_before_a_file() -> None:
    found = models(
        routed("fast", "--model", "/m/big.gguf"),
        routed("small", "--model", "/m/x.gguf", aliases=["big"]),
        routed("x", "--model", "/m/fast.gguf"),
    )
    for wanted, id in [("fast", "fast"), ("big", "small"), ("big.gguf", "fast"), ("x.gguf", "x"), ("/m/x.gguf", "x")]:
        model = find_model(found, wanted)
        assert (wanted, model.id if model else None) == (wanted, id)
    assert find_model(found, "nope") is None


def test_the_files_of_a_model_are_counted_by_its_first() -> None:
    assert shards("/m/tiny.gguf") == ["/m/tiny.gguf"]
    assert shards("/m/k2-00001-of-00003.gguf") == [f"/m/k2-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


def test_every_adapter_has_a_scale() -> None:
    have = [Lora(0, "/l/style.gguf", 1.0), Lora(1, "/l/law.gguf", 1.0)]
    assert wanted_scales(have, []) == {0: 0.0, 1: 0.0}
    assert wanted_scales(have, [Adapter("law", 0.5)]) == {0: 0.0, 1: 0.5}
    assert wanted_scales(have, [Adapter("/l/style.gguf"), Adapter("law.gguf", 2)]) == {0: 1.0, 1: 2.0}
    with pytest.raises(LookupError, match="no adapter poem; the server was started with style, law"):
        wanted_scales(have, [Adapter("poem")])


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost:8080/", True),
        ("http://[::1]:80", True),
        ("http://gpu.lan:8080", False),
        ("https://10.0.0.1", False),
    ],
)
def test_which_servers_are_on_this_machine(url: str, local: bool) -> None:
    assert is_local(url) is local
