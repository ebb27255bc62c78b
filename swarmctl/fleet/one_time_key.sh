#!/bin/sh
# What a one-time key writes on two hosts, and how it goes again; one_time_key.py calls it verb by verb.
# ~/.ssh/authorized_keys is replaced whole, by a rename, and only where it still is what was read.
set -u
umask 077
PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
keys=$HOME/.ssh/authorized_keys

make() { # FILE COMMENT KNOWN_HOSTS: a key pair whose private half never leaves this host; prints the public one
    mkdir -p -- "$(dirname -- "$1")" || exit 1
    command -v ssh >/dev/null 2>&1 || { echo "there is no ssh" >&2; exit 4; }
    ssh-keygen -q -t ed25519 -N '' -C "$2" -f "$1" </dev/null || exit 4
    printf '%s\n' "$3" > "$1.hosts" && cat "$1.pub"
}

forget() { # FILE: make's files, and the ssh that still uses them
    if [ -s "$1.pid" ] && ps -o args= -p "$(cat "$1.pid")" 2>/dev/null | grep -qF -- "$1"; then
        kill "$(cat "$1.pid")"
    fi
    rm -f -- "$1" "$1.pub" "$1.hosts" "$1.pid"
}

look() { # the time as sshd reads it, then this host's addresses with the port sshd was reached at
    unset TZ
    date +%Y%m%d%H%M%S
    # client address, client port, our address, our port
    # shellcheck disable=SC2086
    set -- ${SSH_CONNECTION:-}
    [ $# -eq 4 ] || exit 0
    port=$4
    for address in "$3" $(hostname -I 2>/dev/null); do
        printf '%s %s\n' "$address" "$port"
    done
}

allow() { # ID LINE WORD_FILE WORD: one line more in authorized_keys, and the word that proves the way
    mkdir -p -- "$(dirname -- "$3")" && printf '%s\n' "$4" > "$3" || exit 1
    made=
    [ -d "$HOME/.ssh" ] || { mkdir -- "$HOME/.ssh" || exit 1; made=" made-folder"; }
    [ -e "$keys" ] || [ -L "$keys" ] || { : > "$keys" || exit 1; made="$made made-file"; }
    change "$1" append "$2$made"
}

forbid() { # ID WORD_FILE: undo allow
    rm -f -- "$2"
    rm -f -- "$keys.$1.was" "$keys.$1.new"
    grep -q " swarmctl-one-time-$1" "$keys" 2>/dev/null || return 0
    made=$(grep " swarmctl-one-time-$1" "$keys")
    change "$1" without "$1" || return 1
    case $made in *made-file*) [ -s "$keys" ] || rm -f -- "$keys" ;; esac
    case $made in *made-folder*) rmdir -- "$HOME/.ssh" 2>/dev/null ;; esac
    return 0
}

append() { # FROM TO LINE
    end=
    [ ! -s "$1" ] || [ -z "$(tail -c 1 -- "$1")" ] || end='
'
    printf '%s%s\n' "$end" "$3" >> "$2"
}

without() { # FROM TO ID
    LC_ALL=C sed "/ swarmctl-one-time-$3/d" < "$1" > "$2"
}

change() { # ID EDIT ARGUMENT: authorized_keys as EDIT makes it; again where somebody else changed it meanwhile
    was=$keys.$1.was new=$keys.$1.new
    # shellcheck disable=SC2015,SC3067
    [ ! -L "$keys" ] && [ -f "$keys" ] && [ -w "$keys" ] && [ -O "$keys" ] || {
        echo "its ~/.ssh/authorized_keys is a link or not that user's own" >&2
        return 5
    }
    for _ in 1 2 3 4 5; do
        # shellcheck disable=SC2015
        cp -p -- "$keys" "$was" && cp -p -- "$keys" "$new" && "$2" "$was" "$new" "$3" || break
        if cmp -s -- "$keys" "$was"; then
            mv -f -- "$new" "$keys" && rm -f -- "$was" && return 0
            break
        fi
    done
    rm -f -- "$was" "$new"
    echo "its ~/.ssh/authorized_keys could not be written" >&2
    return 1
}

verb=$1
shift
"$verb" "$@"
