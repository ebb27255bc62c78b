#!/bin/sh
# What `doctor` asks of a host beyond the survey, in one POSIX sh script:
#
#   sh -s -- DATA_DIR < examine.sh
#
# Sections as in probe.sh, read by swarmctl/diagnosis. It needs no root, changes nothing, starts and loads nothing, and
# ends with status 0: what cannot be had is left out. It is apart from the survey because `up` need not wait for it.

main() {
    LC_ALL=C
    PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin:/usr/local/cuda/bin:/opt/rocm/bin:/opt/homebrew/bin
    PATH=$PATH:/usr/lib/wsl/lib
    export LC_ALL PATH
    nonce=$$-$(date +%s)
    data=${1:-.}
    printf '\nswarmctl-probe 1 %s\n' "$nonce"
    section clock
    echo "clock $(date +%s.%N)"
    section addresses
    addresses
    have nvidia-smi && nvidia
    amd
    section throttled
    throttled
    section servers
    for folder in "$data"/servers/*/; do
        [ -d "$folder" ] && server "${folder%/}"
    done
    section supervisors
    supervisors
    section ollama
    ollama_models
    section end
}

section() { printf '\n@@%s %s\n' "$nonce" "$1"; }

have() { command -v "$1" >/dev/null 2>&1; }

limit() {
    if have timeout; then
        timeout "$@"
    else
        shift
        "$@"
    fi
}

addresses() {
    if have ip; then
        ip -o addr show scope global 2>/dev/null | awk '{ sub("/.*", "", $4); print $4 }'
    elif have ifconfig; then
        ifconfig 2>/dev/null | awk '$1 == "inet" { sub("addr:", "", $2); if ($2 !~ /^127\./) print $2 }'
    fi
}

nvidia() {
    section nvidia-clocks
    base=index,temperature.gpu,power.draw,power.limit,clocks.sm,clocks.max.sm,memory.used
    found=$(limit 8 nvidia-smi --query-gpu=$base,clocks_event_reasons.active --format=csv,noheader,nounits 2>&1)
    case $found in # drivers before 535 call it by its old name
        *'"clocks_event_reasons.active" is not'*)
            limit 8 nvidia-smi --query-gpu=$base,clocks_throttle_reasons.active --format=csv,noheader,nounits 2>&1 ;;
        *) printf '%s\n' "$found" ;;
    esac
    section nvidia-apps
    if limit 8 nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits 2>&1; then
        echo "status 0"
    else
        echo "status 1"
        section nvidia-table
        limit 8 nvidia-smi 2>&1
    fi
}

amd() {
    if [ -d /sys/class/kfd/kfd/proc ]; then
        section amd-apps
        for folder in /sys/class/kfd/kfd/proc/*/; do
            folder=${folder%/}
            [ -d "$folder" ] && echo "pid ${folder##*/}"
        done
    elif have rocm-smi; then
        section amd-apps
        limit 8 rocm-smi --showpids --json 2>&1
    fi
    section amd-clocks
    for card in /sys/class/drm/card[0-9]*; do
        [ "$(cat "$card/device/vendor" 2>/dev/null)" = 0x1002 ] && [ ! -e "$card/status" ] && amd_card "$card/device"
    done
    have rocm-smi || return 0
    section rocm-clocks
    asked="--showtemp --showperflevel --showpower --showmaxpower"
    # shellcheck disable=SC2086  # words
    found=$(limit 8 rocm-smi $asked --showmetrics --json 2>&1)
    case $found in # before 5.5 it knows no --showmetrics, and says how it is used
        *"unrecognized arguments"*)
            # shellcheck disable=SC2086
            found=$(limit 8 rocm-smi $asked --json 2>&1) ;;
    esac
    printf '%s\n' "$found"
}

# What amdgpu's files say of a card; the kernel leaves out those that it has not.
amd_card() {
    echo card
    [ -r "$1/power_dpm_force_performance_level" ] && echo "level $(cat "$1/power_dpm_force_performance_level")"
    [ -r "$1/pp_dpm_sclk" ] && sed 's/^/sclk /' "$1/pp_dpm_sclk"
    for sensor in "$1"/hwmon/hwmon*/temp*_input; do
        [ -r "$sensor" ] && echo "temp $(cat "$sensor") $(cat "${sensor%_input}_crit" 2>/dev/null)"
    done
    for meter in "$1"/hwmon/hwmon*/power1_average "$1"/hwmon/hwmon*/power1_input; do
        [ -r "$meter" ] && echo "power $(cat "$meter") $(cat "${meter%/*}/power1_cap" 2>/dev/null)" && break
    done
}

# What a Mac or a Raspberry Pi says of its own speed.
throttled() {
    have pmset && limit 5 pmset -g therm
    have notifyutil && limit 5 notifyutil -g com.apple.system.thermalpressurelevel
    if have vcgencmd; then
        limit 5 vcgencmd get_throttled
    elif [ -r /sys/devices/platform/soc/soc:firmware/get_throttled ]; then
        echo "throttled=$(cat /sys/devices/platform/soc/soc:firmware/get_throttled)"
    fi
}

# What a server was started with, and what its log says since its last start.
server() {
    echo "server ${1##*/}"
    [ -r "$1/run" ] && echo "run $(tail -n 1 "$1/run" | cut -c 1-4000)"
    pid=$(cat "$1/server.pid" 2>/dev/null)
    [ -n "$pid" ] && [ -r "/proc/$pid/status" ] && sed -n 's/^VmSwap:[^0-9]*\([0-9]*\).*/swapped \1/p' "/proc/$pid/status"
    [ -r "$1/log" ] || return 0
    awk '
        function tell(key) { count[key]++; last[key] = substr($0, 1, 300) }
        / supervisor: the server ended/ { tell("ended"); delete count["cpu"] }
        / supervisor: began/ { delete count["cpu"] }
        /no usable GPU found/ || /failed to initialize (CUDA|ROCm|HIP)/ || /no (CUDA|ROCm)-capable device/ { tell("cpu") }
        /out of memory/ || /failed to allocate/ { tell("memory") }
        /[Aa]ddress already in use/ || /couldn.t bind HTTP server socket/ { tell("bind") }
        END { for (key in count) print "said " key " " count[key] " " last[key] }
    ' "$1/log"
}

# Every supervise.sh of this machine that shares our network, whoever runs it, with the port its server listens on.
supervisors() {
    mine=$(readlink /proc/self/ns/net 2>/dev/null)
    # shellcheck disable=SC2009  # pgrep prints no users
    ps -e -ww -o pid= -o user= -o args= 2>/dev/null | grep '[s]upervise\.sh ' | while read -r pid user args; do
        [ "$(readlink "/proc/$pid/ns/net" 2>/dev/null || echo "$mine")" = "$mine" ] || continue
        folder=${args##*supervise.sh }
        port=$(sed -n 's/.*--port[ =]\([0-9]*\).*/\1/p; s/.*OLLAMA_HOST=[^ ]*:\([0-9]*\).*/\1/p' "$folder/run" 2>/dev/null |
            head -n 1)
        [ "$(cat "$folder/supervisor.pid" 2>/dev/null || echo "$pid")" = "$pid" ] || continue
        [ -d /proc/self ] && [ ! -d "/proc/$pid" ] && continue # it has just ended
        echo "supervisor $pid $user ${port:--} $(cat "$folder/restarts" 2>/dev/null || echo -) $folder"
    done
    have systemctl && [ -d /run/systemd/system ] &&
        echo "service ollama $(limit 3 systemctl is-active ollama.service 2>/dev/null)"
}

# Layers that a manifest names and that are not there, or of another size, in every models folder we may read.
ollama_models() {
    {
        echo "$HOME/.ollama/models"
        echo /usr/share/ollama/.ollama/models
        for status in /proc/[0-9]*/environ; do
            case $(tr '\0' ' ' <"${status%/environ}/cmdline" 2>/dev/null) in
                *ollama*serve*) [ -r "$status" ] && tr '\0' '\n' <"$status" 2>/dev/null |
                    sed -n 's/^OLLAMA_MODELS=//p; s/^HOME=\(.*\)/\1\/.ollama\/models/p' ;;
            esac
        done
    } | sort -u | while read -r models; do
        [ -d "$models" ] || continue
        if [ ! -r "$models/manifests" ] || [ ! -r "$models/blobs" ]; then
            echo "hidden $models"
            continue
        fi
        echo "models $models"
        find "$models/manifests" -type f | while read -r manifest; do
            echo "manifest ${manifest#"$models/manifests/"}"
            { tr -d ' \n' <"$manifest" && echo; } | tr '{' '\n' | sed -n \
                -e 's/.*"digest":"sha256:\([0-9a-f]*\)".*"size":\([0-9]*\).*/layer \1 \2/p' -e t \
                -e 's/.*"size":\([0-9]*\).*"digest":"sha256:\([0-9a-f]*\)".*/layer \2 \1/p'
        done | { ls -lnL "$models/blobs"; cat; } | awk '
            $1 == "manifest" { name = substr($0, 10); next }
            $1 == "layer" { if (size[$2] != $3) print "gone " $2 " " $3 " " (($2 in size) ? size[$2] : "-") " " name; next }
            NF >= 9 && $NF ~ /^sha256-/ { size[substr($NF, 8)] = $5 }
        '
    done
}

main "$@" </dev/null 2>/dev/null
exit 0
