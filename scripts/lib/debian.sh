# Sourced by scripts/setup: Debian packages. Nothing here names a mirror: it is asked of apt.

export DEBIAN_FRONTEND=noninteractive
backports_file=/etc/apt/sources.list.d/innkeeper-backports.sources
oldest_qemu=1:9 # 7.2 corrupts memory in migration without KVM
packages_need_mib=1500

apt() {
    apt-get -qq -o DPkg::Lock::Timeout=600 -o APT::Update::Error-Mode=any -o Dpkg::Use-Pty=0 "$@"
}

require_root() {
    [ "$(id -u)" = 0 ] || die "not root: installing packages and running guests need it" "run it as root, for example: sudo make setup"
}

require_debian() {
    local ID='' VERSION_ID='' PRETTY_NAME='' VERSION_CODENAME=''
    [ ! -r /etc/os-release ] || . /etc/os-release
    if [ "$ID" != debian ] || ! command -v apt-get >/dev/null; then
        die "this is ${PRETTY_NAME:-an unknown system}, not Debian" "use Debian 12 or newer"
    fi
    # testing and sid have no VERSION_ID
    if [ -n "$VERSION_ID" ] && [ "${VERSION_ID%%.*}" -lt 12 ]; then
        die "$PRETTY_NAME is too old: its Python is older than 3.11" "use Debian 12 or newer"
    fi
    [ "$(dpkg --print-architecture)" = amd64 ] || die "this is $(dpkg --print-architecture); guests are run on amd64 only" "use an amd64 machine"
    debian_codename=$VERSION_CODENAME
}

# Those of the packages named that are not installed.
missing_packages() {
    local installed
    # dpkg-query fails when it does not know one of them; what it prints for the others holds.
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p') || true
    printf '%s\n' "$@" | grep -vxF -e "$installed" || true
}

require_disk_space() {
    local where=$1 need_mib=$2 free_mib
    free_mib=$(df -Pm "$where" | awk 'NR == 2 { print $4 }')
    [ "$free_mib" -ge "$need_mib" ] ||
        die "$free_mib MiB are free on the file system of $where; the installation needs $need_mib MiB" "free some space there, for example with: apt-get clean"
}

# apt's own words on a failure, then ours.
apt_update() {
    local log
    log=$(apt update "$@" 2>&1) && return
    printf '%s\n' "$log" | tail -n 5 >&2
    die "apt could not fetch the package lists" "check the network, the name server and /etc/apt/sources.list*; then run it again"
}

apt_install() {
    local log
    log=$(apt install --no-install-recommends "$@" 2>&1) && return
    printf '%s\n' "$log" | tail -n 15 >&2
    case "$log" in
        *'No space left'* | *"don't have enough free space"*) die "the disk is full" "free some space on / and /var; then run it again" ;;
        *'Failed to fetch'* | *'Unable to fetch'*) die "apt could not download a package" "check the network; then run it again" ;;
        *'dpkg --configure -a'*) die "an earlier installation was interrupted" "dpkg --configure -a; then run it again" ;;
        *'Could not get lock'*) die "another program has been installing packages for ten minutes" "let it end; then run it again" ;;
        *) die "apt could not install: $*" "see apt's message above; after mending it, run it again" ;;
    esac
}

install_host_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    require_root
    say "installing ${#missing[@]} Debian packages: ${missing[*]}"
    require_disk_space /usr "$packages_need_mib"
    require_disk_space /var/cache/apt "$packages_need_mib"
    apt_update
    lists_are_fresh=yes
    apt_install "${missing[@]}"
}

installed_version() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null || true; }
candidate_version() { apt-cache policy "$1" | awk '$1 == "Candidate:" { print $2 }'; }
new_enough() { [ -n "$1" ] && [ "$1" != '(none)' ] && dpkg --compare-versions "$1" ge "$oldest_qemu"; }

# install_qemu QEMU-PACKAGE...: the first is the one whose version decides.
install_qemu() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    if [ ${#missing[@]} = 0 ] && new_enough "$(installed_version "$1")"; then
        return 0
    fi
    require_root
    require_disk_space /usr "$packages_need_mib"
    [ -n "${lists_are_fresh:-}" ] || apt_update
    if new_enough "$(candidate_version "$1")"; then
        say "installing QEMU $(candidate_version "$1")"
        apt_install "$@"
        return
    fi
    local suite=$debian_codename-backports
    use_backports "$suite"
    say "installing QEMU from $suite ($debian_codename itself has $(candidate_version "$1"))"
    apt_install -t "$suite" "$@"
    new_enough "$(installed_version "$1")" ||
        die "$suite gave QEMU $(installed_version "$1"), older than ${oldest_qemu#*:}" "use a mirror that carries $suite with QEMU ${oldest_qemu#*:} or newer"
}

# Adds the backports of this release from the mirror that apt already uses for it, unless apt knows them.
use_backports() {
    local suite=$1 mirror signed_by=
    [ -z "$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Release: $suite")" ] || return 0
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Codename: $debian_codename" 'Component: main' | head -n 1)
    [ -n "$mirror" ] || die "apt has no source for main of $debian_codename, from which to derive that of $suite" "add Debian's archive to /etc/apt/sources.list"
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ ! -r "$keyring" ] || signed_by="Signed-By: $keyring"
    {
        echo "# Written by Innkeeper's setup: QEMU is newer here than in $debian_codename itself. Nothing else comes from here unless asked for."
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$mirror" "$suite"
        [ -z "$signed_by" ] || echo "$signed_by"
    } >"$backports_file.new"
    mv "$backports_file.new" "$backports_file"
    # Only this list: the others were fetched a moment ago.
    local log
    log=$(apt update -o Dir::Etc::SourceList="$backports_file" -o Dir::Etc::SourceParts=- -o APT::Get::List-Cleanup=0 2>&1) && return
    rm -f "$backports_file"
    printf '%s\n' "$log" | tail -n 5 >&2
    die "the mirror $mirror has no $suite that can be used" "check the network, or use a mirror that carries $suite"
}
