#!/bin/sh
# nfs-ganesha 4.3 (Debian 12, 4.3-2) reads an IPv6 network in a CLIENT block only while its prefix
# length has one or two digits. fd00:20::/64 and fd00:20::/99 are accepted; fd00:20::/100 and the
# usual way to name one host, fd00:20::77/128, are syntax errors, and the daemon does not start.
# An address without a prefix is accepted. IPv4 has no such limit, as its prefixes end at 32.
#
# Output seen:
#   fd00:20::/64      accepted
#   fd00:20::/99      accepted
#   fd00:20::/100     refused: syntax error
#   fd00:20::77/128   refused: syntax error
#   fd00:20::77       accepted
set -eu
version=4.3-2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"

for package in nfs-ganesha=$version libntirpc4.3 libnfsidmap1 liburcu8 libwbclient0 \
    libdbus-1-3 libgssapi-krb5-2 libkrb5-3 libcap2 libblkid1 libuuid1 libacl1; do
    apt-get -q -q -o APT::Sandbox::User=root download "$package" >/dev/null
done
for deb in *.deb; do dpkg -x "$deb" root; done
libraries=$(find "$work/root" -type d -name '*-linux-gnu' -path '*/lib/*' | tr '\n' ':')
export LD_LIBRARY_PATH="$work/root/usr/lib/ganesha:$libraries"

# The configuration is read whole before anything is served; without the module of its file system
# the daemon ends soon after in any case, so only what it logs of the configuration counts.
verdict() {
    cat >ganesha.conf <<END
NFS_CORE_PARAM { Protocols = 4; NFS_Port = 0; Enable_UDP = false; Enable_NLM = false;
                 Enable_RQUOTA = false; Plugins_Dir = $work; }
EXPORT { Export_Id = 1; Path = $work; Pseudo = /x; Access_Type = NONE; Protocols = 4;
         FSAL { Name = VFS; } CLIENT { Clients = $1; Access_Type = RO; } }
END
    rm -f ganesha.log
    timeout 20 root/usr/bin/ganesha.nfsd -F -L "$work/ganesha.log" -f ganesha.conf \
        -p "$work/ganesha.pid" >/dev/null 2>&1 || true
    if grep -q 'syntax error' ganesha.log; then
        echo "refused: syntax error"
    elif grep -q 'Configuration file successfully parsed' ganesha.log; then
        echo accepted
    else
        echo "neither: $(tail -1 ganesha.log)"
    fi
}

failed=0
while read -r network expected; do
    seen=$(verdict "$network")
    printf '%-17s %s\n' "$network" "$seen"
    [ "$seen" = "$expected" ] || failed=1
done <<END
fd00:20::/64 accepted
fd00:20::/99 accepted
fd00:20::/100 refused: syntax error
fd00:20::77/128 refused: syntax error
fd00:20::77 accepted
END
exit $failed
