#!/bin/sh
# Keeps one model server running: supervise.sh FOLDER
#
# FOLDER holds `run` (the server's command), and here appear: log (rotated to log.1 … log.3), supervisor.pid,
# server.pid and restarts (crashes since this supervisor began). A server that ends is started again after 1, 2, 4 …
# 60 s; one that lived for 60 s starts anew at 1. TERM or INT ends the server (KILL after 10 s), then the supervisor.
# One supervisor a folder: a second one finds the first alive and leaves with status 3.
set -u
cd "$1" || exit 1
umask 077

LOG_LIMIT=${SWARMCTL_LOG_LIMIT:-10485760}
LOG_CHECK=${SWARMCTL_LOG_CHECK:-10}
LONGEST_DELAY=60
LONG_LIFE=60
GRACE=10

say() {
    printf '%s supervisor: %s\n' "$(date '+%Y-%m-%dT%H:%M:%S%z')" "$1" >>log
}

# Is PID a supervisor of this very folder? A recycled number is not.
supervises() {
    kill -0 "$1" 2>/dev/null || return 1
    case $(ps -ww -p "$1" -o args= 2>/dev/null || tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null) in
        *supervise.sh*"${PWD##*/}"*) return 0 ;;
        *) return 1 ;;
    esac
}

# mkdir is the one atomic test-and-set that every filesystem has. A lock whose owner is dead is removed, once.
claim() {
    for try in 1 2 3; do
        if mkdir lock 2>/dev/null; then
            echo $$ >lock/pid
            return 0
        fi
        owner=$(cat lock/pid 2>/dev/null)
        if [ -z "$owner" ]; then
            sleep 1 # between its mkdir and its echo, or cut right there
            owner=$(cat lock/pid 2>/dev/null)
        fi
        [ -n "$owner" ] && supervises "$owner" && return 1
        mv lock "lock.stale.$$" 2>/dev/null && rm -rf "lock.stale.$$"
    done
    return 1
}

# Copy, then truncate: the server keeps its descriptor, opened for appending.
rotate() {
    size=$(wc -c <log 2>/dev/null) || return 0
    [ "$size" -gt "$LOG_LIMIT" ] || return 0
    [ -f log.2 ] && mv -f log.2 log.3
    [ -f log.1 ] && mv -f log.1 log.2
    cp log log.1 && : >log
}

# Naps in the background, so that a signal ends the nap and nothing is left behind.
nap() {
    sleep "$1" &
    napping=$!
    wait "$napping"
    napping=
}

rotate_for_ever() {
    napping=
    trap '[ -n "$napping" ] && kill "$napping" 2>/dev/null; exit 0' TERM INT
    while kill -0 "$supervisor" 2>/dev/null; do
        nap "$LOG_CHECK"
        rotate
    done
}

kill_later() {
    napping=
    trap '[ -n "$napping" ] && kill "$napping" 2>/dev/null; exit 0' TERM INT
    nap "$GRACE"
    kill -KILL "$1" 2>/dev/null
}

stop() {
    signals=$((signals + 1))
    [ -n "$stopping" ] && return
    stopping=yes
    [ -n "$napping" ] && kill "$napping" 2>/dev/null
    if [ -n "$child" ]; then
        kill -TERM "$child" 2>/dev/null
        kill_later "$child" &
        killer=$!
    fi
}

# A folder that was removed, or that another supervisor has, is ours no longer.
ours() {
    [ "$(cat lock/pid 2>/dev/null)" = "$$" ]
}

leave() {
    say "stopped"
    [ -n "$killer" ] && kill -TERM "$killer" 2>/dev/null
    kill -TERM "$rotator" 2>/dev/null
    if ours; then
        rm -f server.pid supervisor.pid
        rm -rf lock
    fi
    exit 0
}

stopping='' signals=0 child='' napping='' killer='' delay=1 restarts=0 supervisor=$$
claim || exit 3
trap stop TERM INT
trap '' HUP PIPE
echo $$ >supervisor.pid
echo 0 >restarts
rotate_for_ever &
rotator=$!
say "began"

while [ -z "$stopping" ]; do
    born=$(date +%s)
    ./run </dev/null >>log 2>&1 &
    child=$!
    echo "$child" >server.pid
    [ -n "$stopping" ] && kill -TERM "$child" 2>/dev/null # the signal came just before the child was known
    while :; do
        before=$signals
        wait "$child"
        status=$?
        [ "$before" = "$signals" ] && break # not merely interrupted by our own trap
    done
    child=''
    rm -f server.pid
    if [ -n "$stopping" ] || ! ours; then break; fi
    [ $(($(date +%s) - born)) -ge "$LONG_LIFE" ] && delay=1
    restarts=$((restarts + 1))
    echo "$restarts" >restarts
    say "the server ended with status $status; restart $restarts in $delay s"
    nap "$delay"
    ours || break
    delay=$((delay * 2))
    [ "$delay" -gt "$LONGEST_DELAY" ] && delay=$LONGEST_DELAY
done
leave
