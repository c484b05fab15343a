#!/usr/bin/env bash
# One archive that runs on any x86-64 Linux with a glibc at least as new as this machine's: the program stripped, every
# library that it loads but glibc's, their licences, a launcher. Unpacks it, runs it with nothing else around, and fails
# where it has more than 20 MiB (ekiben_archive_bytes_max), or where a library comes from outside it.
#
#   tools/release_archive.sh build/release/ekiben ekiben.tar.xz
set -euo pipefail
program=${1:?usage: tools/release_archive.sh PROGRAM OUT.tar.xz}
out=${2:?usage: tools/release_archive.sh PROGRAM OUT.tar.xz}
bytes_max=${ekiben_archive_bytes_max:-$((20 << 20))}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

folder=$work/ekiben
mkdir -p "$folder/lib" "$folder/licenses"
cp "$program" "$folder/lib/ekiben"
ldd "$program" | awk '$3 ~ /^\// {print $3}' | while read -r library; do
  # By the real file's package: /lib is a link to /usr/lib, and dpkg knows either.
  package=$(dpkg-query -S "$(readlink -f "$library")" 2>/dev/null || dpkg-query -S "$library" 2>/dev/null || true)
  package=${package%%:*}
  [ "$package" = libc6 ] && continue
  cp -L "$library" "$folder/lib/"
  if [ -n "$package" ] && [ ! -e "$folder/licenses/$package" ]; then
    cp -L "/usr/share/doc/$package/copyright" "$folder/licenses/$package" 2>/dev/null ||
      echo "release_archive: no licence found for $package ($library)" >&2
  fi
done
chmod u+w "$folder"/lib/*
strip "$folder"/lib/*
cp "$root/LICENSE" "$root/README.md" "$folder/"
cat >"$folder/ekiben" <<'LAUNCHER'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$here/lib/ekiben" "$@"
LAUNCHER
chmod +x "$folder/ekiben"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" -c ekiben | xz -9e >"$out"

mkdir "$work/unpacked"
tar -C "$work/unpacked" -xf "$out"
there=$work/unpacked/ekiben
env -i PATH="$PATH" "$there/ekiben" --version
foreign=$(env -i LD_LIBRARY_PATH="$there/lib" ldd "$there/lib/ekiben" | awk '$2 == "=>" {print $1, $3}' |
  grep -v " $there/" | grep -vE '^lib(c|m|dl|rt|pthread|resolv)\.so' || true)
[ -z "$foreign" ] || { echo "release_archive: from outside the archive: $foreign" >&2; exit 1; }
bytes=$(stat -c %s "$out")
libraries=$(($(find "$there/lib" -type f | wc -l) - 1))
awk -v b="$bytes" -v p="$(stat -c %s "$there/lib/ekiben")" -v n="$libraries" -v u="$(du -sb "$there" | cut -f1)" -v f="$out" 'BEGIN {
  printf "%s: %.1f MiB (%d bytes); unpacked %.1f MiB, of which the program %.1f and %d libraries the rest\n",
         f, b / 1048576, b, u / 1048576, p / 1048576, n }'
[ "$bytes" -le "$bytes_max" ] || { echo "release_archive: more than $bytes_max bytes" >&2; exit 1; }
