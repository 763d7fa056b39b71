"""A real PgBouncer before a test's server, on a Unix socket of its own. Tests skip where it is not installed."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

# Debian has it where only root looks.
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed here; CI installs it")

_CONFIGURATION = """
[databases]
* = {server}

[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {pool_size}
max_client_conn = 100
server_login_retry = 1
logfile = {folder}/log
"""


class PgBouncer:
    """`pgbouncer` in transaction mode; `dsn` leads through it to the database of `server_dsn`."""

    def __init__(self, server_dsn: str, folder: Path, users: Collection[str], mode: str, pool_size: int) -> None:
        server = conninfo_to_dict(server_dsn)
        kept = {name: server[name] for name in ("host", "port", "password") if server.get(name)}
        (folder / "users").write_text("".join(f'"{user}" ""\n' for user in {str(server["user"]), *users}))
        (folder / "ini").write_text(
            _CONFIGURATION.format(
                server=" ".join(f"{name}='{value}'" for name, value in kept.items()),
                folder=folder, mode=mode, pool_size=pool_size,
            )
        )  # fmt: skip
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.dsn = make_conninfo(server_dsn, host=str(folder), port=6432, password=None)

    def start(self) -> None:
        """Start it and wait until it answers."""
        # It refuses to be root.
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen([str(PROGRAM), "-q", *user, str(self._folder / "ini")])
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.dsn).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it at once: every connection through it breaks."""
        if self._process is not None:
            # What SIGTERM does depends on the version: a newer one waits for its clients to go.
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None


@contextmanager
def pgbouncer(server_dsn: str, *users: str, mode: str = "transaction", pool_size: int = 2) -> Iterator[PgBouncer]:
    """Run PgBouncer before a server; it lets in the DSN's user and `users`, without a password."""
    with tempfile.TemporaryDirectory(prefix="outbox-pgb-", dir="/tmp") as name:  # a socket's path is short
        Path(name).chmod(0o777)
        bouncer = PgBouncer(server_dsn, Path(name), users, mode, pool_size)
        bouncer.start()
        try:
            yield bouncer
        finally:
            bouncer.stop()
