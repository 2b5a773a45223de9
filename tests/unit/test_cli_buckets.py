"""The commands about buckets, and the moves, against a daemon that speaks the real routes."""

import msgspec

from schemas.events.storage import (
    BucketInfo,
    BucketList,
    BucketRemoved,
    Clash,
    DatasetMoved,
    Home,
    IndexMoved,
)
from schemas.http import ErrorBody
from tests.unit.cli_daemon import CliDaemon, Run

FAR = BucketInfo(
    "far", "s3://bucket/lake", "provisioned", {"region": "eu"}, "degraded", "bucket far can't be reached",
    12, 34_000, 2, [Home("index", "docs")],
)  # fmt: skip


def test_bucket_list(run: Run, daemon: CliDaemon) -> None:
    down = BucketInfo("near", "file:///x", "configured", {}, "down", "is its disk mounted?")
    clash = Clash("dataset", "d", "far", ["near"])
    daemon.answers["GET /storage/buckets"] = BucketList([FAR, down], [clash])
    code, out, _ = run("bucket")
    assert code == 0
    assert "far     degraded       12  34.0 KB        2        1  s3://bucket/lake" in out
    assert "near is down: is its disk mounted?" in out
    assert "dataset d lies in near too; the one in far counts" in out
    assert msgspec.json.decode(run("bucket", "list", "--json")[1])["clashes"][0]["others"] == ["near"]


def test_bucket_add(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /storage/buckets"] = FAR
    code, out, _ = run("bucket", "add", "far", "s3://bucket/lake", "-o", "region=eu", "-o", "access_key_id_env=KEY")
    assert code == 0
    assert "waiting in rescue  2" in out
    body = daemon.seen[-1][2]
    assert (body.name, body.url, body.options) == (
        "far",
        "s3://bucket/lake",
        {"region": "eu", "access_key_id_env": "KEY"},
    )
    run("bucket", "add", "near", "/data/a b")
    assert daemon.seen[-1][2].url == "file:///data/a%20b"
    run("bucket", "add", "near")
    assert daemon.seen[-1][2].url == ""
    code, _, err = run("bucket", "add", "far", "s3://x", "-o", "region")
    assert (code, "says no value" in err) == (2, True)


def test_bucket_show_and_remove(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /storage/buckets/{bucket}"] = FAR
    assert "home to            index docs" in run("bucket", "show", "far")[1]
    daemon.answers["DELETE /storage/buckets/{bucket}"] = BucketRemoved("far")
    assert run("bucket", "remove", "far")[1] == "removed far; what lies in it was left alone\n"
    refusal = ErrorBody("forbidden", "bucket 'primary' is built in", "it always exists")
    daemon.answers["DELETE /storage/buckets/{bucket}"] = (403, refusal)
    code, _, err = run("bucket", "remove", "primary")
    assert (code, "Bucket 'primary' is built in." in err) == (1, True)


def test_moves(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["PATCH /vectors/indexes/{index}"] = IndexMoved("docs", "primary", "far", 7, 1_500_000)
    assert run("index", "move", "docs", "--to-bucket", "far")[1] == "docs: primary → far, 7 objects, 1.5 MB, verified\n"
    assert daemon.seen[-1][2].bucket == "far"
    daemon.answers["PATCH /datasets/{dataset}"] = DatasetMoved("d", "far", "far", 0, 0)
    assert run("datasets", "move", "d", "--to-bucket", "far")[1] == "d lies in far already\n"
    assert msgspec.json.decode(run("datasets", "move", "d", "--to-bucket", "far", "--json")[1])["objects"] == 0
