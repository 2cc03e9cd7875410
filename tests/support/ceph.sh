#!/bin/bash
# ceph.sh up|down DIR [PORT]: a real S3 server, Ceph's RADOS gateway, on 127.0.0.1:PORT.
# Its monitor listens on PORT+1; nothing else is opened. Data survive down and up. Starts in 20 s.
# Needs: apt-get install -y --no-install-recommends ceph-mon ceph-osd radosgw curl
# `up` prints the environment, NAME=VALUE: export $(tests/support/ceph.sh up DIR)
set -euo pipefail
action=$1
dir=$(mkdir -p "$2" && cd "$2" && pwd)
port=${3:-8000}
key=${AWS_ACCESS_KEY_ID:-testkey}
secret=${AWS_SECRET_ACCESS_KEY:-testsecret}
export CEPH_CONF=$dir/ceph.conf

down() {
  local name pid
  for name in client.rgw.a osd.0 mon.a; do # this order: an osd without its mon hangs
    pid=$(cat "$dir/$name.pid" 2>/dev/null) || continue
    rm -f "$dir/$name.pid"
    grep -qsE 'ceph|radosgw' "/proc/$pid/comm" || continue # the number may be another's by now
    kill "$pid"
    timeout 10 tail --pid="$pid" -f /dev/null || kill -9 "$pid" || true
  done
}

configure() {
  local part
  cat >"$CEPH_CONF" <<END
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = v2:127.0.0.1:$((port + 1))/0
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth allow insecure global id reclaim = false
keyring = $dir/keyring
run dir = $dir
admin socket =
pid file = $dir/\$name.pid
log file = $dir/\$name.log
mon cluster log file = $dir/cluster.log
mon data = $dir/mon
mon data avail crit = 1
mon allow pool size one = true
osd data = $dir/osd
osd objectstore = bluestore
$(for part in ms osd rgw bluestore rocksdb bluefs bdev objecter; do echo "debug $part = 0/0"; done)
bluestore block size = 8589934592
osd memory target = 939524096
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
[client.rgw.a]
keyring = $dir/keyring
rgw data = $dir/rgw
rgw frontends = beast endpoint=127.0.0.1:$port
END
}

new_key() { ceph-authtool "$dir/keyring" --gen-key "$@" >/dev/null; }

create() { # a cluster of one monitor and one disk (a sparse file)
  local osd
  rm -rf "$dir"/{mon,osd,rgw,monmap}
  mkdir "$dir"/{mon,osd,rgw}
  configure
  (umask 077 && : >"$dir/keyring")
  new_key -n mon. --cap mon 'allow *'
  new_key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
  new_key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
  new_key -n client.rgw.a --cap mon 'allow rw' --cap osd 'allow rwx'
  monmaptool --create --fsid "$(sed -n 's/^fsid = //p' "$CEPH_CONF")" \
    --addv a "[v2:127.0.0.1:$((port + 1))]" "$dir/monmap" >/dev/null
  ceph-mon --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
  ceph-mon -i a
  osd=$(cat /proc/sys/kernel/random/uuid)
  ceph --connect-timeout 20 osd new "$osd" 0 >/dev/null
  ceph-osd -i 0 --mkfs --osd-uuid "$osd" >/dev/null 2>&1
  touch "$dir/ready"
}

up() {
  if [ -e "$dir/ready" ]; then ceph-mon -i a; else create; fi
  ceph-osd -i 0 >/dev/null 2>&1
  timeout 60 sh -c 'until ceph --connect-timeout 5 osd stat | grep -q "1 up"; do sleep .2; done'
  radosgw -n client.rgw.a >/dev/null 2>&1
  timeout 60 sh -c "until curl -sfo /dev/null http://127.0.0.1:$port/; do sleep .2; done"
  local admin="radosgw-admin -n client.rgw.a user"
  $admin info --uid=test >/dev/null 2>&1 ||
    $admin create --uid=test --display-name=test --access-key="$key" --secret-key="$secret" \
      >/dev/null 2>&1
}

if [ "$action" = down ]; then
  down
  exit
fi
for p in "$port" $((port + 1)); do
  ! (: <>"/dev/tcp/127.0.0.1/$p") 2>/dev/null || { echo "port $p is in use" >&2; exit 1; }
done
trap 'tail -n5 "$dir"/*.log >&2; down' ERR
set -E # the trap holds in functions too
up
cat <<END
AWS_ENDPOINT_URL=http://127.0.0.1:$port
AWS_ACCESS_KEY_ID=$key
AWS_SECRET_ACCESS_KEY=$secret
AWS_REGION=us-east-1
AWS_DEFAULT_REGION=us-east-1
AWS_EC2_METADATA_DISABLED=true
AWS_REQUEST_CHECKSUM_CALCULATION=when_required
CEPH_CONF=$CEPH_CONF
END
