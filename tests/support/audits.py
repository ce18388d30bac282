"""An audit in this very process: a database, one backend, and what is planted on it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Self

from sqlalchemy import insert, select, update

from tests.support.tables import tables
from worker.app import make_app
from worker.backends.manager import ShareManager
from worker.config import from_document
from worker.db import shares, snapshots
from worker.db.core.engine import db_now, engine_for, reading, transaction
from worker.db.documents import plain
from worker.db.share_servers import store as servers
from worker.db.tables.audits import audit_findings, tombstones
from worker.db.tables.main import operations, share_networks, share_servers
from worker.db.tables.main import shares as shares_table
from worker.db.tables.main import snapshots as snapshots_table
from worker.engine.runner import run
from worker.model import (
    NetworkKind,
    RequestContext,
    ServerStatus,
    Share,
    ShareNetwork,
    ShareServer,
    Snapshot,
)
from worker.tasks.audit import start_audit
from worker.tasks.orphans import NAME
from worker.tasks.sagas import ACTIONS, SAGAS

GRACE = 900.0
CONTEXT = RequestContext("p1")


class AuditBench:
    """A backend's parts, handed over to an audit of the same backend."""

    def __init__(self, directory: Path, url: str, backend: str, settings: str) -> None:
        import tomllib  # noqa: PLC0415 - only here

        document = tomllib.loads(settings)
        document["state_dir"] = str(directory)
        document["database"] = {"url": url}
        document.setdefault("engine", {})["audit_grace"] = GRACE
        self.backend = backend
        self.config = from_document(document, "test")
        self.engine = tables(url)
        self.runtime = make_app(self.config).sharewright_runtime()
        self.runtime.publish = lambda _dispatch: None
        self.runtime.store_result = lambda *_: None

    @property
    def manager(self) -> ShareManager:
        return self.runtime.manager(self.backend)  # type: ignore[no-any-return] # Celery's app

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.runtime.heartbeat.stop()
        engine_for(self.config.database.url).dispose()

    def begin(self, *, repair: bool) -> Any:
        """Accept an audit and no more."""
        with transaction(self.engine) as connection:
            dispatches = start_audit(connection, self.config, SAGAS, self.backend, repair=repair)
            return dispatches[0] if dispatches else None

    def audit(self, *, repair: bool = False) -> dict[str, Any]:
        """One whole audit; return its result."""
        dispatch = self.begin(repair=repair)
        assert dispatch is not None
        run(self.runtime, ACTIONS[NAME], dispatch.operation_id, dispatch.dispatch)
        with reading(self.engine) as connection:
            row = connection.execute(
                select(operations).where(operations.c.id == dispatch.operation_id)
            ).one()
        assert row.state == "succeeded", row.error
        return dict(row.result)

    def age(self, seconds: float = GRACE + 1) -> None:
        """Let so much time pass for what was found."""
        with transaction(self.engine) as connection:
            connection.execute(
                update(audit_findings).values(first_seen=audit_findings.c.first_seen - seconds)
            )

    def findings(self, problem: str = "orphan") -> list[Any]:
        with reading(self.engine) as connection:
            return list(
                connection.execute(
                    select(audit_findings).where(audit_findings.c.problem == problem)
                )
            )

    def network(self, **fields: Any) -> ShareNetwork:
        """A share network with its row."""
        values = {"kind": NetworkKind.FLAT_POOL, "flat_network_ip_pool": ("10.0.0.0/16",), **fields}
        made = ShareNetwork(str(uuid.uuid4()), "p1", **values)
        row = {
            **{name: getattr(made, name) for name in made.__dataclass_fields__},
            "kind": made.kind.value,
            "flat_network_ip_pool": list(made.flat_network_ip_pool) or None,
        }
        with transaction(self.engine) as connection:
            connection.execute(
                insert(share_networks).values(
                    metadata={}, created_at=db_now(), updated_at=db_now(), **row
                )
            )
        return made

    def server(self, network: ShareNetwork, *, row: bool = True) -> ShareServer:
        """A share server outside, whole; with its row, or as somebody else's with none."""
        server = ShareServer(
            str(uuid.uuid4()), "p1", self.backend, network.id, ServerStatus.BUILDING
        )
        info = self.manager.allocate_network(CONTEXT, server, network)
        details = self.manager.get_share_server(CONTEXT, server, network, info, ())
        if row:
            with transaction(self.engine) as connection:
                connection.execute(
                    insert(share_servers).values(
                        id=server.id,
                        project_id="p1",
                        share_network_id=network.id,
                        backend=self.backend,
                        status="active",
                        builder_id="-",
                        created_at=db_now(),
                        updated_at=db_now(),
                        server_id=details.server_id,
                        details=plain(details),
                        network_info=plain(info),
                    )
                )
        return ShareServer(
            server.id,
            "p1",
            self.backend,
            network.id,
            ServerStatus.ACTIVE,
            network_info=info,
            details=details,
        )

    def share(self, server: ShareServer | None, pool: str, *, row: bool = True) -> Share:
        """A share outside, with its row or with none."""
        share = Share(str(uuid.uuid4()), "p1", 1, "NFS", self.backend, pool)
        self.manager.create_share(CONTEXT, share, None, server)
        if row:
            with transaction(self.engine) as connection:
                connection.execute(
                    insert(shares_table).values(
                        id=share.id,
                        project_id="p1",
                        metadata={},
                        size=1,
                        share_proto="NFS",
                        backend=self.backend,
                        pool=pool,
                        allocated_gib=1,
                        status="available",
                        export_locations=[],
                        created_at=db_now(),
                        updated_at=db_now(),
                    )
                )
        return share

    def snapshot(self, share: Share, server: ShareServer | None, *, row: bool = True) -> Snapshot:
        """A snapshot outside, with its row or with none."""
        snapshot = Snapshot(str(uuid.uuid4()), share.id, "p1", 1)
        self.manager.create_snapshot(CONTEXT, snapshot, share, server)
        if row:
            with transaction(self.engine) as connection:
                connection.execute(
                    insert(snapshots_table).values(
                        id=snapshot.id,
                        project_id="p1",
                        metadata={},
                        share_id=share.id,
                        size=1,
                        status="available",
                        created_at=db_now(),
                        updated_at=db_now(),
                    )
                )
        return snapshot

    def add_tombstone(self, kind: str, object_id: str) -> None:
        """A row that this database had, and whose things came later than its end."""
        with transaction(self.engine) as connection:
            connection.execute(
                insert(tombstones).values(
                    kind=kind, id=object_id, backend=self.backend, gone_at=db_now()
                )
            )

    def forget(self, *things: ShareServer | Share | Snapshot) -> None:
        """The rows go, as they do when everything outside is gone."""
        with transaction(self.engine) as connection:
            for thing in things:
                match thing:
                    case ShareServer():
                        servers.remove(connection, thing.id)
                    case Share():
                        shares.remove_share(connection, thing.id)
                    case Snapshot():
                        snapshots.remove_snapshot(connection, thing.id)
