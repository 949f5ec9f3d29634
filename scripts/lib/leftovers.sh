# Sourced by scripts/fresh: what of an inn is still in the kernel. Needs nothing but a shell and nft.

# leftovers INN-ID STATE: one line for each process, link, nft table, cgroup or mount. An empty INN-ID means every inn's.
leftovers() {
    local inn_id=$1 state=$2 entry
    for entry in /sys/class/net/inbr-"$inn_id"* /sys/class/net/intp-"$inn_id"*; do
        [ ! -e "$entry" ] || echo "link ${entry##*/}"
    done
    for entry in /sys/fs/cgroup/innkeeper-"$inn_id"* /sys/fs/cgroup/*/innkeeper-"$inn_id"*; do
        [ ! -e "$entry" ] || echo "cgroup $entry"
    done
    ! command -v nft >/dev/null || nft list tables 2>/dev/null | grep -E " inn_${inn_id:-[a-z0-9]{4\}}\$" || true
    grep -F -e "$state/" -e "/run/innkeeper/${inn_id:-}" /proc/self/mounts | awk '{ print "mount " $2 }' || true
    for entry in /proc/[0-9]*; do
        [ "$entry" != "/proc/$$" ] && [ "$entry" != "/proc/$BASHPID" ] || continue
        case "$(tr '\0' ' ' 2>/dev/null <"$entry/cmdline")" in
            *"$state/"* | *"--state-dir $state "* | *"/run/innkeeper/$inn_id"*) echo "process ${entry#/proc/}" ;;
        esac
    done
}
