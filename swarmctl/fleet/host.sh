# What swarmctl does on a host, one function a verb: sh -s -- VERB DATA_DIR ARGUMENTS… <host.sh
#
# POSIX sh and the tools every system has. It comes on stdin, whole or not at all (the last line runs the verb), so
# that any login shell will do; a verb's own input lies in a file, named by PAYLOAD. Every verb can be cut anywhere and run again: things are made under
# another name and renamed last. Exit statuses that mean something: 4 a tool is missing (its name on stderr),
# 5 a runtime does not run here, 6 somebody else holds the lock (who, on stdout).
set -u
umask 077

free() { # bytes free at DATA_DIR, or at the nearest folder above it that exists
    at=$data
    while [ ! -d "$at" ]; do at=$(dirname "$at"); done
    df -Pk "$at" | awk 'NR == 2 { printf "%.0f\n", $4 * 1024 }'
}

prepare() {
    mkdir -p "$data/blobs" "$data/servers" "$data/runtimes/llamacpp" "$data/runtimes/ollama" "$data/ollama" \
        "$data/incoming" || return 1
    find "$data/incoming" -type f -mtime +7 -exec rm -f {} + # left by runs that were killed
}

# --- the lock: mkdir is atomic; `until` is a lease, so that a laptop that died does not lock a host for ever

lock() { # OWNER SECONDS DEAD_OWNER: take it, extend our own, or say who has it; DEAD_OWNER's may be taken over
    mkdir -p "$data" || exit 1
    folder=$data/lock
    if [ -f "$folder" ]; then rm -f "$folder"; fi # a file in its place is nobody's lock
    now=$(date +%s)
    for try in 1 2 3; do
        if mkdir "$folder" 2>/dev/null; then break; fi
        holder=$(cat "$folder/owner" 2>/dev/null)
        until=$(cat "$folder/until" 2>/dev/null)
        if [ "$holder" = "$1" ]; then break; fi
        if [ -z "$until" ] && [ -z "$(find "$folder" -maxdepth 0 -mmin +1 2>/dev/null)" ]; then
            echo "somebody"
            exit 6
        fi
        # the owner may have been read a moment before it was written: no name is nobody's
        if [ "${until:-0}" -gt "$now" ] && { [ -z "$3" ] || [ "$holder" != "$3" ]; }; then
            echo "${holder:-somebody}"
            exit 6
        fi
        mv "$folder" "$folder.stale.$$" 2>/dev/null && rm -rf "$folder.stale.$$"
    done
    echo "$1" >"$folder/owner.part" && mv "$folder/owner.part" "$folder/owner" || exit 1
    echo $((now + $2)) >"$folder/until.part" && mv "$folder/until.part" "$folder/until" || exit 1
}

unlock() { # OWNER
    if [ "$(cat "$data/lock/owner" 2>/dev/null)" = "$1" ]; then rm -rf "$data/lock"; fi
}

# --- runtimes

install() { # KEY: unpack incoming/KEY.tar.gz, see that it runs here, and only then give it its name
    prepare || exit 1
    part=$data/runtimes/llamacpp/.part-$1
    rm -rf "$part"
    trap 'rm -rf "$part"' EXIT
    mkdir -p "$part" && tar -xzf "$data/incoming/$1.tar.gz" -C "$part" || exit 1
    finish "$1" "$part"
    rm -f "$data/incoming/$1.tar.gz"
}

finish() { # KEY PART: check, mark and name a runtime
    "$2/bin/llama-server" --version >/dev/null 2>"$2/why" || {
        tail -n 3 "$2/why" >&2
        exit 5
    }
    rm -f "$2/why"
    : >"$2/.complete"
    old=$data/runtimes/llamacpp/$1
    if [ -e "$old" ]; then rm -rf "$old.old" && mv "$old" "$old.old"; fi
    mv "$2" "$old" && rm -rf "$old.old"
}

pack() { # KEY: make outgoing/KEY.tar.gz of an installed runtime and print its path
    from=$data/runtimes/llamacpp/$1
    [ -f "$from/.complete" ] || exit 1
    mkdir -p "$data/outgoing"
    to=$data/outgoing/$1.tar.gz
    tar -czf "$to.$$" -C "$from" bin && mv "$to.$$" "$to" && echo "$to"
}

unpacked() { # KEY: the copy made by pack has been fetched
    rm -f "$data/outgoing/$1.tar.gz"
}

install_ollama() { # VERSION ARCHIVE: unpack incoming/ARCHIVE, see that it is that release and runs, then name it
    prepare || exit 1
    archive=$data/incoming/$2
    part=$data/runtimes/ollama/.part-$1
    rm -rf "$part"
    trap 'rm -rf "$part"' EXIT
    mkdir -p "$part" || exit 1
    case $2 in
        *.zst)
            command -v zstd >/dev/null || {
                echo "zstd (to unpack $2)" >&2
                exit 4
            }
            zstd -dcq "$archive" | tar -xf - -C "$part" || exit 1
            ;;
        *) tar -xzf "$archive" -C "$part" || exit 1 ;;
    esac
    mkdir -p "$part/home"
    said=$(HOME=$part/home OLLAMA_HOST=127.0.0.1:1 "$part/bin/ollama" --version 2>&1) || {
        echo "$said" | tail -n 3 >&2
        exit 5
    }
    rm -rf "${part:?}/home"
    found=$(echo "$said" | sed -n 's/.*version is //p' | tail -n 1)
    if [ "$found" != "$1" ]; then
        echo "$2 holds release $found and not $1; say the one you mean in the inventory's ollama.version" >&2
        exit 1
    fi
    : >"$part/.complete"
    old=$data/runtimes/ollama/$1
    if [ -e "$old" ]; then rm -rf "$old.old" && mv "$old" "$old.old"; fi
    mv "$part" "$old" && rm -rf "$old.old" "$archive"
}

pack_ollama() { # KEY BINARY: make outgoing/KEY.tar.gz of an Ollama, wherever it is installed, and print its path
    root=$(dirname "$(dirname "$(readlink -f "$2")")")
    [ -x "$root/bin/ollama" ] && [ -d "$root/lib/ollama" ] || {
        echo "$2 has no lib/ollama beside its bin" >&2
        exit 1
    }
    mkdir -p "$data/outgoing"
    to=$data/outgoing/$1.tar.gz
    tar -czf "$to.$$" -C "$root" bin/ollama lib/ollama && mv "$to.$$" "$to" && echo "$to"
}

version() { # PAYLOAD: append a line to the history of versions; a line that a kill tore stays alone
    prepare || exit 1
    history=$data/runtimes/versions.jsonl
    if [ -s "$history" ] && [ -n "$(tail -c 1 "$history")" ]; then echo >>"$history" || exit 1; fi
    cat "$1" >>"$history" || exit 1
    rm -f "$1"
    sync
}

# --- building, detached from the connection; build.sh does the work

build() { # PAYLOAD KEY JOBS SDIST SOURCE_FOLDER TARGETS FLAGS…: begin, unless it is under way; PAYLOAD is build.sh
    key=$2
    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || {
        echo "a C++ compiler" >&2
        exit 4
    }
    folder=$data/builds/$key
    mkdir -p "$folder" || exit 1
    if building "$folder"; then exit 0; fi
    mv "$1" "$folder/build.sh" || exit 1
    rm -f "$folder/status" "$folder/pid"
    : >"$folder/log"
    shift 2
    detached nice -n 10 sh "$folder/build.sh" "$data" "$key" "$@" >>"$folder/log"
    tries=0  # until it has written its pid nobody could tell it from a build that was cut off
    until [ -f "$folder/pid" ] || [ -f "$folder/status" ] || [ $tries -ge 20 ]; do
        sleep 1
        tries=$((tries + 1))
    done
}

building() {
    pid=$(cat "$1/pid" 2>/dev/null) && [ -n "$pid" ] && runs "$pid" "$1/build.sh"
}

build_state() { # KEY OFFSET: `running|ended|lost SIZE STATUS`, then the log from byte OFFSET to SIZE
    folder=$data/builds/$1
    state=running
    building "$folder" || state=lost
    if [ -f "$folder/status" ]; then state=ended; fi # asked last: it may just have ended
    size=$(wc -c 2>/dev/null <"$folder/log" | tr -d ' ')
    echo "$state ${size:-0} $(cat "$folder/status" 2>/dev/null)"
    tail -c +"$(($2 + 1))" "$folder/log" 2>/dev/null | head -c "$((${size:-0} - $2))"
}

build_stop() { # KEY: end a build and all its compilers; the next one goes on where it stopped
    folder=$data/builds/$1
    if building "$folder"; then kill -TERM -"$pid" 2>/dev/null || kill -TERM "$pid"; fi
}

# --- servers

start() { # PAYLOAD NAME MODE UNIT: put the folder that comes as a tar in place and start it
    prepare || exit 1
    tarball=$1
    shift
    folder=$data/servers/$1
    new=$data/servers/.new-$1-$$
    trap 'rm -rf "$new"' EXIT
    mkdir -p "$new" && tar -xf "$tarball" -C "$new" && rm -f "$tarball" || exit 1
    [ ! -d "$folder" ] || halt "$1" "$(cat "$folder/mode" 2>/dev/null)" "$3"
    mkdir -p "$folder" || exit 1
    rm -f "$folder/speed.json" "$folder/digest"
    if [ "$1" = ollama ]; then rm -f "$data/ollama"/speed-*.json; fi
    for file in run supervise.sh mode unit digest; do
        if [ -f "$new/$file" ]; then mv "$new/$file" "$folder/$file" || exit 1; fi
    done
    if [ "$2" = systemd ]; then
        units=$HOME/.config/systemd/user
        mkdir -p "$units" && cp "$folder/unit" "$units/$3" || exit 1
        user_systemd daemon-reload && user_systemd enable --now "$3"
    else
        detached sh "$folder/supervise.sh" "$folder" >/dev/null
    fi
}

stop() { # NAME MODE UNIT: end a server and forget it; its log goes with it
    folder=$data/servers/$1
    [ -d "$folder" ] || exit 0
    halt "$1" "$2" "$3"
    rm -f "$folder/digest"
    rm -rf "$folder"
}

halt() { # NAME MODE UNIT
    if [ "$2" = systemd ]; then
        user_systemd disable --now "$3" || exit 1
        rm -f "$HOME/.config/systemd/user/$3"
        user_systemd daemon-reload
    fi
    ended "$(cat "$folder/supervisor.pid" 2>/dev/null)" "$folder" 15
    ended "$(cat "$folder/lock/pid" 2>/dev/null)" "$folder" 15
    # a server whose supervisor was killed outlives it
    ended "$(cat "$folder/server.pid" 2>/dev/null)" "$data/" 10
    rm -f "$folder/supervisor.pid" "$folder/server.pid"
    rm -rf "$folder/lock"
}

user_systemd() { # a session without PAM does not say where the user's systemd listens
    XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)} systemctl --user "$@"
}

ended() { # PID WORD SECONDS: end a process whose command line holds WORD, KILL after SECONDS
    if [ -z "$1" ] || ! runs "$1" "$2"; then return 0; fi
    kill -TERM "$1" 2>/dev/null
    tries=$(($3 * 5))
    while runs "$1" "$2"; do
        tries=$((tries - 1))
        if [ "$tries" -le 0 ]; then
            kill -KILL "$1" 2>/dev/null
            sleep 0.2
            return 0
        fi
        sleep 0.2
    done
}

runs() { # PID WORD: does it live, with WORD in its command line? A recycled number does not count
    kill -0 "$1" 2>/dev/null || return 1
    case $(ps -ww -p "$1" -o stat= -o args= 2>/dev/null || tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null) in
        Z*) return 1 ;;
        *"$2"*) return 0 ;;
        *) return 1 ;;
    esac
}

detached() { # COMMAND…: outlives the connection, in a session of its own where there is setsid
    if command -v setsid >/dev/null; then
        setsid "$@" </dev/null 2>&1 &
    else
        nohup "$@" </dev/null 2>&1 &
    fi
}

speed() { # PAYLOAD NAME: keep what was measured
    mv "$1" "$data/servers/$2/speed.json"
}

ollama_speed() { # PAYLOAD NAME: keep what was measured of a model in Ollama
    prepare && mv "$1" "$data/ollama/speed-$2.json"
}

state() { # NAME LINES: how often the server was restarted, then the last lines of its log
    echo "$(cat "$data/servers/$1/restarts" 2>/dev/null)"
    log "$1" "$2"
}

log() { # NAME LINES
    tail -n "$2" "$data/servers/$1/log" 2>/dev/null
}

servers() { # names of the servers here
    for folder in "$data/servers"/*/; do
        if [ -d "$folder" ]; then basename "$folder"; fi
    done
}

follow() { # LINES NAME…: follow the logs over rotations until the connection ends
    lines=$1
    shift
    for name in "$@"; do
        shift
        set -- "$@" "$data/servers/$name/log"
    done
    exec tail -n "$lines" -F "$@"
}

verb=$1
data=$2
shift 2
# shellcheck disable=SC2088  # a literal tilde, which the caller's quoting kept from its shell
case $data in
    '~') data=$HOME ;;
    '~/'*) data=$HOME/${data#'~/'} ;;
esac
"$verb" "$@" </dev/null
