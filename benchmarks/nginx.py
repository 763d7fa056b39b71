"""A receiver that costs next to nothing: nginx, one worker process, `return 204`, connections kept for good.

It stands in for receiver.py where only `count` and `span` are asked: its log has milliseconds, so it has no `times`.
On Debian: apt-get install nginx-light. Where it is missing, `receiver` gives receiver.py's and says so.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import stage

# The log is written through a buffer, at the latest after 20 ms: a write for each request would cost more than the
# answer. The log is the only count of POSTs, so that what is counted and what is timed are the same.
_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    log_format moment '$msec $request_method';
    access_log {folder}/access.log moment buffer=64k flush=20ms;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_buffer_size 64k;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ return 204; }}
    }}
}}
"""


class Nginx:
    """An nginx of its own, with a configuration and a log in a temporary folder; `program`: the path of nginx."""

    def __init__(self, program: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="outbox-nginx-")
        folder, port = Path(self._folder.name), stage.free_port()
        (folder / "nginx.conf").write_text(_CONFIG.format(folder=folder, port=port))
        self._log = (folder / "access.log").open("a+b")
        self._log.seek(0)
        self._count = 0
        self._rest = b""
        self._span: list[float] = []
        command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        self.process = subprocess.Popen(command)  # noqa: S603 - the program that `receiver` found
        stage.wait_for(port)
        self.url = f"http://127.0.0.1:{port}/postback"

    def ask(self, what: str) -> Any:  # noqa: ANN401 - as ReceiverProcess.ask
        """Return `count`, how many POSTs came, or `span`, how many since the last `span` and in how many seconds."""
        self._read()
        if what == "count":
            return self._count
        if what != "span":
            raise ValueError(f"nginx's log has no {what}")
        span, self._span = self._span, []
        return [len(span), max(span) - min(span) if span else 0.0]

    def _read(self) -> None:
        *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
        moments = [float(line[:-5]) for line in lines if line.endswith(b" POST")]
        self._count += len(moments)
        self._span += moments

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()
        self._log.close()
        self._folder.cleanup()


@contextmanager
def receiver() -> Iterator[Nginx | stage.ReceiverProcess]:
    """Run nginx where it is installed, and otherwise receiver.py's receiver."""
    # Debian has it in a folder that only root's PATH names.
    program = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if program is None:
        print("no nginx here (on Debian: apt-get install nginx-light): receiving with benchmarks/receiver.py")
        with stage.receiver() as own:
            yield own
        return
    started = Nginx(program)
    try:
        yield started
    finally:
        started.close()


def name(of: Nginx | stage.ReceiverProcess) -> str:
    """Return what the record says of this receiver."""
    return "nginx, one worker process, return 204" if isinstance(of, Nginx) else "benchmarks/receiver.py"
