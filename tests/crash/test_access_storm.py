"""Allow and deny from all sides while workers die: the last word wins."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from scheduler.client import Client
from tests.support.real import RealDeployment
from tests.support.services import Process, RedisServer, require_root_datapath, wait_until
from tests.support.tenants import Tenant
from worker.db.core.engine import reading
from worker.db.tables.main import access_rules, operation_steps, operations, shares

REQUESTS, PRODUCERS, WORKERS = 1000, 8, 4
CLIENTS = [f"10.79.0.{number}" for number in range(101, 121)]
CIDRS = ["10.79.0.100/31", "10.79.0.104/30", "10.79.0.112/30"]
"""A few of the clients are in one of these as well: the narrower rule counts for them."""
SEED = 20261121
SECONDS = 40.0
"""How long the producers take to send: time enough for as many kills."""


class Producer:
    """Sends its part of the requests and waits for no answer; a refusal is as good as any."""

    def __init__(self, site: RealDeployment, share_id: str, seed: int) -> None:
        self.site = site
        self.share_id = share_id
        self.random = random.Random(seed)

    def run(self, count: int) -> list[str]:
        """Send so many requests; return their ids."""
        sent = [str(uuid.uuid4()) for _ in range(count)]
        client = Client(self.site.redis.url(), self.site.redis.url(1))
        pause = SECONDS / count
        try:
            for request_id in sent:
                due = time.monotonic() + pause
                verb, fields = self.next()
                payload = self.site.payload(share_id=self.share_id, **fields)
                client.send(verb, payload, operation_id=request_id)
                time.sleep(max(0.0, due - time.monotonic()))
        finally:
            client.close()
        return sent

    def next(self) -> tuple[str, dict[str, Any]]:
        """Deny the client if it looks allowed, else allow it; others do so at the same time."""
        client = self.random.choice(CLIENTS + CIDRS)
        level = self.random.choice(["ro", "rw"])
        with reading(self.site.engine) as connection:
            rule = connection.execute(
                select(access_rules.c.id).where(
                    access_rules.c.access_to == client,
                    access_rules.c.state.not_in(("queued_to_deny", "denying")),
                )
            ).first()
        if rule is not None:
            return "deny_access", {"access_id": rule.id}
        return "allow_access", {"access_to": client, "access_level": level}


def kill_every_second(site: RealDeployment, workers: Process, over: threading.Event) -> int:
    """Kill the one that has run the longest; each fourth time, one in the middle of a step.

    More often would end in "begun 8 times and never came to an end", rightly: the killed step is
    taken up again when its lease has run out.
    """
    for kills in itertools.count():
        if over.wait(1.0):
            return kills
        mains = psutil.Process(workers.pid).children()
        oldest = min(mains, key=lambda main: main.create_time())
        victim = (busy(site, mains) if kills % 4 == 0 else None) or oldest
        victim.kill()
    raise AssertionError


def busy(site: RealDeployment, mains: list[psutil.Process]) -> psutil.Process | None:
    """A worker that is in the middle of a step, looked for during half a second."""
    for _ in range(25):
        with reading(site.engine) as connection:
            leased = connection.execute(
                select(operations.c.worker).where(operations.c.phase == "leased")
            ).scalars()
            pids = {int(worker.rpartition(":")[2]) for worker in leased}
        for main in mains:
            if pids & {child.pid for child in main.children()}:
                return main
        time.sleep(0.02)
    return None


def answered(site: RealDeployment, requests: list[str]) -> int:
    """How many requests were accepted or refused."""
    with site.redis.client(1) as results:
        return int(results.exists(*(f"celery-task-meta-{one}" for one in requests)))


def changes(site: RealDeployment) -> list[Any]:
    """The operations of all changes that were accepted, in that order."""
    with reading(site.engine) as connection:
        return list(
            connection.execute(
                select(operations)
                .where(operations.c.verb.in_(("allow_access", "deny_access")))
                .order_by(operations.c.seq)
            ).all()
        )


def last_words(site: RealDeployment) -> set[tuple[IPv4Network, str]]:
    """What the accepted changes come to, whatever the engine made of them."""
    rules: dict[str, tuple[IPv4Network, str]] = {}
    for row in changes(site):
        if row.verb == "allow_access":
            to, level = row.payload["access_to"], row.payload["access_level"]
            rules[row.payload["access_id"]] = IPv4Network(to), level
        else:
            del rules[row.payload["access_id"]]
    return set(rules.values())


def begun_again(site: RealDeployment) -> int:
    """How many steps were finished by another than the worker that began them."""
    steps = site.rows(operation_steps)
    return sum(step.attempt > 1 for step in steps if step.task == "update_access")


def exported(site: RealDeployment, share: Any) -> list[tuple[IPv4Network, str]]:
    """Clients and levels in the order in which the daemon tries them."""
    text = site.exports(share.share_server_id)[share.id]
    blocks = re.findall(r"CLIENT \{ Clients = ([^;]+); Access_Type = (RO|RW);", text)
    return [
        (IPv4Network(one.strip()), level.lower())
        for clients, level in blocks
        for one in clients.split(",")
    ]


def expected(rules: list[tuple[IPv4Network, str]], client: str) -> str:
    """What a client may do by the database's rules: the narrowest one that it is in counts."""
    mine = [rule for rule in rules if IPv4Address(client) in rule[0]]
    return max(mine, key=lambda rule: rule[0].prefixlen)[1] if mine else "refused"


def found(tenant: Tenant, path: str, client: str) -> str:
    """What a client can do over NFS."""
    answer = tenant.nfs(path, "write", f"of-{client}", data=b"x")
    if answer["ok"]:
        return "rw"
    assert answer["error"] in {"NOENT", "ROFS"}, answer
    return {"NOENT": "refused", "ROFS": "ro"}[answer["error"]]


def test_the_last_word_wins_whatever_dies(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer
) -> None:
    require_root_datapath()
    site = RealDeployment(tmp_path, postgres_url, redis_server, engine={"lease": 1.5})
    try:
        site.role("scheduler")
        site.role("reconciler")
        workers = site.forked(WORKERS)
        site.wait_reported()
        network_id = site.network()
        share_id = site.ask("create_share", size=1, share_network_id=network_id)["id"]
        storm(site, workers, share_id)
        assert site.settle().keys() == {"succeeded"}
        assert begun_again(site) > 0, "no kill struck a step"
        (share,) = site.rows(shares)
        rows = site.rows(access_rules)
        assert {row.state for row in rows} <= {"active"}
        rules = [(IPv4Network(row.access_to), row.access_level) for row in rows]
        assert sorted(exported(site, share), key=str) == sorted(rules, key=str)
        assert set(rules) == last_words(site)
        assert share.applied_generation == share.access_generation

        wanted = {client: expected(rules, client) for client in CLIENTS}
        assert set(wanted.values()) == {"refused", "ro", "rw"}, "the seed makes for all three"
        path = share.export_locations[0]["path"]
        seen = {}
        for client in CLIENTS:
            with site.tenant(network_id, client) as tenant:
                seen[client] = found(tenant, path, client)
        assert seen == wanted
        site.clear()
        assert site.left() == []
    except BaseException:
        print(site.logs())
        raise
    finally:
        site.close()


def storm(site: RealDeployment, workers: Process, share_id: str) -> None:
    """A thousand requests from eight sides, and a kill a second until all are accepted."""
    over = threading.Event()
    producers = [Producer(site, share_id, SEED + number) for number in range(PRODUCERS)]
    with ThreadPoolExecutor(PRODUCERS + 1) as pool:
        killer = pool.submit(kill_every_second, site, workers, over)
        try:
            sent = [pool.submit(one.run, REQUESTS // PRODUCERS) for one in producers]
            asked = [request for one in sent for request in one.result()]
            wait_until(lambda: answered(site, asked) == REQUESTS, "all requests are answered")
        finally:
            over.set()
        assert killer.result() >= SECONDS * 0.5
    # A refusal leaves no row: producers raced for the same rule.
    assert len(changes(site)) > REQUESTS * 0.5
