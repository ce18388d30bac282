"""One nfs-ganesha a share server (docs/facts.md, "NFS-Ganesha").

Everything about a daemon lies in one directory of its own on the server's machine::

    ganesha.conf  ganesha.log  ganesha.pid  recovery/
    exports/<share id>.conf   what the daemon reads; begins with the rules' generation
    ids/<number>              a symbolic link to the share id: who holds this export id
    staged/                   a new export file before it takes its place

The daemon is found again by its command line, which holds that directory, never by a pid alone.
It is made for being killed: stop is SIGKILL, and start brings every export back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from netaddr import IPNetwork, ipv6_verbose

from worker.addressing import UNREADABLE_PREFIXES, client_network
from worker.errors import ConfigurationError, ErrorCode, Fatal, ObjectKind, Retryable
from worker.model import AccessRule
from worker.systems.shell.base import Completed, Shell, locked

EXPORT_IDS: Final = 65535
"""Export ids are 16 bits; 0 is the pseudo file system."""
_LEVELS: Final = {"ro": "RO", "rw": "RW"}
_SAFE_PATH: Final = re.compile(r"/[A-Za-z0-9._/-]+\Z")
_OLDER: Final = 65
_NO_EXPORT: Final = 66
_TOO_SLOW: Final = 67
_GONE: Final = 68

_START: Final = """
directory=$1 pattern=$2
cd "$directory"
pgrep -xf "$pattern" >/dev/null && exit 0
[ ! -e ganesha.log ] || mv ganesha.log ganesha.log.1
: > ganesha.log
setsid --fork ganesha.nfsd -f "$directory/ganesha.conf" -L "$directory/ganesha.log" \
    -p "$directory/ganesha.pid" </dev/null >/dev/null 2>&1
for _ in $(seq 400); do
    sleep 0.025
    grep -q 'NFS SERVER INITIALIZED' ganesha.log && exit 0
    grep -q ':FATAL :' ganesha.log && { grep -E ':(CRIT|MAJ|FATAL) :' ganesha.log >&2; exit 1; }
done
exit 67
"""

# "Reread exports complete" comes before the errors of the reading are written. Where something
# looks wrong, a second reload is the barrier behind which all errors of the first one stand.
_RELOAD: Final = """
directory=$1 pattern=$2
cd "$directory"
pid=$(pgrep -xf "$pattern") || exit 68
[ "$(stat -c %s ganesha.log)" -lt 1048576 ] || { mv ganesha.log ganesha.log.1; : > ganesha.log; }
from=$(($(stat -c %s ganesha.log) + 1))
reload() {
    kill -HUP $pid || exit 68
    for _ in $(seq 500); do
        sleep 0.01
        tail -c +$from ganesha.log > reload.log
        [ "$(grep -c 'Reread exports complete' reload.log)" -lt "$1" ] || return 0
    done
    pgrep -xf "$pattern" >/dev/null || exit 68
    exit 67
}
reload 1
grep -qE ':(CRIT|MAJ|FATAL) :' reload.log && reload 2
awk '/Received SIGHUP/ { reading++ } reading == 1' reload.log
"""

_STOP: Final = """
pkill -KILL -xf "$1" || exit 0
for _ in $(seq 500); do
    pgrep -xf "$1" >/dev/null || exit 0
    sleep 0.01
done
exit 67
"""

# The first link that is ours counts, should two workers ever have taken two at once.
_CLAIM: Final = """
ids=$1 share=$2 last=$3
mine=$(find "$ids" -lname "$share" -printf '%f\\n' | sort -n | head -n 1)
next=1
while [ -z "$mine" ] && [ "$next" -le "$last" ]; do
    if [ ! -L "$ids/$next" ] && ln -s "$share" "$ids/$next"; then mine=$next; fi
    next=$((next + 1))
done
echo "$mine"
"""

_INSTALL: Final = """
staged=$1 export=$2 generation=$3
if [ "$generation" -eq 0 ]; then
    if [ -e "$export" ]; then rm -f "$staged"; else mv "$staged" "$export"; fi
    exit 0
fi
[ -e "$export" ] || { rm -f "$staged"; exit 66; }
enforced=$(sed -n 's/^# generation //p' "$export")
[ "$enforced" -le "$generation" ] || { rm -f "$staged"; exit 65; }
mv "$staged" "$export"
"""

_REMOVE: Final = """
directory=$1 share=$2
rm -f "$directory/exports/$share.conf"
find "$directory/ids" -lname "$share" -delete
"""


_EXPORTED: Final = r"""
cd "$1"
[ ! -d exports ] || find exports -name '*.conf' -printf '%f\n' | sed 's/[.]conf$//'
[ ! -d ids ] || find ids -type l -printf '%l\n'
"""


def command_pattern(directory: str) -> str:
    """What pgrep and pkill find a daemon by, whatever runs beside it."""
    command = f"ganesha.nfsd -f {directory}/ganesha.conf -L .*"
    return command.replace(".", "[.]").replace("-L [.]*", "-L .*")


def daemons(shell: Shell, parent: str) -> list[str]:
    """Return the names of those directories below ``parent`` whose daemons live."""
    pattern = rf"ganesha[.]nfsd -f {re.escape(parent)}/[^/]+/ganesha[.]conf -L .*"
    done = shell.run(["pgrep", "-axf", pattern], check=False)
    found = (
        re.search(rf" -f {re.escape(parent)}/([^/]+)/", line) for line in done.stdout.split("\n")
    )
    return sorted({match[1] for match in found if match})


def serving_below(shell: Shell, parent: str) -> frozenset[str]:
    """Return the directories in ``parent`` whose daemons live; one process, however many they are.

    Raises :class:`~worker.errors.Retryable` when that cannot be told.
    """
    pattern = f"^ganesha.nfsd -f {parent}/".replace(".", "[.]")
    done = shell.run(["pgrep", "-af", pattern], check=False)
    if done.exit_code > 1:
        raise Retryable(f"The NFS servers below {parent} cannot be listed: {done.stderr.strip()}")
    return frozenset(re.findall(r" -f (\S+)/ganesha[.]conf ", done.stdout))


def check_directory(directory: str) -> None:
    """Raise :class:`~worker.errors.ConfigurationError` for a directory that ganesha cannot use."""
    if not _SAFE_PATH.match(directory) or ".." in directory.split("/"):
        raise ConfigurationError(
            f"The directory {directory!r} cannot hold a file server: use letters, digits and "
            f"._-/ only, starting with a slash and without `..`; change state_dir or the "
            f"backend's name."
        )


class Ganesha:
    """The NFS server of one share server, worked on through the server's shell.

    ``bind`` is the address to listen on, or ``0.0.0.0`` for all. Every call may be repeated after
    any crash and by several workers at once. Raises :class:`~worker.errors.Fatal` when the daemon
    does not take a configuration and :class:`~worker.errors.Retryable` when it does not answer.
    """

    def __init__(self, shell: Shell, directory: str, bind: str) -> None:
        check_directory(directory)
        self.shell = shell
        self.directory = directory
        self.bind = bind
        self._pattern = command_pattern(directory)

    def exported(self) -> list[str]:
        """Return the ids of the shares that have an export or an export id here."""
        found = self.shell.run(["sh", "-euc", _EXPORTED, "sh", self.directory]).stdout
        return sorted(set(found.split()))

    def exists(self) -> bool:
        """Return whether a server was ever set up in the directory."""
        return self.shell.read_file(f"{self.directory}/ganesha.conf") is not None

    def ensure_running(self) -> None:
        """Start the daemon with all its exports, unless it runs."""
        parts = [f"{self.directory}/{part}" for part in ("exports", "ids", "staged", "recovery")]
        self.shell.run(["mkdir", "-p", *parts])
        wanted = self._configuration()
        if self.shell.read_file(f"{self.directory}/ganesha.conf") != wanted:
            self.shell.write_file(f"{self.directory}/ganesha.conf", wanted)
        done = self._locked(_START, self.directory, self._pattern)
        if done.exit_code == _TOO_SLOW:
            raise Retryable(f"The NFS server in {self.directory} did not start within 10 s.")
        if done.exit_code != 0:
            raise Fatal(
                f"The NFS server in {self.directory} does not start; see its ganesha.log: "
                f"{done.stderr.strip()[-500:]}",
                code=self.shell.failure,
            )

    def running(self) -> bool:
        """Return whether the daemon runs."""
        return self.shell.run(["pgrep", "-xf", self._pattern], check=False).exit_code == 0

    def stop(self) -> None:
        """Kill the daemon; not running is fine."""
        if self._locked(_STOP, self._pattern).exit_code != 0:
            raise Retryable(f"The NFS server in {self.directory} does not end after SIGKILL.")

    def add_export(self, share_id: str, path: str) -> None:
        """Export ``path`` as ``/shares/<share id>`` to nobody; an export that is there stays."""
        self._install(share_id, path, (), 0)
        self._reload(share_id)

    def set_rules(
        self, share_id: str, path: str, rules: Sequence[AccessRule], generation: int
    ) -> None:
        """Replace the rules by exactly these; ignore a generation older than the enforced one."""
        export = self._export(share_id)
        before = self.shell.read_file(export)
        done = self._install(share_id, path, rules, generation)
        if done == _OLDER:
            return
        if done == _NO_EXPORT:
            raise Fatal(
                f"Share {share_id} is not exported on its server, so no rules can be set; "
                f"export it again with `sharewright share-server ensure`.",
                object=ObjectKind.SHARE.ref(share_id),
                code=ErrorCode.STORAGE_FAILED,
            )
        try:
            self._reload(share_id)
        except Fatal:
            if before is not None:
                self.shell.write_file(export, before)
                self._reload(share_id)
            raise

    def remove_export(self, share_id: str) -> None:
        """Remove the export; succeed when it is gone or the daemon does not run."""
        self._locked(_REMOVE, self.directory, share_id)
        if self.running():
            self._reload(share_id)

    def _install(
        self, share_id: str, path: str, rules: Sequence[AccessRule], generation: int
    ) -> int:
        claimed = self._locked(_CLAIM, f"{self.directory}/ids", share_id, str(EXPORT_IDS))
        number = claimed.stdout.strip()
        if claimed.exit_code != 0 or not number:
            raise Fatal(
                f"No export id could be taken for share {share_id} on the server in "
                f"{self.directory}: {claimed.stderr.strip()[-300:] or 'all are in use'}.",
                object=ObjectKind.SHARE.ref(share_id),
                code=ErrorCode.STORAGE_FAILED,
            )
        staged = f"{self.directory}/staged/{share_id}.{generation}"
        content = render_export(share_id, path, int(number), rules, generation)
        self.shell.write_file(staged, content)
        done = self._locked(_INSTALL, staged, self._export(share_id), str(generation))
        if done.exit_code not in {0, _OLDER, _NO_EXPORT}:
            raise Retryable(
                f"The export of share {share_id} could not be installed: {done.stderr.strip()}"
            )
        return done.exit_code

    def _reload(self, share_id: str) -> None:
        """Have the daemon read its exports and look into its log for what it made of this one."""
        done = self._locked(_RELOAD, self.directory, self._pattern)
        if done.exit_code == _GONE:
            self.ensure_running()
            done = self._locked(_RELOAD, self.directory, self._pattern)
        if done.exit_code != 0:
            raise Retryable(
                f"The NFS server in {self.directory} did not take up its exports within 5 s: "
                f"{done.stderr.strip()[-300:]}"
            )
        mine = [
            line.split(":CONFIG :", 1)[-1]
            for line in done.stdout.splitlines()
            if f"/{share_id}.conf:" in line or "syntax error" in line
        ]
        if mine:
            raise Fatal(
                f"The NFS server refused the export of share {share_id}: {' '.join(mine)[:500]}",
                object=ObjectKind.SHARE.ref(share_id),
                code=ErrorCode.STORAGE_FAILED,
            )

    def _locked(self, script: str, *arguments: str) -> Completed:
        return locked(self.shell, f"{self.directory}/ids", script, *arguments)

    def _export(self, share_id: str) -> str:
        return f"{self.directory}/exports/{share_id}.conf"

    def _configuration(self) -> str:
        return _SERVER.format(bind=self.bind, directory=self.directory)


_SERVER: Final = """\
NFS_CORE_PARAM {{
    Protocols = 4;
    NFS_Port = 2049;
    Bind_addr = {bind};
    Enable_NLM = false;
    Enable_RQUOTA = false;
    Enable_UDP = false;
    mount_path_pseudo = true;
}}
NFSv4 {{
    Graceless = true;
    RecoveryBackend = fs_ng;
    RecoveryRoot = {directory}/recovery;
    Only_Numeric_Owners = true;
}}
EXPORT_DEFAULTS {{
    SecType = sys;
    Access_Type = NONE;
    Squash = No_Root_Squash;
    Transports = TCP;
    Protocols = 4;
}}
%dir {directory}/exports
"""


def render_export(
    share_id: str, path: str, number: int, rules: Sequence[AccessRule], generation: int
) -> str:
    """Return an export file; clients match the first block that fits, so narrow ones come first.

    Raises :class:`~worker.errors.Fatal` for a rule that NFS cannot express.
    """
    if not _SAFE_PATH.match(path):
        raise Fatal(
            f"The path {path!r} of share {share_id} cannot be exported.",
            object=ObjectKind.SHARE.ref(share_id),
            code=ErrorCode.CONFIGURATION,
        )
    clients = "".join(
        f"    CLIENT {{ Clients = {clients}; Access_Type = {level}; Protocols = 4; }}\n"
        for clients, level in _clients(rules)
    )
    return (
        f"# generation {generation}\n"
        f"EXPORT {{\n"
        f"    Export_Id = {number};\n"
        f"    Path = {path};\n"
        f"    Pseudo = /shares/{share_id};\n"
        f"    FSAL {{ Name = VFS; }}\n"
        f"{clients}"
        f"}}\n"
    )


def _clients(rules: Sequence[AccessRule]) -> list[tuple[str, str]]:
    networks = sorted(
        ((_network(rule), _level(rule)) for rule in rules),
        # The same client twice: the lesser right (RO sorts before RW).
        key=lambda entry: (-_length(entry[0]), str(entry[0]), entry[1]),
    )
    return [(_written(network), level) for network, level in networks]


def _network(rule: AccessRule) -> IPNetwork:
    if rule.access_type != "ip":
        raise Fatal(
            f"Access rule {rule.id} is for {rule.access_type!r}, but NFS shares know clients by "
            f"address only; deny it and allow an `ip`.",
            object=ObjectKind.ACCESS_RULE.ref(rule.id),
            code=ErrorCode.NOT_SUPPORTED,
        )
    try:
        return client_network(rule.access_to)
    except ValueError as error:
        raise Fatal(
            f"Access rule {rule.id} names {rule.access_to!r}, which {error}; deny it and allow "
            f"the right one.",
            object=ObjectKind.ACCESS_RULE.ref(rule.id),
            code=ErrorCode.INVALID_REQUEST,
        ) from error


def _level(rule: AccessRule) -> str:
    if rule.access_level not in _LEVELS:
        raise Fatal(
            f"Access rule {rule.id} asks for level {rule.access_level!r}; there are ro and rw.",
            object=ObjectKind.ACCESS_RULE.ref(rule.id),
            code=ErrorCode.INVALID_REQUEST,
        )
    return _LEVELS[rule.access_level]


def _length(network: IPNetwork) -> int:
    """Prefix length on one scale: an IPv4 network is as narrow as its IPv4-mapped one."""
    return int(network.prefixlen) + (96 if network.version == 4 else 0)  # noqa: PLR2004


def _written(network: IPNetwork) -> str:
    """Return a client as ganesha 4.3 reads it.

    It refuses ``/0``, ``::`` at the start of an address, and an IPv6 prefix of three digits, but
    reads every address without a prefix.
    """
    halves = network.subnet(1) if network.prefixlen == 0 else [network]
    if network.version == 4:  # noqa: PLR2004 - the version's own number
        return ", ".join(str(half) for half in halves)
    if network.prefixlen >= UNREADABLE_PREFIXES.stop:
        return ", ".join(address.format(ipv6_verbose) for address in network)
    return ", ".join(f"{half.ip.format(ipv6_verbose)}/{half.prefixlen}" for half in halves)
