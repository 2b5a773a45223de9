"""What the storage desk decides, and what of a store's options may be kept and shown."""

from pathlib import Path
from typing import Any

import pytest

from actors.ports import Lying, Place, Waiting
from actors.storage import core
from daemon.storage import store_options
from daemon.storage.store_options import StoreOptions
from schemas.documents.move import MoveDocument
from schemas.events.storage import Clash, Home


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("file:///a/b", "file:///a/b/", True),
        ("file:///a/b", "file:///a", True),
        ("file:///a", "file:///a/b", True),
        ("file:///a/b", "file:///a/bc", False),
        ("file:///a%20b/c", "file:///a b", True),
        ("s3://x/p", "s3://x/p/q", True),
        ("s3://x", "s3://x/p", True),
        ("s3://key@x/p", "s3://x/p", True),
        ("s3://x/p", "s3://y/p", False),
        ("s3://x/p", "file:///x/p", False),
    ],
)
def test_one_bucket_does_not_lie_in_another(one: str, other: str, same: bool) -> None:
    assert core.overlap(one, other) is core.overlap(other, one) is same


@pytest.mark.parametrize("url", ["", "a", "ftp://h/x", "file://host/x", "file:relative", "s3:///prefix", "memory://"])
def test_what_is_no_place_is_refused(url: str) -> None:
    refusal = core.refuse_url("b", url, {})
    assert refusal is not None
    assert refusal.status == "invalid"


def test_a_refused_url_does_not_tell_its_credentials() -> None:
    refusal = core.refuse_url("b", "ftp://user:pass@h/x", {"o": Place("s3://x", {}, "configured")})
    assert refusal is not None
    assert "pass" not in repr(refusal)


def test_what_can_be_taken_away() -> None:
    def status(name: str, origin: str, homes: list[Home], waiting: int) -> str | None:
        refusal = core.refuse_removal(name, origin, homes, waiting)
        return refusal.status if refusal else None

    assert status("primary", "configured", [], 0) == status("rescue", "configured", [], 0) == "forbidden"
    assert status("named", "configured", [], 0) == "forbidden"
    assert status("far", "provisioned", [Home("index", "docs")], 0) == "conflict"
    assert status("far", "provisioned", [], 3) == "conflict"
    assert status("far", "provisioned", [], 0) is None
    refusal = core.refuse_removal("far", "provisioned", [Home("index", "docs"), Home("dataset", "d")], 0)
    assert refusal is not None
    assert "index docs, dataset d" in refusal.reason


def test_what_has_its_home_where() -> None:
    fields = [("dataset", "a", "far"), ("index", "b", "primary"), ("profile", "c", None)]
    heads = [("index", "b", "primary"), ("promotion", "d", "far"), ("agent", "agent", "primary")]
    moves = [MoveDocument(what="index", name="e", source="primary", bucket="far", begun=1.0, since=1.0)]
    assert core.home_to("far", fields, heads, moves) == [
        Home("dataset", "a"),
        Home("index", "e"),
        Home("promotion", "d"),
    ]
    assert core.home_to("primary", fields, heads, []) == [Home("index", "b"), Home("profile", "c")]
    assert core.home_to("other", fields, heads, moves) == []


def test_clashes_are_of_what_has_a_home_of_its_own() -> None:
    lying = [Lying("dataset", "d", "primary", ["far"]), Lying("agent", "agent", "primary", ["far"])]
    assert core.clashes(lying) == [Clash("dataset", "d", "primary", ["far"])]


def test_where_something_can_be_moved() -> None:
    def status(bucket: str, degraded: list[str]) -> str | None:
        refusal = core.refuse_target(bucket, ["far", "primary", "rescue"], degraded)
        return refusal.status if refusal else None

    assert [status(b, ["far"]) for b in ("nowhere", "rescue", "far", "primary")] == [
        "not_found", "invalid", "unavailable", None,
    ]  # fmt: skip
    under_way = MoveDocument(what="index", name="i", source="primary", bucket="far", begun=1.0, since=1.0)
    assert core.refuse_move("index", "i", "far", under_way) is None
    assert core.refuse_move("index", "i", "other", under_way) is not None
    assert core.together(Waiting("b", 1, 10, "why"), Waiting("b", 2, 5, "")) == Waiting("b", 3, 15, "why")


# --- options -------------------------------------------------------------------------------------

S3 = "s3://bucket/p"


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        (S3, {"secret_access_key": "s3cr3t"}, "credentials are not kept"),
        (S3, {"aws_access_key_id": "s3cr3t"}, "credentials are not kept"),
        (S3, {"token": "s3cr3t"}, "credentials are not kept"),
        (S3, {"colour": "s3cr3t"}, "is not a known option; known are endpoint"),
        (S3, {"access_key_id_env": "s3cr3t with spaces"}, "the name of an environment variable"),
        (S3, {"credentials_file": "relative"}, "a path from / on"),
        (S3, {"path_style": "maybe"}, "true or false"),
        (S3, {"endpoint": "http://u:s3cr3t@h"}, "must not carry credentials"),
        (S3, {"endpoint": "localhost:9000"}, "http://host or https://host"),
        (S3, {"endpoint": "http://169.254.169.254/x"}, "link-local or metadata"),
        (S3, {"endpoint": "http://[fe80::1]"}, "link-local or metadata"),
        (S3, {"endpoint": "http://[::ffff:169.254.169.254]"}, "link-local or metadata"),
        (S3, {"endpoint": "http://metadata.google.internal"}, "link-local or metadata"),
        ("s3://k:s3cr3t@bucket", {}, "must not carry credentials"),
        ("s3://bucket/p?key=s3cr3t", {}, "must end with its path"),
        ("file:///a", {"region": "eu"}, "takes no options"),
    ],
)
def test_options_that_are_not_kept(url: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        store_options.checked(url, options)
    assert "s3cr3t" not in str(refused.value)


def test_credentials_come_from_where_they_are_named(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("[lake]\naws_access_key_id = filed\naws_secret_access_key = s3cr3t%x\n")
    options = {"endpoint": "http://127.0.0.1:9", "region": "eu", "path_style": "false"}
    store_options.checked(S3, options)
    by_file = store_options.resolved("b", options | {"credentials_file": str(file), "credentials_profile": "lake"}, {})
    assert by_file == {
        "endpoint": "http://127.0.0.1:9", "region": "eu", "virtual_hosted_style_request": "true",
        "access_key_id": "filed", "secret_access_key": "s3cr3t%x",
    }  # fmt: skip
    named = {"access_key_id_env": "K", "secret_access_key_env": "S"}
    assert store_options.resolved("b", named, {"K": "key", "S": "s3cr3t"})["secret_access_key"] == "s3cr3t"
    assert "s3cr3t" not in f"{by_file} {by_file!r}"
    assert store_options.shown(options | named | {"secret_access_key": "s3cr3t"}) == options | named


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"access_key_id_env": "NOT_SET"}, "variable NOT_SET"),
        ({"credentials_file": "/nowhere/at/all"}, "/nowhere/at/all can't be read"),
        ({"credentials_file": "BAD"}, "is no AWS credentials file"),
        ({"credentials_file": "GOOD", "credentials_profile": "other"}, r"no section \[other\]"),
    ],
)
def test_a_credential_that_is_not_there_is_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    (tmp_path / "BAD").write_text("s3cr3t")
    (tmp_path / "GOOD").write_text("[default]\naws_access_key_id = s3cr3t\n")
    file = options.get("credentials_file", "")
    given = options | ({"credentials_file": str(tmp_path / file)} if file in ("BAD", "GOOD") else {})
    with pytest.raises(ValueError, match=words) as failed:
        store_options.resolved("b", given, {})
    assert "s3cr3t" not in str(failed.value)


def test_what_a_store_takes_is_not_printed() -> None:
    options = StoreOptions({"secret_access_key": "s3cr3t", "region": "eu"})
    assert f"{options}" == f"{options!r}" == "StoreOptions(region, secret_access_key)"
