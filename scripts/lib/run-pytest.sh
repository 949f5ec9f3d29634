# Sourced by scripts/test and scripts/proof: one phase of pytest after the other, all of them even when one fails.

failed_phases=()

# phase NAME PYTEST-ARGUMENT...
phase() {
    local name=$1 status=0
    shift
    say "$name"
    .venv/bin/python -m pytest -q "$@" </dev/null || status=$?
    # 5: nothing was collected, which is right for a choice of files that has no such tests
    [ "$status" = 0 ] || [ "$status" = 5 ] || failed_phases+=("$name")
}

finish() {
    [ ${#failed_phases[@]} = 0 ] || { say "failed: ${failed_phases[*]}"; exit 1; }
}
