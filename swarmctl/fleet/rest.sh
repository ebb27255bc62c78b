#!/bin/sh
# Whether a host is in use and how it may be sent to sleep, in one POSIX sh script:
#
#   sh -s -- DATA_DIR ACTION < rest.sh        ACTION: suspend, poweroff or nothing
#
# Lines `key value`, read by swarmctl/fleet/rest.py. It needs no root, changes nothing, and ends with status 0.

main() {
    LC_ALL=C
    PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin:/usr/local/cuda/bin:/opt/rocm/bin
    export LC_ALL PATH
    data=${1:-.}
    # shellcheck disable=SC2088  # a literal tilde, which the caller's quoting kept from its shell
    case $data in '~') data=$HOME ;; '~/'*) data=$HOME/${data#'~/'} ;; esac
    now=$(date +%s)
    echo "rest 1"
    echo "data $data"
    if [ -r /proc/uptime ]; then
        echo "uptime $(cut -d. -f1 /proc/uptime)"
        echo "load $(cut -d' ' -f1 /proc/loadavg) $(nproc 2>/dev/null || echo 1)"
    else
        echo "uptime $((now - $(sysctl -n kern.boottime | sed 's/.*[^u]sec = \([0-9]*\).*/\1/')))"
        echo "load $(sysctl -n vm.loadavg | tr -d '{}' | awk '{ print $1 }') $(sysctl -n hw.logicalcpu)"
    fi
    terminals
    desktops
    peers
    gpus
    until=$(cat "$data/lock/until" 2>/dev/null)
    [ "${until:-0}" -gt "$now" ] && echo "lock $(cat "$data/lock/owner" 2>/dev/null)"
    have systemd-inhibit && limit 3 systemd-inhibit --list --no-legend --no-pager --mode=block 2>/dev/null |
        grep -E '(^|[ :])(sleep|shutdown)([ :]|$)' | sed 's/^/inhibit /'
    way "${2:-nothing}"
    echo end
}

have() { command -v "$1" >/dev/null 2>&1; }

limit() {
    if have timeout; then
        timeout "$@"
    else
        shift
        "$@"
    fi
}

# Who sits at a terminal, and for how many seconds nobody has typed there.
terminals() {
    who 2>/dev/null | while read -r name tty _; do
        [ -c "/dev/$tty" ] || continue
        typed=$(stat -c %X "/dev/$tty" 2>/dev/null || stat -f %a "/dev/$tty" 2>/dev/null)
        echo "user $name $tty $((now - ${typed:-$now}))"
    done
}

# Desktops, which logind knows to be idle or not.
desktops() {
    have loginctl && [ -d /run/systemd/system ] || return 0
    limit 3 loginctl list-sessions --no-legend 2>/dev/null | while read -r session _; do
        said=$(limit 3 loginctl show-session "$session" -p Name -p Type -p IdleHint -p IdleSinceHint 2>/dev/null)
        case $said in *Type=x11* | *Type=wayland*) ;; *) continue ;; esac
        name=$(printf '%s\n' "$said" | sed -n 's/^Name=//p')
        since=$(printf '%s\n' "$said" | sed -n 's/^IdleSinceHint=\([0-9]*\)[0-9]\{6\}$/\1/p')
        case $said in *IdleHint=yes*) ;; *) since=$now ;; esac
        echo "user $name desktop $((now - ${since:-$now}))"
    done
}

# Machines other than ours that are connected by SSH: somebody else's swarmctl, or a person without a terminal.
peers() {
    # shellcheck disable=SC2086  # client, its port, our address, our port
    set -- $SSH_CONNECTION
    [ $# -eq 4 ] && have ss || return 0
    ss -Htn state established "( sport = :$4 )" 2>/dev/null | awk '{ print $NF }' |
        sed 's/:[0-9]*$//; s/^\[//; s/\]$//; s/^::ffff://' | sort -u | while read -r peer; do
        [ "$peer" = "${1#::ffff:}" ] || echo "peer $peer"
    done
}

gpus() {
    have nvidia-smi &&
        limit 8 nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits 2>/dev/null | sed 's/^/gpu /'
    for busy in /sys/class/drm/card[0-9]*/device/gpu_busy_percent; do
        [ -r "$busy" ] && echo "gpu $(cat "$busy")"
    done
}

# The command by which this user may do it, or why there is none.
way() {
    case $1 in
        suspend) method=CanSuspend ;;
        poweroff) method=CanPowerOff ;;
        *) return 0 ;;
    esac
    if [ "$(uname -s)" = Darwin ]; then
        if [ "$1" = suspend ]; then
            echo "way pmset sleepnow"
        elif sudo -n -l shutdown >/dev/null 2>&1; then
            echo "way sudo -n shutdown -h now"
        else
            echo "no sudo asks a password for shutdown"
        fi
        return 0
    fi
    if ! have systemctl || [ ! -d /run/systemd/system ]; then
        echo "no it has no systemd; name a sleep_command in the inventory"
        return 0
    fi
    may=
    have busctl && may=$(limit 3 busctl call org.freedesktop.login1 /org/freedesktop/login1 \
        org.freedesktop.login1.Manager "$method" 2>/dev/null | sed 's/^s "\(.*\)"$/\1/')
    if [ "$may" = yes ]; then
        echo "way systemctl $1"
    elif [ "$may" = na ]; then
        echo "no its firmware or kernel cannot $1"
    elif [ "$(id -u)" -eq 0 ]; then
        echo "way systemctl $1"
    elif sudo -n -l systemctl "$1" >/dev/null 2>&1; then
        echo "way sudo -n systemctl $1"
    else
        echo "no logind says ${may:-nothing}, and sudo asks a password for systemctl $1"
    fi
}

main "$@" </dev/null 2>/dev/null
exit 0
