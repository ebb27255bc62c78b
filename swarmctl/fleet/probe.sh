#!/bin/sh
# Everything one survey asks of a host, in one POSIX sh script: dash, busybox, bash and the sh of macOS run it.
#
#   sh -s -- DATA_DIR PORT... ollama=PORT... < probe.sh
#
# It prints sections, each begun by a line "@@NONCE name"; swarmctl/facts parses them and holds all judgement. It needs
# no root, changes nothing, and always ends with status 0: what cannot be had is left out. The whole script is one
# function, so a cut-off transfer runs nothing, and its input is /dev/null, so no tool can eat the script.
#
# SWARMCTL_GLANCE=yes leaves out what only plans need. SWARMCTL_GLANCE=pulse asks only what changes from moment to
# moment (facts/pulse.py), for whoever asks every few seconds.

main() {
    LC_ALL=C
    PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin:/usr/local/cuda/bin:/opt/rocm/bin:/opt/homebrew/bin:$HOME/.local/bin
    PATH=$PATH:/usr/lib/wsl/lib
    export LC_ALL PATH
    unset OMP_NUM_THREADS OMP_THREAD_LIMIT CDPATH
    newline='
'
    now=$(date +%s)
    nonce=$$-$now
    # shellcheck disable=SC2046  # four words
    names $(uname -snrm)
    data=${1:-.}
    [ $# -gt 0 ] && shift
    # shellcheck disable=SC2088  # a literal tilde, which the caller's quoting kept from its shell
    case $data in
        '~') data=$HOME ;;
        '~/'*) data=$HOME/${data#'~/'} ;;
    esac
    near_data
    scan
    printf '\nswarmctl-probe 1 %s\n' "$nonce"
    if [ "$SWARMCTL_GLANCE" = pulse ]; then
        cpu
        pulse
        memory
        section data_disk
        data_disk
        section end
        return
    fi
    [ -n "$uid" ] || uid=$(id -u)
    [ -n "$user" ] || user=$(id -un 2>/dev/null)
    host
    cpu
    memory
    disks
    gpus
    own
    [ -n "$SWARMCTL_GLANCE" ] && runners
    if [ -z "$SWARMCTL_GLANCE" ]; then # what plans need and `status` does not: half of the cost
        os
        tools
        listeners "$@"
        systemd
        ollamas "$@"
    fi
    section end
}

# names SYSTEM HOSTNAME RELEASE MACHINE: uname says them in this order however it is asked.
names() {
    system=$1
    node=$2
    release=$3
    machine=$4
}

section() { printf '\n@@%s %s\n' "$nonce" "$1"; }

# pair KEY VALUE: one line, whatever the value holds.
pair() {
    case $2 in
        '') ;;
        *"$newline"*) printf '%s %s\n' "$1" "$2" | tr '\n' ' ' && echo ;;
        *) printf '%s %s\n' "$1" "$2" ;;
    esac
}

have() { command -v "$1" >/dev/null 2>&1; }

# limit SECONDS COMMAND...: macOS has no timeout(1); there we trust the tool.
limit() {
    if have timeout; then
        timeout "$@"
    else
        shift
        "$@"
    fi
}

# first FILE: its first line. In $(...) that is a fork; peek leaves it in $line and is none.
first() {
    peek "$1"
    printf '%s' "$line"
}

# A fork and an exec each cost about as much as all else that is asked here, so one awk reads every file that has more
# than a line or two (the shells' `read` asks the kernel for each byte).
peek() {
    line=
    [ -r "$1" ] && read -r line 2>/dev/null <"$1"
    return 0
}

host() {
    section host
    echo "system $system"
    echo "hostname $node"
    echo "release $release"
    echo "machine $machine"
    echo "user $user"
    echo "uid $uid"
    echo "home $HOME"
    echo "data_dir $data"
    echo "clock $now"
    peek /proc/uptime
    [ -n "$line" ] && echo "uptime $line"
    [ "$system" = Darwin ] && echo "boottime $(sysctl -n kern.boottime 2>/dev/null)"
    return 0
}

# scan: what Linux says in files, as sections in $scanned; besides, in $uid, $user, $mount (of the folder $near) and
# $slow (whether a filesystem of a program or of another machine is mounted) what is asked below. Empty elsewhere.
scan() {
    uid=
    user=
    mount=
    slow=yes
    scanned=
    [ -r /proc/self/status ] && have awk || return 0
    place=$(cd -P -- "$near" && pwd -P)
    export place
    scanned=$(awk -v nonce="$nonce" -v glance="$SWARMCTL_GLANCE" '
        function section(name) { printf "\n@@%s %s\n", nonce, name }
        function first(file, line) {
            if ((getline line < file) <= 0) line = ""
            close(file)
            return line
        }
        # how many a list as 0-3,8 names
        function count(list, parts, ends, part, sum) {
            for (part = split(list, parts, ","); part > 0; part--)
                sum += split(parts[part], ends, "-") == 2 ? ends[2] - ends[1] + 1 : 1
            return sum
        }
        function identity(line, words) {
            while ((getline line < "/proc/self/status") > 0) {
                split(line, words)
                if (words[1] == "Uid:") uid = words[3]
                if (words[1] == "Cpus_allowed_list:") allowed = words[2]
            }
            while (uid != "" && user == "" && (getline line < "/etc/passwd") > 0) {
                split(line, words, ":")
                if (words[3] == uid) user = words[1]
            }
        }
        function mounts(line, words, where, path, longest) {
            path = ENVIRON["place"] "/"
            while ((getline line < "/proc/mounts") > 0) {
                split(line, words)
                if (words[1] ~ /^\/|^zfs|:|pool/) shown = shown words[1] " " words[2] " " words[3] "\n"
                if (words[3] !~ plain) slow = "yes"
                where = words[2]
                gsub(/\\040/, " ", where)
                if (length(where) >= longest && index(path, where == "/" ? where : where "/") == 1) {
                    mount = where
                    longest = length(where)
                }
            }
        }
        # The threads of all processors that are there, unless affinity leaves fewer: those `nproc` counts.
        function threads(online) {
            online = first("/sys/devices/system/cpu/online")
            if (online != "" && (allowed == online || allowed == first("/sys/devices/system/cpu/possible")))
                print "threads " count(online)
        }
        function processors(line, at, key, value, package, present, cores, core, seen, sum) {
            while ((getline line < "/proc/cpuinfo") > 0) {
                if (!(at = index(line, ":"))) continue
                key = substr(line, 1, at - 1)
                sub(/[ \t]+$/, "", key)
                value = substr(line, at + 1)
                sub(/^[ \t]+/, "", value)
                if (key == "processor") present++
                else if (key == "physical id") package = value
                else if (key == "core id") cores[package "." value] = 1
                else if ((key == "model name" || key == "Model" || key == "flags" || key == "Features") && !seen[key]++)
                    print key ": " value
            }
            print "present " present
            for (core in cores) sum++
            if (sum) print "cores " sum
        }
        # Quotas of every group from our own up to the root, in both versions of cgroups.
        function cgroups(line, end, controllers, path) {
            while ((getline line < "/proc/self/cgroup") > 0) {
                line = substr(line, index(line, ":") + 1)
                end = index(line, ":")
                controllers = "," substr(line, 1, end - 1) ","
                path = substr(line, end + 1)
                if (controllers == ",,") upwards("/sys/fs/cgroup", path, "cpu.max memory.max memory.current", 1)
                else if (index(controllers, ",cpu,"))
                    upwards("/sys/fs/cgroup/cpu", path, "cpu.cfs_quota_us cpu.cfs_period_us", 0)
                else if (index(controllers, ",memory,"))
                    upwards("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes memory.usage_in_bytes", 1)
            }
        }
        function upwards(root, path, files, memory, names, many, place, file, line, words) {
            many = split(files, names)
            sub(/\/$/, "", path)
            while (1) {
                for (place = 1; place <= many; place++) {
                    file = root path "/" names[place]
                    if ((getline line < file) > 0) print names[place] " " path "/ " line
                    close(file)
                }
                # File pages that a group would give back: they count as used but are free to take.
                file = root path "/memory.stat"
                while (memory && (getline line < file) > 0)
                    if (line ~ /^(total_)?inactive_file /) {
                        split(line, words)
                        print words[1] " " path "/ " words[2]
                    }
                close(file)
                if (!sub(/\/[^\/]*$/, "", path)) return
            }
        }
        function meminfo(line, words) {
            while ((getline line < "/proc/meminfo") > 0)
                if (line ~ /^(MemTotal|MemAvailable|MemFree|SwapTotal|SwapFree):/) {
                    split(line, words)
                    print words[1] " " words[2]
                }
        }
        BEGIN {
            plain = "^(ext[234]|xfs|btrfs|zfs|f2fs|bcachefs|vfat|exfat|ntfs3|iso9660|squashfs|erofs|overlay|tmpfs|" \
                "devtmpfs|ramfs|proc|sysfs|cgroup2?|devpts|mqueue|securityfs|debugfs|tracefs|pstore|bpf|configfs|" \
                "hugetlbfs|fusectl|binfmt_misc|efivarfs|nsfs|rpc_pipefs|selinuxfs)$"
            identity()
            mounts()
            print uid "\n" user "\n" mount "\n" slow
            section("cpu")
            threads()
            if (glance != "pulse") processors()
            section("cgroup")
            cgroups()
            section("memory")
            meminfo()
            if (glance == "pulse") exit
            section("mounts")
            printf "%s", shown
            if (glance != "") exit
            section("os")
            while ((getline line < "/etc/os-release") > 0) print line
        }
    ')
    for name in uid user mount slow; do
        eval "$name=\${scanned%%\"\$newline\"*}"
        scanned=${scanned#*"$newline"}
    done
    [ -n "$uid" ] || slow=yes
}

os() {
    if [ "$system" = Darwin ]; then
        section os
        sw_vers 2>/dev/null
    fi
    section libc
    getconf GNU_LIBC_VERSION 2>/dev/null && return
    for loader in /lib/ld-musl-*.so.1; do
        [ -x "$loader" ] && "$loader" 2>&1 | head -n 2 && return
    done
    have ldd && ldd --version 2>&1 | head -n 2
    return 0
}

# What scan found, and what it could not.
cpu() {
    printf '%s\n' "$scanned"
    section cpu
    case $scanned in
        *"${newline}threads "*) ;;
        *) echo "threads $(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null)" ;;
    esac
    [ "$SWARMCTL_GLANCE" = pulse ] && return 0
    case $scanned in
        *"${newline}model name: "*) ;;
        *) have lscpu && lscpu 2>/dev/null | grep '^Model name' ;;
    esac
    if [ "$system" = Darwin ]; then
        sysctl machdep.cpu.brand_string hw.physicalcpu hw.logicalcpu hw.optional machdep.cpu.features \
            machdep.cpu.leaf7_features 2>/dev/null
    fi
    return 0
}

pulse() {
    section pulse
    if [ -r /proc/stat ]; then
        peek /proc/stat
        echo "$line"
        peek /proc/loadavg
        echo "load $line"
    else
        echo "load $(sysctl -n vm.loadavg 2>/dev/null | tr -d '{}')"
    fi
    if have nvidia-smi; then
        section nvidia-pulse
        nvidia index,uuid,name,memory.total,memory.used,utilization.gpu,temperature.gpu,power.draw,power.limit
    fi
    section amd-pulse
    for card in /sys/class/drm/card[0-9]*; do
        peek "$card/device/vendor"
        [ "$line" = 0x1002 ] && [ ! -e "$card/status" ] && amd_pulse "$card/device"
    done
    return 0
}

# What amdgpu's files say of a card at this moment; those that a kernel has not are left out.
amd_pulse() {
    echo "card ${1%/device}"
    for name in product_name mem_info_vram_total mem_info_vram_used gpu_busy_percent; do
        peek "$1/$name"
        [ -n "$line" ] && echo "$name $line"
    done
    for meter in "$1"/hwmon/hwmon*/temp*_input "$1"/hwmon/hwmon*/power1_average "$1"/hwmon/hwmon*/power1_input \
        "$1"/hwmon/hwmon*/power1_cap; do
        [ -r "$meter" ] && peek "$meter" && echo "${meter##*/} $line"
    done
}

# What scan does not know.
memory() {
    [ "$system" = Darwin ] || return 0
    section memory
    sysctl hw.memsize vm.swapusage hw.pagesize 2>/dev/null
    vm_stat 2>/dev/null
    return 0
}

# The data folder, or the nearest above it that is there, in $near.
near_data() {
    near=$data
    while [ ! -d "$near" ]; do
        case $near in
            */*) near=${near%/*} ;;
            *) near=. ;;
        esac
        near=${near:-/}
    done
}

# df of what is local. Where nothing slow is mounted it goes without a watchman: a disk of this very machine that hangs
# leaves who waits for it deaf to signals anyhow.
df_local() {
    set -- df
    [ -n "$slow" ] && set -- limit 5 df
    "$@" -lkP 2>/dev/null || "$@" -kP 2>/dev/null
}

data_disk() { limit 5 df -kP "$near" 2>&1; }

disks() {
    section disks
    rows=$(df_local)
    kept=
    while read -r device size used free full where; do
        [ -n "$mount" ] && [ "$where" = "$mount" ] && kept="$device $size $used $free $full $where"
        case $where in / | /boot/* | /snap/* | /sys/* | /proc/*) [ "$where" = / ] || continue ;; esac
        case $device in
            /dev/loop*) continue ;;
            /dev/*)
                rotational "$device"
                echo "disk $line $device $size $used $free $full $where" ;;
            *:* | //*) continue ;;
            *) case $size in *[!0-9]* | 0) continue ;; esac
                case $device in tmpfs | devtmpfs | none | shm | efivarfs | udev | overlay)
                    [ "$where" = / ] || continue ;; esac
                echo "disk - $device $size $used $free $full $where" ;;
        esac
        for folder in "$where" "${where%/}/$user" "${where%/}/home/$user"; do
            [ "$where" != / ] && [ -d "$folder" ] && [ -w "$folder" ] && echo "writable $folder" && break
        done
    done <<EOF
$rows
EOF
    section data_disk
    if [ -n "$kept" ]; then
        echo "$kept"
    else
        data_disk
    fi
    [ -w "$near" ] || echo "unwritable $near"
}

# rotational DEVICE: in $line what the kernel says, or a dash.
rotational() {
    device_file=$1
    [ -L "$1" ] && device_file=$(readlink -f "$1" 2>/dev/null || echo "$1")
    device_file=/sys/class/block/${device_file##*/}
    for queue in "$device_file/queue" "$device_file/../queue"; do
        peek "$queue/rotational"
        [ -n "$line" ] && return
    done
    line=-
}

gpus() {
    section pci
    for device in /sys/bus/pci/devices/*; do
        peek "$device/class"
        class=$line
        case $class in 0x03*) echo "$class $(first "$device/vendor") $(first "$device/device") ${device##*/}" ;; esac
    done
    if have nvidia-smi; then
        section nvidia
        found=$(nvidia index,name,memory.total,memory.free,driver_version,uuid,compute_cap)
        case $found in # drivers before 470 do not know the last field
            *'"compute_cap" is not'*) nvidia index,name,memory.total,memory.free,driver_version,uuid ;;
            *) printf '%s\n' "$found" ;;
        esac
    fi
    amd
    if [ "$system" = Darwin ] && [ "$(uname -m)" != arm64 ]; then
        section displays
        limit 5 system_profiler SPDisplaysDataType 2>/dev/null
    fi
    return 0
}

nvidia() {
    limit 8 nvidia-smi --query-gpu="$1" --format=csv,noheader,nounits 2>&1
    echo "status $?"
}

amd() {
    found=
    for render in /sys/class/drm/renderD*; do
        [ "$(first "$render/device/vendor")" = 0x1002 ] || continue
        [ -z "$found" ] && section amd
        found=yes
        pair "card ${render##*renderD}" "$(first "$render/device/device") $(first "$render/device/mem_info_vram_total"
        ) $(first "$render/device/mem_info_vram_used") $(first "$render/device/product_name")"
    done
    [ -z "$found" ] && return
    [ -r /sys/module/amdgpu/version ] && echo "driver $(first /sys/module/amdgpu/version)"
    for node in /sys/class/kfd/kfd/topology/nodes/*/properties; do
        [ -r "$node" ] && echo "node" && grep -E '^(gfx_target_version|drm_render_minor) ' "$node" 2>/dev/null
    done
    if have rocm-smi; then
        section rocm-smi
        limit 8 rocm-smi --showproductname --showmeminfo vram --showdriverversion --json 2>&1
    fi
}

tools() {
    section tools
    for tool in cc c++ g++ clang++ cmake ninja make nvcc hipcc glslc vulkaninfo python3 sha256sum shasum tar zstd gzip \
        curl wget setsid flock systemctl ollama git; do
        locate "$tool" || continue
        echo "tool $tool $path"
        [ "$tool" = ollama ] && pair version "$(limit 3 ollama --version 2>&1)"
    done
    return 0
}

# locate TOOL: where it lies, in $path, without the fork that $(command -v) is.
locate() {
    IFS=:
    for path in $PATH; do
        path=${path%/}/$1
        [ -f "$path" ] && [ -x "$path" ] && break
        path=
    done
    unset IFS
    [ -n "$path" ]
}

listeners() {
    section listeners
    found=
    if have ss && found=$(ss -ltnpe 2>/dev/null); then
        echo "by ss"
        printf '%s\n' "$found"
    elif [ "$system" = Darwin ]; then
        echo "by lsof"
        limit 5 lsof -nP -iTCP -sTCP:LISTEN 2>/dev/null
    elif [ -r /proc/net/tcp ]; then
        echo "by proc"
        cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep ' 0A '
        found=
        if have netstat && found=$(limit 3 netstat -ltnp 2>/dev/null); then
            echo "by netstat"
            printf '%s\n' "$found"
        fi
    fi
    section holders
    for port in 11434 "$@"; do
        holder "${port#ollama=}"
        for pid in $pids; do
            process "$pid"
            pair "holder $pid" "$owner $arguments"
        done
    done
    return 0
}

# holder PORT: in $pids those who listen there, from what ss or netstat found.
holder() {
    pids=
    set -f
    IFS=$newline
    for row in $found; do
        case $row in
            *[:.]"$1 "*pid=[0-9]*) pid=${row##*pid=} ;;
            *:"$1 "*" "[0-9]*/*) pid=${row##*"LISTEN "} ;;
            *) continue ;;
        esac
        pid=${pid#"${pid%%[0-9]*}"}
        pids="$pids ${pid%%[!0-9]*}"
    done
    unset IFS
    set +f
}

# Every Ollama that answers on a port where one is expected, and how it runs. Asking loads nothing.
ollamas() {
    section ollama
    asked=' '
    for port in 11434 "$@"; do
        case $port in ollama=*) port=${port#ollama=} ;; 11434) ;; *) continue ;; esac
        case $asked in *" $port "*) continue ;; esac
        asked="$asked$port "
        absent "$port" && continue
        version=$(http "$port" /api/version)
        if [ -n "$version" ]; then
            case $version in *'"version"'*) ;; *) continue ;; esac
            echo "ollama $port"
            pair version "$version"
            pair tags "$(http "$port" /api/tags)"
            pair ps "$(http "$port" /api/ps)"
        else
            in_words "$port" || continue
        fi
        holder "$port"
        for pid in $pids; do
            process "$pid"
            pair pid "$pid"
            pair user "$owner"
            pair arguments "$arguments"
            if [ -r "/proc/$pid/cgroup" ] && ! cmp -s "/proc/$pid/cgroup" /proc/self/cgroup; then
                pair cgroup "$(cat "/proc/$pid/cgroup")" # another container or unit than ours
            fi
            break
        done
        if have systemctl && [ -d /run/systemd/system ]; then
            pair unit "$(limit 3 systemctl show -p MainPID -p ActiveState ollama.service 2>/dev/null)"
        fi
        have docker && pair docker "$(limit 3 docker ps --format '{{.Image}} {{.Ports}}' 2>/dev/null | grep ":$port->")"
    done
    return 0
}

# absent PORT: surely nobody answers there, which saves a request. A port without a listener may still lead elsewhere:
# by packet rules, which need route_localnet, or to Windows under WSL.
absent() {
    [ -n "$found" ] || return 1
    case $release,$found in *icrosoft*,* | *":$1 "*) return 1 ;; esac
    for file in /proc/sys/net/ipv4/conf/*/route_localnet; do
        peek "$file"
        [ "$line" = 0 ] || return 1
    done
}

# The same in the words of ollama's own client, where the host has nothing that speaks HTTP; lines become tabs.
in_words() {
    have curl || have wget || have python3 || ! have ollama && return 1
    said=$(client "$1" --version)
    case $said in "ollama version is "*) ;; *) return 1 ;; esac
    echo "ollama $1"
    pair version-words "$said"
    pair list-words "$(client "$1" list | tr '\n' '\t')"
    pair ps-words "$(client "$1" ps | tr '\n' '\t')"
}

client() {
    address=127.0.0.1:$1
    shift
    OLLAMA_HOST=$address limit 5 ollama "$@" 2>/dev/null | head -c 200000
}

# http PORT PATH: what answers there, within 2 s and 2 MB, by whichever client the host has.
http() {
    if have curl; then
        curl -sf --noproxy '*' -m 2 "http://127.0.0.1:$1$2"
    elif have wget; then
        http_proxy='' limit 3 wget -q -O - -T 2 "http://127.0.0.1:$1$2"
    elif have python3; then
        limit 4 python3 -c 'import sys, urllib.request as u
print(u.build_opener(u.ProxyHandler({})).open("http://127.0.0.1:%s%s" % tuple(sys.argv[1:]), timeout=2).read(2000000).decode())' "$1" "$2"
    fi 2>/dev/null | head -c 2000000
}

# process PID: its $parent, $owner and $arguments, the last on one line.
process() {
    parent=
    owner=-
    eval "arguments=\${arguments_$1-}"
    if [ -r "/proc/$1/status" ]; then
        while read -r key value effective _; do
            [ "$key" = PPid: ] && parent=$value
            [ "$key" = Uid: ] && owner=$effective && break
        done <"/proc/$1/status"
        case $owner in
            "$uid") owner=$user ;;
            0) owner=root ;;
            *) owner=$(stat -c %U "/proc/$1" 2>/dev/null || echo -) ;;
        esac
        [ -n "$arguments" ] || arguments=$(tr '\0\n' '  ' <"/proc/$1/cmdline")
    elif [ ! -r /proc/self/status ]; then
        read -r parent owner arguments <<EOF
$(ps -o ppid= -o user= -o args= -p "$1" 2>/dev/null)
EOF
        owner=${owner:--}
    fi
    eval "arguments_$1=\$arguments"
}

systemd() {
    section systemd
    have systemctl || return 0
    [ -d "/run/systemd/system" ] || return 0
    if [ -z "$XDG_RUNTIME_DIR" ] && [ -d "/run/user/$uid" ]; then
        XDG_RUNTIME_DIR=/run/user/$uid
        export XDG_RUNTIME_DIR
    fi
    echo "user $(limit 3 systemctl --user is-system-running 2>/dev/null)"
    [ -e "/var/lib/systemd/linger/$user" ] && echo "linger yes"
    return 0
}

own() {
    section runtimes
    for folder in "$data"/runtimes/llamacpp/*/ "$data"/runtimes/ollama/*/; do
        [ -f "$folder.complete" ] && echo "runtime ${folder%/}"
    done
    section versions
    if [ -f "$data/runtimes/versions.jsonl" ]; then
        tail -n 60 "$data/runtimes/versions.jsonl"
        echo # a line that a kill tore
    fi
    section blobs
    [ -d "$data/blobs" ] && ls -ln "$data/blobs" 2>/dev/null
    section manifests
    [ -d "$data/ollama/models/manifests" ] && (cd "$data/ollama/models/manifests" && find . -type f | head -n 5000)
    section lacking
    [ -d "$data/ollama/models/manifests" ] && (cd "$data/ollama/models/manifests" && lacking)
    section speeds
    for file in "$data"/ollama/speed-*.json; do
        [ -f "$file" ] && peek "$file" && [ -n "$line" ] && echo "${file##*/speed-} $line"
    done
    section servers
    for folder in "$data"/servers/*/; do
        [ -d "$folder" ] && server "${folder%/}"
    done
    return 0
}

# Manifests here that name a blob which is not there.
lacking() {
    { ls ../blobs && echo -- && grep -ro 'sha256:[0-9a-f]*' .; } | awk '
        $0 == "--" { named = 1; next }
        !named { there[$0] = 1; next }
        match($0, /:sha256:[0-9a-f]*$/) {
            blob = "sha256-" substr($0, RSTART + 8)
            name = substr($0, 1, RSTART - 1)
            if (!(blob in there) && !said[name]++) print name
        }
    '
}

server() {
    echo "server ${1##*/}"
    for name in digest restarts mode speed.json; do
        peek "$1/$name"
        [ -n "$line" ] && echo "$name $line"
    done
    for name in supervisor server; do
        peek "$1/$name.pid"
        pid=$line
        case $pid in '' | *[!0-9]*) continue ;; esac
        kill -0 "$pid" 2>/dev/null || continue
        process "$pid"
        pair "$name.pid" "$pid $parent $arguments"
    done
}

# Processes that hold a model: what each has read of it and, of an Ollama's, requests it answers and whether it is done
# loading. Our own servers tell that themselves.
runners() {
    section runners
    [ -r /proc/self/cmdline ] || return 0
    for file in "$data"/servers/*/server.pid; do
        peek "$file"
        [ -n "$line" ] && held "$line" && echo "runner $line - $most - - -"
    done
    grep -l ollama/llama-server /proc/[0-9]*/cmdline | while IFS=/ read -r _ _ pid _; do
        process "$pid"
        case ${arguments%% *} in */ollama/llama-server) ;; *) continue ;; esac
        port=${arguments##* --port }
        port=${port%% *}
        case $port in '' | *[!0-9]*) continue ;; esac
        answered=$(printf ' [0-9A-F]*:%04X [0-9A-F]*:[0-9A-F]* 01 ' "$port")
        busy=$(grep -c "$answered" "/proc/$pid/net/tcp")
        said=$(have curl && curl -s --noproxy '*' -m 2 "http://127.0.0.1:$port/health" | head -c 200 | tr -d ' \n')
        held "$pid" && echo "runner $pid $parent $most ${busy:--} ${said:--} $arguments"
    done
    return 0
}

# held PID: in $most, the bytes that a process has read, or has mapped of files, whichever is more.
held() {
    most=0
    [ -r "/proc/$1/status" ] || return 1
    while read -r key value _; do
        [ "$key" = RssFile: ] && most=$((value * 1024))
    done <"/proc/$1/status"
    [ -r "/proc/$1/io" ] || return 0
    while read -r key value; do
        [ "$key" = rchar: ] && [ "$value" -gt "$most" ] && most=$value
    done <"/proc/$1/io"
    return 0
}

main "$@" </dev/null 2>/dev/null
exit 0
