"""lakehouse.toml, the structs and the environment agree, and every mistake is one clear sentence."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from daemon.config import Config, ConfigError, load
from daemon.config_file import attribute_help, render
from daemon.state_dir import StateDir
from daemon.wiring import open_buckets

REPOSITORY = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    file = folder / "lakehouse.toml"
    file.write_text(text)
    return file


def test_the_file_in_the_repository_is_the_rendered_one() -> None:
    assert (REPOSITORY / "lakehouse.toml").read_text() == render(), "run `make docs`"


def test_uncommenting_every_default_changes_nothing(tmp_path: Path) -> None:
    uncommented = re.sub(r"^#(?=[a-z_]+ = )", "", render(), flags=re.MULTILINE)
    file = write(tmp_path, uncommented)
    assert uncommented.count("\nepsilon = ") == 1
    assert load(file, {}) == load(write(tmp_path, ""), {})


def test_every_key_has_help() -> None:
    missing = [
        f"{section.name}.{key}"
        for section in msgspec.structs.fields(Config)
        for key, text in attribute_help((get_args(section.type) or (section.type,))[0]).items()
        if not text
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[agnt]\n", ["[agnt] is not a known section", 'did you mean "agent"']),
        ("[agent]\nepsilom = 0.1\n", ["agent.epsilom", "not a known key", 'did you mean "epsilon"']),
        ("[agent]\nepsilon = 3\n", ["agent.epsilon", "<= 1.0"]),
        ("[agent]\nm_bounds = [2, 64]\n", ["agent.m_bounds must", "from 4 to 64", "not [2, 64]"]),
        ("[agent]\nm_bounds = [64, 4]\n", ["agent.m_bounds must", "the lower first"]),
        ("[agent]\nm_bounds = [16]\n", ["agent.m_bounds", "length 2"]),
        ("[agent]\nef_construction_bounds = [10, 401]\n", ["agent.ef_construction_bounds must", "from 10 to 400"]),
        ("[agent]\nef_search_bounds = [0, 100000]\n", ["agent.ef_search_bounds must", "from 10 to 400"]),
        ("[agent]\ncooldown_s = -1\n", ["agent.cooldown_s", ">= 0"]),
        ("[agent]\nwake_s = 0\n", ["agent.wake_s", ">= 1"]),
        ("[agent]\nmin_new_rows = 0\n", ["agent.min_new_rows", ">= 1"]),
        ('[http]\nport = "x"\n', ["http.port", "expected `int`", "`str`"]),
        ('[[storage.buckets]]\nnam = "a"\n', ["storage.buckets[0].nam", 'did you mean "name"']),
        ('[[storage.buckets]]\nname = "a"\nurl = "ftp://x"\n', ['storage.buckets "a"', "file:// or s3://"]),
        ('[[storage.buckets]]\nname="a"\nurl="s3://x"\n' * 2, ['names "a" twice']),
        ('[storage]\nprofile_root = "/srv"\n', ["storage.profile_root", "file:// or s3://", 'got "/srv"']),
        (
            '[storage]\nprofile_root = "s3://b/p/"\n[[storage.buckets]]\nname = "a"\nurl = "s3://b/p"\n',
            ["storage.profile_root", 'is the bucket "a" itself', "s3://b/p/profiles"],
        ),
        ("x =\n", ["is not TOML", "line 1"]),
    ],
)
def test_a_mistake_is_one_sentence_with_file_key_and_reason(tmp_path: Path, text: str, words: list[str]) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "other.toml", {})


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[agent]\nepsilon = 0.5\n[http]\nport = 1\n")
    config = load(
        file,
        {
            "LAKEHOUSE_HTTP__PORT": "8701",
            "LAKEHOUSE_AGENT__ENABLED": "false",
            "LAKEHOUSE_DAEMON__ROLES": '["work"]',
            "LAKEHOUSE_URL": "http://elsewhere",
        },
    )
    assert (config.http.port, config.agent.epsilon, config.agent.enabled) == (8701, 0.5, False)
    assert config.daemon.roles == ("work",)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("LAKEHOUSE_AGENT__EPSILN", "1", "did you mean LAKEHOUSE_AGENT__EPSILON"),
        ("LAKEHOUSE_AGENT__EPSILON", "much", "LAKEHOUSE_AGENT__EPSILON in the environment"),
        ("LAKEHOUSE_DAEMON__ROLES", '["king"]', "LAKEHOUSE_DAEMON__ROLES in the environment"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load(write(tmp_path, ""), {variable: value})


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load(write(tmp_path, '[daemon]\nstate_dir = "state"\n'), {})
    assert config.state_dir == tmp_path / "state"
    assert {bucket.name: bucket.url for bucket in config.buckets()} == {
        "primary": (tmp_path / "state/buckets/primary").as_uri(),
        "rescue": (tmp_path / "state/buckets/rescue").as_uri(),
    }


def test_a_named_primary_replaces_the_built_in_one(tmp_path: Path) -> None:
    config = load(write(tmp_path, '[[storage.buckets]]\nname = "primary"\nurl = "s3://b/p"\n'), {})
    assert [(bucket.name, bucket.url[:5]) for bucket in config.buckets()] == [("rescue", "file:"), ("primary", "s3://")]


def test_profiles_buckets_lie_in_the_state_directory_unless_told(tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), {}).profile_root == (tmp_path / "data/buckets/profiles").as_uri()
    config = load(write(tmp_path, '[storage]\nprofile_root = "s3://b/p"\nprofile_options = { region = "eu" }\n'), {})
    assert (config.profile_root, config.storage.profile_options) == ("s3://b/p", {"region": "eu"})


async def test_the_daemon_opens_its_buckets_with_the_profile_root(tmp_path: Path) -> None:
    config = load(write(tmp_path, ""), {})
    state = StateDir(config.state_dir)
    assert await open_buckets(config, state).provision("coder") is True
    assert await open_buckets(config, state).names() == ["coder", "primary", "rescue"]
    assert (tmp_path / "data/buckets/profiles/coder/bucket.json").is_file()
