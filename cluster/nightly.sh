#!/usr/bin/env bash
# The nightly run, for any scheduler: index, then check the drift, then compact, on a Ray cluster.
#
# usage: nightly.sh [--help]
#
# Exit code 0: everything is done. 1: a step failed, the drift is above its limit, or a signal stopped
# the run; the index is as its last commit left it. 75: a run of this name is going on, on this host
# (the lock file) or on the cluster (the submission ids); nothing was done.
#
# Each step is a Ray job of its own: NAME-index-DATE, NAME-drift-DATE, NAME-compact-DATE, with -2, -3
# behind the date (UTC) for further runs of that day. TERM, INT and HUP stop the current job. Drift
# compares with the index as it was when that day began, so that a night with several tries counts as
# one. Above the limit the script still compacts the index, which changes no row and can be rolled
# back; the exit code then is 1.
#
# environment, required:
#   SEGREC_IMAGES           folder of the images (URI)
#   SEGREC_MODEL            model bundle (URI)
#   SEGREC_INDEX            folder of the index (URI)
#   RAY_API_SERVER_ADDRESS  job server of the cluster, http://HEAD:8265
# optional:
#   SEGREC_REPORTS      folder of the drift reports (URI), one below it a run; without: no drift check
#   SEGREC_FAIL_OVER    most drift allowed: 0.2, or failures=0.01,overlap=0.3; without: only reported
#   SEGREC_HOME         folder of the project on the cluster's head (/opt/segrec_batch)
#   SEGREC_WORKING_DIR  folder of the project on this host, uploaded in place of SEGREC_HOME
#   SEGREC_DEVICE       auto, cpu or cuda (auto)
#   SEGREC_GPUS         on how many GPUs, also such as an autoscaler is still to start (all there are)
#   SEGREC_MAX_READ_FAILURES, SEGREC_MAX_GONE
#                       how many images may be unreadable or gone, a share or a count (1%, 50%)
#   SEGREC_NAME         first part of the submission ids, one for each index on a cluster (segrec)
#   SEGREC_LOCK         lock file (nightly-NAME.lock in RUNTIME_DIRECTORY, XDG_RUNTIME_DIR or, without
#                       these, XDG_STATE_HOME/segrec, that is ~/.local/state/segrec)
#   RAY_AUTH_MODE       disabled or token (disabled)
#   RAY_AUTH_TOKEN      the cluster's token, with RAY_AUTH_MODE=token
# Needs ray and python on the PATH, both here and on the head. Credentials and endpoint of an object
# store (AWS_*) belong into the environment of the cluster.

set -uo pipefail

readonly BUSY=75 RETRY_SECONDS=5 TRIES=24
readonly ELSEWHERE="have SEGREC_LOCK name a lock file elsewhere"
readonly AUTH="RAY_AUTH_MODE=token needs RAY_AUTH_TOKEN, the token of the cluster"

say() { TZ=UTC printf '%(%FT%TZ)T nightly: %s\n' -1 "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

busy() {
    say "$*; nothing was done"
    exit "$BUSY"
}

settings() {
    local variable missing=()
    for variable in SEGREC_IMAGES SEGREC_MODEL SEGREC_INDEX RAY_API_SERVER_ADDRESS; do
        [[ -n ${!variable:-} ]] || missing+=("$variable")
    done
    ((${#missing[@]} == 0)) || fail "not set: ${missing[*]} (nightly.sh --help says what they are)"
    name=${SEGREC_NAME:-segrec}
    [[ $name =~ ^[A-Za-z0-9_-]+$ ]] || fail "SEGREC_NAME=$name: letters, digits, _ and - only"
    export RAY_API_SERVER_ADDRESS RAY_AUTH_MODE=${RAY_AUTH_MODE:-disabled}
    [[ $RAY_AUTH_MODE != token || -n ${RAY_AUTH_TOKEN:-} ]] || fail "$AUTH"
    jobs=${SEGREC_HOME:-/opt/segrec_batch}/jobs upload=()
    [[ -z ${SEGREC_WORKING_DIR:-} ]] || jobs=jobs upload=(--working-dir "$SEGREC_WORKING_DIR")
    for variable in ray python flock timeout; do
        command -v "$variable" >/dev/null || fail "$variable is not on the PATH: $PATH"
    done
}

# Prints the folder of the lock: one where no other user can open files, so none can hold the lock.
lock_folder() {
    local folder=${RUNTIME_DIRECTORY:-${XDG_RUNTIME_DIR:-}} state=${XDG_STATE_HOME:-}
    folder=${folder%%:*}
    if [[ -z $folder ]]; then
        [[ -n $state || -n ${HOME:-} ]] || fail "no RUNTIME_DIRECTORY, XDG_RUNTIME_DIR or HOME; $ELSEWHERE"
        folder=${state:-$HOME/.local/state}/segrec
        (umask 077 && mkdir --parents "$folder") || fail "$folder cannot be made; $ELSEWHERE"
    fi
    [[ -d $folder && -O $folder && ! -L $folder ]] ||
        fail "$folder is not a folder of the user $UID; $ELSEWHERE"
    [[ -z $(find "$folder" -maxdepth 0 -perm /077) ]] ||
        fail "$folder is open to other users: chmod 700 it, or $ELSEWHERE"
    echo "$folder"
}

# Held by this shell and by what it starts: also after a SIGKILL of it, as long as its job is followed.
lock() {
    local file=${SEGREC_LOCK:-} mask code=0
    [[ -n $file ]] || file=$(lock_folder)/nightly-$name.lock || exit 1
    [[ ! -L $file ]] || fail "$file is a link; remove it, or $ELSEWHERE"
    mask=$(umask)
    umask 077
    exec 9<>"$file" || fail "$file cannot be written; $ELSEWHERE" # truncates nothing
    umask "$mask"
    [[ -f /dev/fd/9 && -O /dev/fd/9 && ! -L $file && $file -ef /dev/fd/9 ]] ||
        fail "$file is not a file of the user $UID; remove it, or $ELSEWHERE"
    chmod 600 /dev/fd/9
    flock --nonblock --conflict-exit-code "$BUSY" 9 || code=$?
    ((code != BUSY)) || busy "another run holds $file"
    ((code == 0)) || fail "$file cannot be locked"
}

# A line for each job of this name on the cluster: submission id, status, ticket of who submitted it.
# Ray's own client, since `ray job list` is not for programs.
listed() {
    timeout 60 python - "$name" <<'PYTHON'
import re
import sys

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

ours = re.compile(re.escape(sys.argv[1]) + r"-(index|drift|compact)-\d{8}(-\d+)?")
try:
    jobs = JobSubmissionClient().list_jobs()
except (AuthenticationError, ConnectionError, RuntimeError) as error:
    sys.exit(str(error))
for job in jobs:
    if ours.fullmatch(job.submission_id or ""):
        print(job.submission_id, job.status, (job.metadata or {}).get("nightly", "-"))
PYTHON
}

# Sets `stamp`, date and number of this run, unless one of this name is going on.
take_turn() {
    local all id status number=1
    all=$(listed) || fail "no list of jobs from $RAY_API_SERVER_ADDRESS"
    while read -r id status _; do
        [[ $status != RUNNING && $status != PENDING ]] || busy "$id is $status on the cluster"
    done <<<"$all"
    stamp=${day//-/}
    while [[ $all =~ (^|$'\n')"$name-index-$stamp " ]]; do
        stamp=${day//-/}-$((++number))
    done
}

# Status of the job that this script has submitted as `current`: Ray's word for it, MISSING, TAKEN
# (someone else has that id) or UNKNOWN (the cluster does not answer).
state() {
    local all id status owner
    all=$(listed) || { echo UNKNOWN && return; }
    while read -r id status owner; do
        [[ $id == "$current" ]] || continue
        [[ $owner == "$ticket" ]] && echo "$status" || echo TAKEN
        return
    done <<<"$all"
    echo MISSING
}

pause() {
    sleep "$RETRY_SECONDS" 9>&- & # it would keep the lock
    wait "$!"                      # unlike a sleep in the foreground, a signal ends it at once
}

# Submits a step and waits for its end: success, if the job succeeded. Ray's exit code does not tell:
# it is 0 of a job that someone stopped, and 1 where only the connection was lost.
run_step() { # KIND PROGRAM ARGUMENT…
    local status unknown=0
    submission=
    current=$name-$1-$stamp
    say "$current: $2"
    ray job submit --log-color false --submission-id "$current" \
        --metadata-json "{\"nightly\": \"$ticket\"}" "${upload[@]}" -- \
        python "$jobs/$2" "${@:3}" &
    submission=$!
    wait "$submission"
    while status=$(state); do
        case $status in
            RUNNING | PENDING) unknown=0 ;;
            UNKNOWN) ((++unknown < TRIES)) || break ;;
            *) break ;;
        esac
        pause
    done
    say "$current: $status"
    [[ $status != TAKEN ]] || busy "$current was submitted by another run"
    [[ $status != UNKNOWN ]] || say "$current may still run: ray job stop $current"
    current=
    [[ $status == SUCCEEDED ]]
}

stop_step() {
    local attempt
    for ((attempt = 0; attempt < 10; attempt++)); do
        case $(state) in
            RUNNING | PENDING) timeout 60 ray job stop --log-color false "$current" >&2 && return ;;
            MISSING) kill -0 "${submission:-${!:-}}" 2>/dev/null || return 0 ;; # else it is on its way
            UNKNOWN) ;;
            *) return 0 ;; # it has ended
        esac
        sleep 1
    done
    say "error: $current may still run: ray job stop $current"
}

stop() {
    trap '' TERM INT HUP
    say "stopped by $1"
    if [[ -n $current ]]; then
        stop_step
        kill "$submission" 2>/dev/null
        wait "$submission"
    fi
    exit 1
}

run_index() {
    local options=()
    [[ -z ${SEGREC_GPUS:-} ]] || options+=(--gpus "$SEGREC_GPUS")
    [[ -z ${SEGREC_MAX_READ_FAILURES:-} ]] || options+=(--max-read-failures "$SEGREC_MAX_READ_FAILURES")
    [[ -z ${SEGREC_MAX_GONE:-} ]] || options+=(--max-gone "$SEGREC_MAX_GONE")
    run_step index index.py --images "$SEGREC_IMAGES" --model "$SEGREC_MODEL" \
        --index "$SEGREC_INDEX" --device "${SEGREC_DEVICE:-auto}" "${options[@]}"
}

check_drift() {
    local limit=()
    [[ -n ${SEGREC_REPORTS:-} ]] || return 0
    [[ -z ${SEGREC_FAIL_OVER:-} ]] || limit=(--fail-over "$SEGREC_FAIL_OVER")
    run_step drift evaluate.py drift --index "$SEGREC_INDEX" --from "${day}T00:00Z" \
        "${limit[@]}" --report "${SEGREC_REPORTS%/}/$stamp"
}

main() {
    local drift=well
    settings
    lock
    day=$(date --utc +%F) current=
    ticket=${HOSTNAME:-host}-$$-$RANDOM$RANDOM
    trap 'stop TERM' TERM
    trap 'stop INT' INT
    trap 'stop HUP' HUP
    take_turn
    run_index || fail "the index job did not succeed"
    check_drift || drift=bad
    run_step compact maintain.py --index "$SEGREC_INDEX" compact || fail "the compaction did not succeed"
    [[ $drift == well ]] || fail "the drift is above its limit, or unknown: see $name-drift-$stamp"
    say "$SEGREC_INDEX is up to date"
}

case ${1:-} in
    '') main ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
    *) fail "unknown argument $1; nightly.sh --help" ;;
esac
