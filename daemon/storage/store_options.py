"""Options of an object store, as people write them and as the stores take them.

Credentials are named, never written down: an environment variable or a file of the daemon's machine. What a bucket
that is made at run time may say is ALLOWED; a bucket of lakehouse.toml, which only the daemon reads, may also carry
the store's own words (`access_key_id` …). What may be shown of either is `shown`.
"""

import configparser
import os
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from actors.addresses import is_forbidden, judged
from schemas.names import BucketName

ALLOWED = {
    "endpoint": "URL of an S3-compatible server",
    "region": "region of the bucket",
    "path_style": "true (default): the bucket is part of the path; false: of the host name",
    "access_key_id_env": "environment variable with the access key",
    "secret_access_key_env": "environment variable with the secret key",
    "session_token_env": "environment variable with the session token",
    "credentials_file": "AWS credentials file on the daemon's machine",
    "credentials_profile": "section of that file; default `default`",
}
NAMED = {"access_key_id_env": "access_key_id", "secret_access_key_env": "secret_access_key"} | {
    "session_token_env": "session_token"
}
IN_FILE = {f"aws_{name}": name for name in NAMED.values()}
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
METADATA_HOSTS = {"metadata", "metadata.google.internal", "metadata.goog", "instance-data"}


class StoreOptions(dict[str, str]):
    """What a store takes, credentials and all; prints its names only."""

    def __repr__(self) -> str:
        return f"StoreOptions({', '.join(sorted(self))})"

    __str__ = __repr__


def checked(url: str, options: Mapping[str, str]) -> None:
    """Raises ValueError, with what to write instead, unless `url` and `options` may be kept in a bucket."""
    if _userinfo(url) or _userinfo(options.get("endpoint", "")):
        raise ValueError(f"a URL must not carry credentials; {_NAME_THEM}")
    if parts := urlsplit(url):
        if parts.query or parts.fragment:
            raise ValueError("the URL must end with its path: what follows ? or # belongs into options")
        if parts.scheme == "file" and options:
            raise ValueError("a file:// bucket takes no options")
    for name in options:
        if name in NAMED.values() or name.removeprefix("aws_") in (*NAMED.values(), "token"):
            raise ValueError(f"options.{name}: credentials are not kept; {_NAME_THEM}")
        if name not in ALLOWED:
            raise ValueError(f"options.{name} is not a known option; known are {', '.join(ALLOWED)}")
    for name in NAMED:
        if name in options and not VARIABLE.fullmatch(options[name]):
            raise ValueError(f"options.{name} must be the name of an environment variable, such as LAKE_KEY")
    if "credentials_file" in options and not options["credentials_file"].startswith("/"):
        raise ValueError("options.credentials_file must be a path from / on, of the daemon's machine")
    if options.get("path_style", "true") not in ("true", "false"):
        raise ValueError("options.path_style must be true or false")
    if "endpoint" in options:
        _check_endpoint(options["endpoint"])


def resolved(bucket: BucketName, options: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> StoreOptions:
    """What the store takes. Raises ValueError, naming variable or file and never a value, where a credential that is
    named isn't there."""
    found = StoreOptions({name: value for name, value in options.items() if name not in ALLOWED})
    found |= {name: options[name] for name in ("endpoint", "region") if name in options}
    if "path_style" in options:
        found["virtual_hosted_style_request"] = "true" if options["path_style"] == "false" else "false"
    for name, meant in NAMED.items():
        if name in options:
            if not environ.get(options[name]):
                raise ValueError(f"bucket {bucket}: the environment variable {options[name]} ({name}) isn't set")
            found[meant] = environ[options[name]]
    if "credentials_file" in options:
        found |= _of_file(bucket, options["credentials_file"], options.get("credentials_profile", "default"))
    return found


def s3_options(options: Mapping[str, str]) -> StoreOptions:
    """As deltalake and Lance take them."""
    plain = {"allow_http": "true"} if options.get("endpoint", "").startswith("http://") else {}
    return StoreOptions({f"aws_{name}": value for name, value in options.items()} | plain)


def shown(options: Mapping[str, str]) -> dict[str, str]:
    """What may be seen of options: names of variables and files, and nothing of the store's own words for secrets."""
    return {name: without_userinfo(value) for name, value in options.items() if name in ALLOWED}


def without_userinfo(url: str) -> str:
    """A URL without what stands before its @. What is no URL stays as it is."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if _userinfo(url) else url


def _userinfo(url: str) -> bool:
    return "@" in urlsplit(url).netloc


def _of_file(bucket: BucketName, path: str, profile: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise ValueError(f"bucket {bucket}: credentials_file {path} can't be read: {error.strerror}") from None
    except (configparser.Error, UnicodeDecodeError):  # whose words show lines of the file
        raise ValueError(f"bucket {bucket}: credentials_file {path} is no AWS credentials file") from None
    if not parser.has_section(profile):
        raise ValueError(f"bucket {bucket}: credentials_file {path} has no section [{profile}]")
    return {meant: parser[profile][name] for name, meant in IN_FILE.items() if name in parser[profile]}


def _check_endpoint(endpoint: str) -> None:
    """Raises ValueError for what is no server of objects: cloud metadata and other link-local addresses."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("options.endpoint must be http://host or https://host")
    host = parts.hostname.rstrip(".").lower()
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        addresses = set()  # nothing is sent to what has no address
    if any(is_forbidden(judged(address)) for address in addresses):
        host = "metadata"
    if host in METADATA_HOSTS:
        raise ValueError(f"options.endpoint: {parts.hostname} is a link-local or metadata address, not a server")


_NAME_THEM = "name an environment variable (access_key_id_env, secret_access_key_env) or a credentials_file"
