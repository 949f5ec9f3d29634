# Run by scripts/fresh in the clone inside the chroot: run, run again, stop, test. Argument: what `make test` is to choose.
set -euo pipefail
. scripts/lib/say.sh
. scripts/lib/leftovers.sh

timed() {
    local began=$SECONDS
    "$@"
    say "fresh: ${*:3} took $((SECONDS - began)) s"
}

# What failed is shown, and cleared away: the network is not the chroot's own.
ended() {
    local status=$?
    [ "$status" != 0 ] || return 0
    tail -n 15 /var/lib/innkeeper/log/*.log >&2 2>/dev/null || true
    [ ! -x .venv/bin/inn ] || .venv/bin/inn down --force >&2 || true
}
trap ended EXIT

for tool in python3 ip ss ps systemctl; do
    ! command -v "$tool" >/dev/null || die "this is no fresh Debian: it has $tool" "mmdebstrap's minbase variant should not have it"
done

timed make --no-print-directory run
timed make --no-print-directory run
timed make --no-print-directory stop

left=$(leftovers "$(sed -n 's/.*"id": *"\([a-z0-9]*\)".*/\1/p' /var/lib/innkeeper/inn.json)" /var/lib/innkeeper)
for entry in /proc/[0-9]*; do
    pid=${entry#/proc/}
    # Kernel threads and zombies have no command line; the first process and this shell with its children are ours.
    case "$pid" in 1 | $$ | $BASHPID) continue ;; esac
    command=$(tr '\0' ' ' 2>/dev/null <"$entry/cmdline") || continue
    [ -z "$command" ] || left+=" process: $command"
done
[ -z "$left" ] || die "make stop left: $left" "inn down --force"

timed make --no-print-directory test ${1:+"TESTS=$1"}
