"""Training loops of one's own, with everything that a sparse run can have: rescales, moving masks, any optimizer."""

import torch
from torch import nn

from lightning_signin import MaskUpdates, plain_view, rescale_, sparsify
from lightning_signin.updates import ACDC, GMP, MEST, SET, Constant, Cosine, Cubic, Once, OneShot, RigL, SRigL, Stages

TOTAL = 40
RULES = {
    "set": SET(Constant(4)),
    "rigl": RigL(Cosine(4)),
    "srigl": SRigL(Cosine(4)),
    "mest": MEST(Stages(4)),
    "gmp": GMP(Cubic(4)),
    "acdc": ACDC(),
    "one-shot": OneShot(Once(0.5)),
}


class Loop:
    """A small network in training; with the same arguments and seeds always the same one."""

    def __init__(self, rule=None, optimizer="AdamW", seed=0, storage="auto", **options):
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 4))
        self.rule = RULES.get(rule)
        start = {"sparsity": 0.8, "structure": getattr(self.rule, "structure", None) or "unstructured"}
        if self.rule is not None and self.rule.start_sparsity is not None:
            start = {"sparsity": self.rule.start_sparsity}
        sparsify(self.net, storage=storage, seed=seed, **{**start, **options})
        with plain_view(self.net):
            momentum = {"momentum": 0.9} if optimizer == "SGD" else {}
            self.optimizer = getattr(torch.optim, optimizer)(self.net.parameters(), lr=0.05, **momentum)
        self.run, self.stepped, self.updates = self.net, self.optimizer, None  # the first two may be wrapped

    def move_masks(self, **options):
        if self.rule is not None:
            arguments = {"total_steps": TOTAL, "sparsity": 0.8} | options
            self.updates = MaskUpdates(self.run, self.rule, [self.optimizer], **arguments)
        return self

    def train(self, first, last, rank=0, backward=torch.Tensor.backward):
        for step in range(first, last):
            torch.manual_seed(100 * step + rank)
            if self.updates is not None:
                self.updates.before_batch()
            if step % 9 == 5:
                rescale_(self.run, optimizers=[self.optimizer], momentum="carry")
            self.stepped.zero_grad()
            x = torch.randn(8, 12)
            backward((self.run(x) - x[:, :4]).square().mean())
            if self.updates is not None:
                self.updates.before_step(self.optimizer)
            self.stepped.step()
        return self
