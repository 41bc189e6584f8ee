"""Table 15: operations of one forward of ResNet-50, dense, sparse and with Sign-In, by count.

Settings: torchvision's ResNet-50, an image of 224×224, 2 operations for each multiply-add (Appendix N), biases, norms
and activations not counted; a balanced mask of 80 and 90 %. The product m ⊙ w is taken once for a batch: over all
entries, as Appendix N counts it, and over those on the mask, as this package does it with compact storage. Nothing is
trained: the table's accuracies are no part of it.

Rule: a count agrees if it is the paper's when rounded as there; "negligible" is under 1 % of the sparse forward. The
counts were known when this was written.
"""

from pathlib import Path
from typing import Any

import torch
import torchvision

from benchmarks.flops import HYPOTHESES, IMAGE, SPARSITIES, count, fitted_sparsity
from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from lightning_signin import sparsify
from lightning_signin.metrics.flops import flops

TITLE = "Table 15: operations of ResNet-50"
DENSE = 8.2
PAPER = {0.8: (4.99, 5.0), 0.9: (3.89, 3.9)}  # sparse, and training with Sign-In
NEGLIGIBLE = 0.01


def run(quick: bool) -> dict[str, Any]:
    """Counts in G; a quick run leaves out the rules that could explain the paper's."""
    ours = {}
    for sparsity in SPARSITIES:
        net = sparsify(torchvision.models.resnet50(), sparsity=sparsity)
        total = flops(net, torch.zeros(IMAGE)).total
        counts = {"dense": total.dense, "sparse": total.sparse}
        counts |= {"Sign-In, compact": total.sign_in, "Sign-In, Appendix N": total.paper_sign_in}
        ours[f"{sparsity:g}"] = {name: operations / 1e9 for name, operations in counts.items()}
    explained = {} if quick else {name: [count(rule, s) for s in SPARSITIES] for name, rule in HYPOTHESES.items()}
    fitted = [] if quick else [fitted_sparsity(PAPER[sparsity][0]) for sparsity in SPARSITIES]
    settings = {"sparsities": SPARSITIES}
    return {"settings": settings, "claims": claims(ours), "counts": ours, "rules": explained, "fitted": fitted}


def claims(ours: dict[str, dict[str, float]]) -> list[dict[str, str | bool]]:
    """The dense count, the sparse ones, and that the product is negligible."""
    dense = ours[f"{SPARSITIES[0]:g}"]["dense"]
    found = [claim("Table 15, dense, G", str(DENSE), f"{dense:.2f}", round(dense, 1) == DENSE)]
    for sparsity, (sparse, signin) in PAPER.items():
        here = ours[f"{sparsity:g}"]
        found.append(
            claim(f"Table 15, sparse, {sparsity:.0%}, G", str(sparse), f"{here['sparse']:.2f}", agrees(here, sparse))
        )
        more = [here[name] / here["sparse"] - 1 for name in ("Sign-In, compact", "Sign-In, Appendix N")]
        what = f"Table 15, Sign-In at {sparsity:.0%} adds a negligible part"
        shown = f"+{100 * more[0]:.2f} % (Appendix N: +{100 * more[1]:.2f} %)"
        found.append(claim(what, f"+{100 * (signin / sparse - 1):.2f} %", shown, max(more) < NEGLIGIBLE))
    return found


def agrees(here: dict[str, float], sparse: float) -> bool:
    return round(here["sparse"], 2) == sparse


def draw(results: dict[str, Any], path: Path) -> None:
    """The paper's counts beside ours."""
    names = ["dense", *(f"{kind}, {s:.0%}" for s in SPARSITIES for kind in ("sparse", "Sign-In"))]
    paper = [DENSE, *(number for s in SPARSITIES for number in PAPER[s])]
    counts = [results["counts"][f"{s:g}"] for s in SPARSITIES]
    ours = [counts[0]["dense"], *(c[kind] for c in counts for kind in ("sparse", "Sign-In, compact"))]
    with picture(path, size=(7.5, 3.4)) as [axes]:
        for place, (label, values) in enumerate({"paper": paper, "here": ours}.items()):
            x = [position + 0.38 * (place - 0.5) for position in range(len(names))]
            bars = axes.bar(x, values, 0.36, color=COLOURS[place], label=label)
            axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        axes.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
        axes.grid(visible=False, axis="x")
        axes.set(ylabel="operations of a forward (G)", ylim=(0, 9))
        axes.legend()


def describe(results: dict[str, Any]) -> str:
    """Ours beside the paper's, and what was tried to explain the difference."""
    counts = results["counts"]
    body = [["Dense", str(DENSE), f"{next(iter(counts.values()))['dense']:.3f}", ""]]
    for sparsity, (sparse, signin) in PAPER.items():
        here = counts[f"{sparsity:g}"]
        body.append([f"Sparse, {sparsity:.0%}", str(sparse), f"{here['sparse']:.3f}", ""])
        compact, dense = (f"{here[f'Sign-In, {kind}']:.3f}" for kind in ("compact", "Appendix N"))
        body.append([f"Sign-In, {sparsity:.0%}", f"{signin:g}", compact, dense])
    found = f"""{table(["G", "paper, training", "here", "product over all entries (Appendix N)"], body)}

For inference m ⊙ w is merged, so that Sign-In has the sparse count, as in the paper."""
    return f"{found}\n\n{explanations(results)}" if results["rules"] else found


def explanations(results: dict[str, Any]) -> str:
    """Every rule that was tried for the layers' shares."""
    body = [["**the paper**", *(f"**{PAPER[sparsity][0]}**" for sparsity in SPARSITIES)]]
    for name, found in results["rules"].items():
        cells = [f"{pair[0]:.2f} ({100 * pair[1]:.1f} %)" if pair else "dense part over the budget" for pair in found]
        body.append([name, *cells])
    fitted = " and ".join(f"{100 * sparsity:.1f} %" for sparsity in results["fitted"])
    return f"""The dense count is the paper's. Its sparse counts are not those of a balanced mask of 80 and 90 %, which
has fewer operations, and no rule that was tried for the layers' shares has both. In G, with the sparsity that the rule
reaches:

{table(["which weights are kept", *(f"{sparsity:.0%}" for sparsity in SPARSITIES)], body)}

An exactly balanced mask has the paper's counts at sparsities of {fitted}."""
