#!/bin/sh
# Builds llama.cpp on a host: build.sh DATA_DIR KEY JOBS SDIST SOURCE_FOLDER TARGETS FLAGS…
#
# Runs detached; writes its pid and, last of all, its exit status beside itself. Cut anywhere, the next run goes on
# where this one stopped: sources are renamed when whole, and ninja or make know what is built.
set -u
umask 077
data=$1 key=$2 jobs=$3 sdist=$4 source=$5 targets=$6
shift 6
folder=$data/builds/$key
echo $$ >"$folder/pid"
trap 'status=$?; trap - TERM EXIT; echo "$status" >"$folder/status.part"; mv "$folder/status.part" "$folder/status"
      exit "$status"' EXIT
trap 'exit 143' TERM INT

if [ ! -d "$folder/src" ]; then
    echo "stage unpacking the sources"
    rm -rf "$folder/src.part"
    mkdir -p "$folder/src.part"
    tar -xzf "$sdist" -C "$folder/src.part" "$source" || exit 1
    mv "$folder/src.part" "$folder/src" || exit 1
fi

PATH=$data/tools/bin:$PATH:/usr/local/cuda/bin:/opt/rocm/bin:/opt/homebrew/bin:/usr/local/bin:$HOME/.local/bin
export PATH
if ! command -v cmake >/dev/null; then
    echo "stage fetching cmake and ninja into $data/tools"
    python3 -m venv "$data/tools" && "$data/tools/bin/pip" install --quiet --disable-pip-version-check cmake ninja || {
        echo "cmake is missing, and python3 could not fetch it (apt install cmake ninja-build)"
        exit 4
    }
fi
if command -v ninja >/dev/null; then generator=Ninja; else generator='Unix Makefiles'; fi

echo "stage configuring"
# A folder configured with another generator cannot go on.
if [ "$(cat "$folder/generator" 2>/dev/null)" != "$generator" ]; then rm -rf "$folder/out"; fi
echo "$generator" >"$folder/generator"
cmake -S "$folder/src/$source" -B "$folder/out" -G "$generator" "$@" || exit 1

echo "stage compiling"
# shellcheck disable=SC2086  # targets are several words
cmake --build "$folder/out" --parallel "$jobs" --target $targets || exit 1

echo "stage installing"
part=$data/runtimes/llamacpp/.part-$key
rm -rf "$part"
mkdir -p "$part" && cp -RP "$folder/out/bin" "$part/bin" || exit 1
"$part/bin/llama-server" --version || exit 5
: >"$part/.complete"
rm -rf "$data/runtimes/llamacpp/$key"
mv "$part" "$data/runtimes/llamacpp/$key" || exit 1
rm -rf "$folder/src" "$folder/out" "$sdist"
echo "stage done"
