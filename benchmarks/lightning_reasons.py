"""Why tests of Lightning end otherwise with the callback in every Trainer: see `benchmarks.lightning_suite`."""

import re

LOGGED = "the test lists all that is logged, and the callback logs its numbers"

_TRIALS = "the test counts the calls of `step`, and trials of the optimizer call it too"

# What the words of a refusal contain, and the reason.
REFUSED = {
    "replaces the weights that SignInCallback replaces": "`ModelPruning` beside the callback",
    "`rescale_until`=": "a run without an end, of which `rescale_until` is to be a fraction",
    "keeps 0 of 1 weights": "a layer of one weight, half of which is none",
    "A rescale has no rule for the state": "an optimizer for whose state a rescale has no rule (ASGD, LBFGS)",
    "Nothing to sparsify": "a model without a trainable weight of a known kind",
    "was not written by a run with SignInCallback": "a checkpoint of a run without the callback",
}

# The file in which a test fails, or a part of the test's name, and the reason.
INHERENT = {
    "deterministic_model.py": "the test asserts what its own fixed, full weights compute",
    "test_running_test_no_val": "the test asserts the accuracy of full weights after a short fit",
    "test_callback_connector.py": "the test lists all callbacks",
    "test_restarting_mid_epoch_raises_warning": "the test expects the warning of an inexact resume, and it is exact",
    "test_trainer_model_hook_system_fit": "the test lists all calls of the module, and the check for cuts makes one",
    "test_disabled_training": "the test asserts that weights stay without training, and the mask sets half to 0",
    "test_gradient_clipping_by_norm": "the test asserts the norm of the gradient in θ, and that in m and w is clipped",
    "test_lightning_optimizer.py": _TRIALS,
    "test_train_loop_system": _TRIALS,
}


def reason_of(found: dict[str, str]) -> str | None:
    """Why a test ends otherwise: refused in our own words, or by nature; None if neither is known.

    Args:
        found: How it ended: its name, where, and with our own words in its error, if any.

    Returns:
        The reason in one line, or None.
    """
    if "refusal" in found:
        known = [f"refused: {reason}" for words, reason in REFUSED.items() if words in found["refusal"]]
        return known[0] if known else None
    names = {found["where"], *re.split(r"::|\[|/", found["test"])}
    return next((reason for name, reason in INHERENT.items() if name in names), None)
