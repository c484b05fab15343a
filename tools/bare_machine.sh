#!/usr/bin/env bash
# What a first user sees: a Debian 12 with nothing but git (debootstrap, in a chroot), a fresh clone, `./dev run` until the
# first streamed answer, `./dev run` again, and with `--test` a second fresh clone and `./dev test`. Prints seconds. Needs root,
# debootstrap and the network; the page cache is dropped first.
#
#   tools/bare_machine.sh /tmp/bare [--test]
#
# A network that needs certificates or apt settings of its own: they are taken over from this machine.
set -euo pipefail
folder=${1:?usage: tools/bare_machine.sh FOLDER [--test]}
repository=$(cd "$(dirname "$0")/.." && git rev-parse --show-toplevel)
port=3999

mounts=(proc sys dev)
unmount() { for m in "${mounts[@]}"; do mountpoint -q "$folder/$m" && umount "$folder/$m"; done; return 0; }
[ -e "$folder" ] && { echo "bare_machine: $folder exists; name a new folder" >&2; exit 2; }
trap unmount EXIT
debootstrap --variant=minbase bookworm "$folder" >/dev/null
mount -t proc proc "$folder/proc"
mount -t sysfs sys "$folder/sys"
mount --bind /dev "$folder/dev"
cp /etc/resolv.conf "$folder/etc/"
echo "127.0.0.1 localhost" >"$folder/etc/hosts"
mkdir -p "$folder/usr/local/share/ca-certificates"
cp /usr/local/share/ca-certificates/*.crt "$folder/usr/local/share/ca-certificates/" 2>/dev/null || true
cp /etc/apt/apt.conf.d/* "$folder/etc/apt/apt.conf.d/" 2>/dev/null || true
{
  echo "deb http://deb.debian.org/debian bookworm main"
  echo "deb http://deb.debian.org/debian bookworm-updates main"
  echo "deb http://deb.debian.org/debian-security bookworm-security main"
} >"$folder/etc/apt/sources.list"

exec_inside() {
  exec chroot "$folder" env -i HOME=/root CI=true PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c "$1"
}
inside() { (exec_inside "$1"); }
# What a person has who clones: git and certificates.
inside 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends git ca-certificates' \
  >/dev/null 2>&1
git clone -q --bare "$repository" "$folder/origin.git"
inside 'cd /root && git clone -q /origin.git first'
echo "commit $(git -C "$folder/origin.git" rev-parse --short HEAD), $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg)"

answered() {
  curl -sf -N "http://127.0.0.1:$port/v1/chat/completions" -H 'Content-Type: application/json' -d '{
    "model": "SmolLM2-135M-Instruct", "stream": true, "max_tokens": 5,
    "messages": [{"role": "user", "content": "Why is the sky blue?"}]}' >"$folder/answer" 2>/dev/null &&
    grep -q '"content":"[^"]' "$folder/answer"
}
first_answer() {
  local begin
  begin=$(date +%s.%N)
  exec_inside "cd /root/first && exec ./dev run --port $port" >"$folder/run.log" 2>&1 &
  local run=$!
  until answered; do
    kill -0 $run 2>/dev/null || { tail -5 "$folder/run.log" >&2; exit 1; }
    sleep 0.2
  done
  echo "$1: $(echo "$(date +%s.%N) - $begin" | bc) s to the first streamed answer"
  kill -TERM $run
  wait $run || true
}
sync
echo 3 >/proc/sys/vm/drop_caches
first_answer "./dev run, nothing installed"
first_answer "./dev run, again"

if [ "${2:-}" = --test ]; then
  begin=$(date +%s)
  inside 'cd /root && git clone -q /origin.git second && cd second && ./dev test' >"$folder/test.log" 2>&1 || true
  echo "./dev test, compile cache of the first clone at hand: $(($(date +%s) - begin)) s: $(tail -1 "$folder/test.log")"
fi
