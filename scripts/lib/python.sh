# Sourced by scripts/setup: the virtual environment at .venv.

# install_python_environment ROOT [dev]: what stands there is left alone when its stamp says that it is what is wanted.
install_python_environment() {
    local root=$1 lock=${2:-runtime}
    local venv=$root/.venv
    local stamp=$venv/innkeeper-setup.stamp wanted
    wanted=$(environment_identity "$root")
    if [ -x "$venv/bin/inn" ] && [ -r "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$wanted" ] && grep -qxF "$lock" "$stamp"; then
        return 0
    fi
    say "installing the $lock requirements into .venv"
    require_disk_space "$root" 400
    if ! [ -x "$venv/bin/pip" ] || ! "$venv/bin/python" -c pass 2>/dev/null || [ "$(readlink -f "$venv/bin/python")" != "$(readlink -f /usr/bin/python3)" ]; then
        rm -rf "$venv"
        /usr/bin/python3 -m venv "$venv" || die "python3 could not make a virtual environment at $venv" "see its message above"
    fi
    rm -f "$stamp"
    # The lock is complete, so nothing needs resolving (--no-deps), and its hashes say which files are the right ones,
    # whichever index or mirror pip is configured to ask.
    run_pip "$venv" install --require-hashes --no-deps --only-binary :all: -r "$root/requirements/$lock.txt"
    run_pip "$venv" install --no-deps --no-build-isolation --no-index -e "$root"
    # dev holds all of runtime at the same versions.
    { echo "$wanted"; echo runtime; [ "$lock" = runtime ] || echo "$lock"; } >"$stamp.new"
    mv "$stamp.new" "$stamp"
}

# Changes whenever .venv has to be made again: the locks, the entry points, the interpreter, the place of the clone.
environment_identity() {
    { /usr/bin/python3 -V; echo "$1"; cat "$1"/requirements/*.txt "$1/pyproject.toml"; } | sha256sum
}

run_pip() {
    local venv=$1 log
    shift
    log=$(PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip "$@" --quiet --no-input 2>&1) && return
    printf '%s\n' "$log" | tail -n 8 >&2
    case "$log" in
        *'No space left'*) die "the disk is full" "free some space on the file system of $venv; then run it again" ;;
        *'DO NOT MATCH THE HASHES'*) die "a package index gave a file that is not the locked one" "check pip's index (pip config list)" ;;
        *'Connection'* | *'Max retries'* | *'No matching distribution'*) die "pip could not download a locked requirement" "check the network and pip's index (pip config list); then run it again" ;;
        *) die "pip could not install the requirements" "see its message above" ;;
    esac
}
