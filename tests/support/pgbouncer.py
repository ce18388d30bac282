"""PgBouncer in front of the tests' PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

from sqlalchemy.engine import URL

from tests.support.services import PostgresServer, Process, free_port, require

_ACCOUNT = "postgres"


class PgBouncer:
    """One with the defaults of its package but for the pool's mode; nobody needs a password."""

    def __init__(self, server: PostgresServer, *, pool_mode: str, pool_size: int = 20) -> None:
        program = require("pgbouncer")
        self.directory = Path(tempfile.mkdtemp(prefix="sw-pgbouncer-"))
        self.port = free_port()
        self._users = self.directory / "users.txt"
        (self.directory / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={server.port}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {self._users}\n"
            f"pool_mode = {pool_mode}\ndefault_pool_size = {pool_size}\n"
            f"max_client_conn = 200\n"
        )
        account: tuple[str, ...] = ()
        if os.geteuid() == 0:  # PgBouncer refuses to be root
            shutil.chown(self.directory, _ACCOUNT)
            shutil.chown(self.directory / "pgbouncer.ini", _ACCOUNT)
            account = (
                *(require("setpriv"), f"--reuid={_ACCOUNT}", f"--regid={_ACCOUNT}"),
                *("--init-groups", "--"),
            )
        self._process = Process(
            (*account, program, str(self.directory / "pgbouncer.ini")),
            log=self.directory / "pgbouncer.log",
        )

    def start(self, url: URL) -> URL:
        """Let a user in, start, and return the way to the same database through the pooler."""
        self._users.write_text(f'"{url.username}" ""\n')
        self._process.start(self._answers)
        return url.set(host="127.0.0.1", port=self.port)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        self._process.close()
        shutil.rmtree(self.directory, ignore_errors=True)
