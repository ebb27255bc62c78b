#!/usr/bin/env bash
# swarmctl in front of the reader: three real SSH hosts on this machine, from nothing to rated answers, and back to
# nothing. Everything lives in one temporary folder. Whatever happens, Ctrl-C included, nothing is left running.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH:/usr/sbin:/sbin

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
  bold=$'\e[1m' dim=$'\e[2m' blue=$'\e[1;34m' green=$'\e[1;32m' plain=$'\e[0m'
else
  bold='' dim='' blue='' green='' plain=''
fi
width=${COLUMNS:-$(tput cols 2>/dev/null || echo 100)}
[[ $width -gt 110 ]] && width=110
export COLUMNS=$width

step=0
title() {  # title WORDS… : a numbered heading
  step=$((step + 1))
  local head="━━ $step  $* "
  local fill=$((width - ${#head}))
  printf '\n%s%s' "$blue" "$head"
  while ((fill-- > 0)); do printf '━'; done
  printf '%s\n' "$plain"
}

say() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }

typed() {  # typed WORD… : the command as a person would type it
  printf '\n%s$%s %s' "$green" "$plain" "$bold"
  local word
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./=:+-]*) printf '"%s" ' "$word" ;;
      *) printf '%s ' "$word" ;;
    esac
  done
  printf '%s\n' "$plain"
}

run() { typed "$@"; "$@"; }

leftovers() {  # the processes that know our folder, in their command line or environment
  local entry pid
  for entry in /proc/[0-9]*; do
    pid=${entry#/proc/}
    [[ $pid -ne $$ && $pid -ne $BASHPID ]] || continue
    tr '\0' '\n' 2>/dev/null <"$entry/cmdline" | grep -qF "$folder" && echo "$pid" && continue
    tr '\0' '\n' 2>/dev/null <"$entry/environ" | grep -qF "SWARMCTL_LAB_HOST=$folder" && echo "$pid"
  done || true
}

finish() {
  local status=$?
  trap '' INT TERM HUP
  if [[ -n $gateway ]]; then
    kill "$gateway" 2>/dev/null && wait "$gateway" || true
  fi
  if [[ $ended != yes ]]; then
    printf '\n%sCleaning up…%s\n' "$dim" "$plain" >&2
    swarmctl lab down --wipe >/dev/null 2>&1 || true
  fi
  rm -rf "$folder"
  exit "$status"
}

ended=no
gateway=
folder=$(mktemp -d "${TMPDIR:-/tmp}/swarm-XXXXXX")
export SWARMCTL_LAB=$folder/lab SWARMCTL_TERMINAL=demo
unset SWARMCTL_INVENTORY
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

printf '%sswarmctl%s makes one language-model service out of a handful of unequal machines.\n' "$bold" "$plain"
say "Here are three, each a real OpenSSH server on a port of this machine. Their models are tiny ones that"
say "ship with swarmctl: the small one knows capitals, the large one also sums, notes and a little Python."

title "A lab: three SSH hosts on this machine"
run swarmctl lab up --mode loopback
eval "$(swarmctl lab env)"
say "spinoza is cheap and holds the small model, calisota the large one with a short context, and worlock the"
say "large one with a long context and the highest electricity bill."

title "What would be done, and why"
run swarmctl up --dry-run

title "Do it"
run swarmctl up

title "Up again: nothing is left to do"
run swarmctl up

title "Health means that it generated a token just now"
run swarmctl status

title "A routine question goes to the cheapest model that is likely to know"
run swarmctl ask --explain --temperature 0 "What is the capital of Portugal?"

title "A harder one goes to the large model"
run swarmctl ask --explain --temperature 0 "What is 47 + 38?"
run swarmctl rate up

title "A long attachment goes where it fits"
run swarmctl ask --explain --temperature 0 -f demo/notes.txt "Which room does Clara have?"

title "Ratings steer the next route, and later the training"
if [[ $(swarmctl log sql --json "select answer from exchanges order by at_utc desc limit 1") == *731* ]]; then
  run swarmctl rate up --comment "found it in the file"
else
  say "Clara has room 731. Long files are too much for so small a model, so it is told:"
  run swarmctl rate down --correction 731 --comment "not what the file says"
fi

title "Any program that speaks OpenAI's, Ollama's or Anthropic's API may ask, too"
typed swarmctl serve
swarmctl serve --port 0 --log "$folder/requests" 2>"$folder/gateway" &
gateway=$!
for _ in {1..100}; do
  url=$(grep -osm1 'http://[0-9.]*:[0-9]*' "$folder/gateway") && break
  sleep 0.1
done
cat "$folder/gateway"
run python demo/client.py "$url" "What is the capital of Peru?"
kill "$gateway" && wait "$gateway"
gateway=

title "Everything is on record"
run swarmctl log
run swarmctl log sql "select e.model, e.category, count(*) as answers, round(avg(score), 2) as score
  from exchanges e left join ratings r on r.exchange = e.id group by all order by all"

title "What a person reads once a week, and signs"
run swarmctl review
say "With enough ratings, swarmctl improve trains a better model of them, and a canary proves it: make loop shows that."

title "And back to nothing"
run swarmctl down
run swarmctl lab down --wipe
ended=yes
left=$(leftovers)
if [[ -n $left ]]; then
  printf 'still running: %s\n' "$left" >&2
  exit 1
fi
say "No process and no file is left behind."
printf '\nNext: %sswarmctl init%s writes an inventory of your own machines. See README.md.\n' "$bold" "$plain"
