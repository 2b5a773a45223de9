"""Certificates of a MiniLM encoder: what is near what stays so, or it doesn't pass."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from actors.codec.artifact import open_column
from actors.codec.base import CodecError
from benchmarks.codec_artifact import artifact
from schemas.certificate import EncoderFunction
from tests.cert.test_models import F32, INT8, PQ, ROTATED4, certified


@pytest.mark.slow
def test_an_encoder_is_certified_by_what_is_near_what(encoder: Path, sentences: Path, tmp_path: Path) -> None:
    found: dict[str, EncoderFunction] = {}
    passed: dict[str, list[str]] = {}
    for name, params in (("int8", INT8), ("rotated4", ROTATED4), ("pq", replace(PQ, centroids=128))):
        with certified(encoder, params, sentences, tmp_path / name, prompts=150) as (said, _):
            assert isinstance(said.function, EncoderFunction)
            found[name], passed[name] = said.function, said.failures
    assert passed["int8"] == []
    assert found["int8"].cosine.lower > 0.999 > 0.9 > found["pq"].cosine.high
    assert found["int8"].neighbours.mean > found["rotated4"].neighbours.mean > found["pq"].neighbours.mean
    assert len(passed["pq"]) == 2
    assert found["int8"].noise_floor_cosine > 0.999
    assert found["rotated4"].worst_cosine < found["rotated4"].cosine.mean


def test_a_column_s_artifact_isn_t_a_model_s(encoder: Path) -> None:
    with artifact(encoder, F32) as (folder, _), pytest.raises(CodecError, match="not of a column"):
        open_column(folder)
