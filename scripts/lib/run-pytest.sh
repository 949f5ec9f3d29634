# Sourced by scripts/test, scripts/proof and scripts/soak: one phase of pytest after the other, all of them even when one fails.

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

# The tests' programmes write down here what they did (tests/support/programme.py).
with_report() {
    INNKEEPER_PROOF_REPORT=$(mktemp)
    export INNKEEPER_PROOF_REPORT
    trap 'rm -f "$INNKEEPER_PROOF_REPORT"' EXIT
}

print_report() {
    say 'what the programmes did'
    .venv/bin/python tests/support/programme.py "$INNKEEPER_PROOF_REPORT" || failed_phases+=('what they had to do at least')
}
