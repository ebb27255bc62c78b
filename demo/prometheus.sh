#!/usr/bin/env bash
# Prometheus and promtool for the tests of the metrics, out of Debian's own package: downloaded and unpacked into
# ~/.cache/swarmctl/tools, so that nothing is installed, no service starts and no port opens. Needs no root. Where there
# is no apt, or it does not know the package, it says so, and those tests are left out.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
tools=${XDG_CACHE_HOME:-$HOME/.cache}/swarmctl/tools
if command -v promtool >/dev/null && command -v prometheus >/dev/null; then exit 0; fi
compgen -G "$tools/prometheus-*/usr/bin/promtool" >/dev/null && exit 0

leave_out() {
  echo "── No Prometheus here ($1). Tests that need it will be left out." >&2
  exit 0
}

command -v apt-get >/dev/null || leave_out "there is no apt"
command -v dpkg-deb >/dev/null || leave_out "there is no dpkg"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt's own user writes there
cd "$work"
if ! apt-get -qq download prometheus 2>/dev/null; then
  if [[ $(id -u) -eq 0 ]]; then apt-get -qq update 2>/dev/null || true; fi
  apt-get -qq download prometheus 2>/dev/null || leave_out "apt cannot download the package prometheus"
fi
package=$(echo prometheus_*.deb)
version=$(dpkg-deb -f "$package" Version | tr -c 'A-Za-z0-9.+\n' -)
echo "── Unpacking Prometheus $version" >&2
mkdir -p "$tools"
dpkg-deb -x "$package" "$work/tree"
rm -rf "$tools/prometheus-$version"
mv "$work/tree" "$tools/prometheus-$version"
