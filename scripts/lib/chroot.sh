# Sourced by scripts/fresh: a minimal Debian in a directory, and running a command in it.

# Variables that say how this machine reaches the network; everything else stays outside.
network_variables=(
    http_proxy https_proxy ftp_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY
    PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_PROXY PIP_CERT PIP_DEFAULT_TIMEOUT
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
)

# apt's settings for reaching its mirrors (proxies, dates, protocols), as lines of an apt.conf.
apt_network_settings() {
    apt-config dump | grep -E '^Acquire::(Check-|https?|ftp|ForceIPv|Retries|AllowInsecure)' | grep -v ' "";$' || true
}

# The Debian sources that apt uses here for a release: the release, its updates, its security.
apt_sources() {
    local codename=$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg option=''
    [ ! -r "$keyring" ] || option="[signed-by=$keyring] "
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' |
        awk -v option="$option" -v codename="$codename" \
            '($2 == codename || $2 == codename "-updates" || $2 == codename "-security") && !seen[$0]++ { print "deb " option $0 }'
}

# make_chroot DIRECTORY CODENAME PACKAGE...
make_chroot() {
    local chroot=$1 codename=$2 log settings option file
    shift 2
    local options=()
    while IFS= read -r settings; do
        [ -z "$settings" ] || options+=(--aptopt="$settings")
    done < <(apt_network_settings)
    [ -n "$(apt_sources "$codename")" ] || apt_update # without lists apt does not know which sources are Debian's
    log=$(apt_sources "$codename" | mmdebstrap --quiet --mode=root --variant=minbase "${options[@]}" \
        --include="$(IFS=,; echo "debian-archive-keyring,$*")" "$codename" "$chroot" - 2>&1) || {
        printf '%s\n' "$log" | tail -n 8 >&2
        die "mmdebstrap could not make a minimal Debian" "check the network and apt's sources; see its message above"
    }
    rm -f "$chroot/etc/resolv.conf"
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf; do
        [ ! -r "$file" ] || cat "$file" >"$chroot$file"
    done
    # Certificates that this machine adds, for example of a proxy. The bundle is made anew when ca-certificates is installed.
    if [ -n "$(ls /usr/local/share/ca-certificates 2>/dev/null)" ]; then
        mkdir -p "$chroot/usr/local/share/ca-certificates" "$chroot/etc/ssl/certs"
        cp -rL /usr/local/share/ca-certificates/. "$chroot/usr/local/share/ca-certificates/"
    fi
}

# in_chroot DIRECTORY WORKING-DIRECTORY COMMAND...
in_chroot() {
    local chroot=$1 directory=$2 name
    shift 2
    local environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}")
    for name in "${network_variables[@]}" CI; do
        [ -z "${!name:-}" ] || environment+=("$name=${!name}")
    done
    # The mounts are seen by nobody else and go with the namespace; --kill-child ends every process in it with us.
    unshare --mount --pid --uts --ipc --fork --kill-child --propagation private bash -euc '
        chroot=$1 directory=$2
        shift 2
        mount --bind "$chroot" "$chroot"
        mount -t proc proc "$chroot/proc"
        mount --rbind /sys "$chroot/sys"
        mount --rbind /dev "$chroot/dev"
        mount -t tmpfs -o mode=0755 run "$chroot/run"
        hostname fresh
        exec chroot "$chroot" /usr/bin/env -i --chdir="$directory" "$@"
    ' in_chroot "$chroot" "$directory" "${environment[@]}" "$@"
}
