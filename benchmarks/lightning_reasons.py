"""Why tests of Lightning end otherwise with the callback in every Trainer: see `benchmarks.lightning_suite`."""

INHERENT = {
    "test_evaluation_loop_flow.py": "fixed weights: the test asserts what its own full weights compute",
    "test_training_loop_flow_": "fixed weights: the test asserts what its own full weights compute",
    "epoch_end__flow_scalar": "exact lists: the test counts the callbacks or the logged metrics",
}


def reason_of(test: str, found: dict[str, str]) -> str | None:
    """Why a test ends otherwise: refused in our own words, or by nature; None if neither is known.

    Args:
        test: Its id.
        found: How it ended, with our own words in its error, if any.
    """
    if "refusal" in found:
        return f"refused: {found['refusal'].partition(':')[0][:80]}"
    if "_fit is not None" in found["error"]:
        return None
    return next((reason for part, reason in INHERENT.items() if part in test), None)
