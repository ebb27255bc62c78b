#!/usr/bin/env bash
# See that the system programs named as arguments (sshd, ip) are there. Root on Debian or Ubuntu gets them installed;
# anybody else is told the one command. A missing sshd is an error, a missing ip only leaves tests out.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

missing=()
for program in "$@"; do
  command -v "$program" >/dev/null && continue
  case $program in
    sshd) missing+=(openssh-server) ;;
    ip) missing+=(iproute2) ;;
  esac
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
  echo "── Installing ${missing[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  # Only the program is wanted: without a policy the package would start an SSH server on port 22.
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get -qq update || { sleep 5; apt-get -qq update; } || true
  apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null </dev/null
  exit 0
fi

if [[ " ${missing[*]} " == *" openssh-server "* ]]; then
  cat >&2 <<END
The lab's hosts are real OpenSSH servers, and this machine has no sshd. On Debian and Ubuntu:

    sudo apt-get install openssh-server

It need not run as a service: the lab starts its own, as you, on loopback ports.
END
  exit 1
fi
echo "── Not here: ${missing[*]}. Tests that need network namespaces will be left out." >&2
