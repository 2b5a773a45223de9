"""Real PostgreSQL and MariaDB servers for tests: own data directories, free loopback ports, an
unprivileged user when the tests run as root. Never a server that happens to run."""

import datetime
import ipaddress
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.conftest import find_program

PASSWORD = "canary-Pa55/w:rd@#%"
"""Of both servers' users: with everything in it that a URL has to escape."""
QUOTED_PASSWORD = "canary-Pa55%2Fw%3Ard%40%23%25"
_NOBODY = 65534


@dataclass(frozen=True)
class Database:
    scheme: str
    port: int
    user: str
    name: str
    folder: Path

    @property
    def dsn(self) -> str:
        return f"{self.scheme}://{self.user}:{QUOTED_PASSWORD}@127.0.0.1:{self.port}/{self.name}"

    def run(self, sql: str) -> str:
        """Run statements through the server's own client; what it prints, tab-separated."""
        if self.scheme == "postgresql":
            command = ["psql", "-v", "ON_ERROR_STOP=1", "-qAtX", "-F", "\t", self.dsn]
            env = {**os.environ, "PGCONNECT_TIMEOUT": "10"}
        else:
            command = ["mariadb", "--no-defaults", "-h127.0.0.1", f"-P{self.port}", f"-u{self.user}",
                       "--batch", "-N", "--ssl", "--default-character-set=utf8mb4", self.name]  # fmt: skip
            env = {**os.environ, "MYSQL_PWD": PASSWORD}
        done = subprocess.run(command, input=sql, env=env, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _folder() -> Iterator[tuple[Path, dict[str, int]]]:
    """A folder for a server's data, and whom to run it as."""
    folder = Path(tempfile.mkdtemp(prefix="lakehouse-db-"))
    who = {}
    if os.getuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)
        who = {"user": _NOBODY, "group": _NOBODY}
    try:
        yield folder, who
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _program(name: str) -> str:
    found = find_program(name)
    assert found, f"{name} is not installed"
    return found


def _stop(server: "subprocess.Popen[bytes]", signal: int) -> None:
    server.send_signal(signal)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _until_ready(database: Database, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            database.run("SELECT 1;")
            return
        except RuntimeError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(errors="replace")) from None
            time.sleep(0.1)


@contextmanager
def postgres(*settings: str) -> Iterator[Database]:
    """settings: `name=value` of postgresql.conf."""
    with _folder() as (folder, who):
        data, log = folder / "data", folder / "log"
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        subprocess.run(
            [_program("initdb"), "-D", data, "-U", "lake", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8",
             "--locale=C.UTF-8", "--no-sync"],
            check=True, capture_output=True, cwd=folder, **who,
        )  # fmt: skip
        port = free_port()
        options = [f"-c{name}" for name in ("listen_addresses=127.0.0.1", "fsync=off", "max_wal_size=4GB", *settings)]
        with log.open("wb") as out:
            server = subprocess.Popen(
                [_program("postgres"), "-D", data, "-p", str(port), f"-cunix_socket_directories={folder}", *options],
                stdout=out, stderr=out, cwd=folder, **who,
            )  # fmt: skip
        try:
            database = Database("postgresql", port, "lake", "postgres", folder)
            _until_ready(database, server, log)
            yield database
        finally:
            _stop(server, 2)


@contextmanager
def mariadb(*settings: str) -> Iterator[Database]:
    """settings: options of mariadbd without their `--`."""
    with _folder() as (folder, who):
        data, log = folder / "data", folder / "log"
        subprocess.run(
            [_program("mariadb-install-db"), "--no-defaults", f"--datadir={data}",
             "--auth-root-authentication-method=normal",
             "--skip-test-db", "--skip-name-resolve"],
            check=True, capture_output=True, cwd=folder, **who,
        )  # fmt: skip
        start = folder / "start.sql"
        start.write_text(
            "CREATE DATABASE lake CHARACTER SET utf8mb4;"
            f"CREATE USER lake@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'; GRANT ALL ON lake.* TO lake@'127.0.0.1';"
        )
        start.write_text(start.read_text().replace(";", ";\n"))
        port = free_port()
        with log.open("wb") as out:
            server = subprocess.Popen(
                [_program("mariadbd"), "--no-defaults", f"--datadir={data}", f"--port={port}",
                 "--bind-address=127.0.0.1",
                 f"--socket={folder}/socket", f"--init-file={start}", "--skip-name-resolve", "--sql-mode=",
                 "--innodb-flush-log-at-trx-commit=0", *(f"--{name}" for name in settings)],
                stdout=out, stderr=out, cwd=folder, **who,
            )  # fmt: skip
        try:
            database = Database("mysql", port, "lake", "lake", folder)
            _until_ready(database, server, log)
            yield database
        finally:
            _stop(server, 15)


@contextmanager
def certificate() -> Iterator[tuple[Path, Path, Path]]:
    """A certificate authority's, a server's for 127.0.0.1, and the server's key: files that the servers may read."""
    with _folder() as (folder, who):
        ca_key, ca = _signed("lakehouse tests")
        key, cert = _signed("127.0.0.1", ca_key, ca)
        paths = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        for path, data in zip(
            paths,
            (
                ca.public_bytes(Encoding.PEM),
                cert.public_bytes(Encoding.PEM),
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            ),
            strict=True,
        ):
            path.write_bytes(data)
            path.chmod(0o600 if path.name == "key.pem" else 0o644)
            if who:
                os.chown(path, who["user"], who["group"])
        yield paths


def _signed(
    name: str, by: ec.EllipticCurvePrivateKey | None = None, issuer: x509.Certificate | None = None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        names = [x509.IPAddress(ipaddress.ip_address(name)), x509.DNSName("localhost")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return key, builder.sign(by or key, hashes.SHA256())
