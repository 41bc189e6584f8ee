"""Why tests of Lightning end otherwise with the callback in every Trainer: see `benchmarks.lightning_suite`."""

# The file in which a test fails, and the reason.
INHERENT = {
    "deterministic_model.py": "the test asserts what its own fixed, full weights compute",
}


def reason_of(found: dict[str, str]) -> str | None:
    """Why a test ends otherwise: refused in our own words, or by nature; None if neither is known.

    Args:
        found: How it ended: where, and with our own words in its error, if any.
    """
    if "refusal" in found:
        return f"refused: {found['refusal'].partition(':')[0][:80]}"
    return INHERENT.get(found["where"])
