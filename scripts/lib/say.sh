# Sourced by the scripts: how they speak. Messages go to stderr, one line each.

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' red='' plain=''
fi

say() { printf '%s==>%s %s\n' "$bold" "$plain" "$*" >&2; }

# die CAUSE REMEDY
die() {
    printf '%serror:%s %s\n' "$red" "$plain" "$1" >&2
    printf 'remedy: %s\n' "$2" >&2
    exit 1
}

# The names of a package list, without comments.
package_names() { sed -e 's/#.*//' "$@" | tr -s ' \n' '\n' | sed '/^$/d'; }
