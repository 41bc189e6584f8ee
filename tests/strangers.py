"""Optimizers as strangers write them: state in places of their own, copies of the parameters, wrappers."""

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer


class Logged(torch.optim.AdamW):
    """A subclass that adds nothing."""


class ScheduleFree(Optimizer):
    """AdamW of Defazio et al. (2024): the parameters are y between the base sequence z and its average x."""

    def __init__(self, params, lr=0.0025, betas=(0.9, 0.999), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "k": 0, "train_mode": False})

    @torch.no_grad()
    def train(self):
        self._move(lambda beta: 1 - beta, True)

    @torch.no_grad()
    def eval(self):
        self._move(lambda beta: 1 - 1 / beta, False)

    def _move(self, weight, mode):
        for group in self.param_groups:
            for p in group["params"] if group["train_mode"] != mode else ():
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], weight(group["betas"][0]))
            group["train_mode"] = mode

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("Optimizer was not in train mode when step is called.")
            (beta, beta2), k = group["betas"], group["k"]
            for y in group["params"]:
                if y.grad is None:
                    continue
                state = self.state[y]
                if not state:
                    state["z"], state["exp_avg_sq"] = y.clone(), torch.zeros_like(y)
                state["exp_avg_sq"].mul_(beta2).addcmul_(y.grad, y.grad, value=1 - beta2)
                denominator = state["exp_avg_sq"].div(1 - beta2 ** (k + 1)).sqrt_().add_(1e-8)
                update = y.grad / denominator + group["weight_decay"] * y
                y.lerp_(state["z"], 1 / (k + 1)).add_(update, alpha=group["lr"] * (beta * (1 - 1 / (k + 1)) - 1))
                state["z"].sub_(update, alpha=group["lr"])
            group["k"] += 1


class Lookahead(Optimizer):
    """Zhang et al. (2019), as it is often found: the slow weights are lists beside the state."""

    def __init__(self, base, k=5, alpha=0.5):
        self.optimizer, self.k, self.alpha, self.count = base, k, alpha, 0
        self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults
        self.slow_weights = [[p.clone().detach() for p in group["params"]] for group in self.param_groups]

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step(closure)
        self.count += 1
        if self.count % self.k:
            return
        for group, slow in zip(self.param_groups, self.slow_weights, strict=True):
            for p, q in zip(group["params"], slow, strict=True):
                q.add_(p - q, alpha=self.alpha)
                p.copy_(q)


class Prodigy(Optimizer):
    """Mishchenko, Defazio (2023): the step size grows with the distance to a copy of the starting point."""

    def __init__(self, params, lr=1.0, betas=(0.9, 0.999), weight_decay=0.0, d0=1e-6):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "d": d0, "d0": d0, "r": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            (beta1, beta2), d, lr = group["betas"], group["d"], group["lr"]
            beta3 = beta2**0.5
            r, total = group["r"] * beta3, 0.0
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["p0"], state["s"] = p.flatten().clone(), torch.zeros_like(p.flatten())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                r += d / group["d0"] * d * lr * torch.dot(p.grad.flatten(), state["p0"] - p.flatten()).item()
                state["exp_avg"].mul_(beta1).add_(p.grad, alpha=d * (1 - beta1))
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=d * d * (1 - beta2))
                state["s"].mul_(beta3).add_(p.grad.flatten(), alpha=d / group["d0"] * d * lr)
                total += state["s"].abs().sum().item()
            if not total:
                continue
            group["r"], group["d"] = r, max(d, r / total)
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["weight_decay"] * d * lr)
                    denominator = self.state[p]["exp_avg_sq"].sqrt().add_(d * 1e-8)
                    p.addcdiv_(self.state[p]["exp_avg"], denominator, value=-d * lr)


class FTRL(Optimizer):
    """McMahan et al. (2013): parameters are computed from the state in every step."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["z"], state["n"] = torch.zeros_like(p), torch.zeros_like(p)
                grown = state["n"] + p.grad**2
                state["z"] += p.grad - (grown.sqrt() - state["n"].sqrt()) / group["lr"] * p
                state["n"] = grown
                p.copy_(-state["z"] * group["lr"] / (1 + grown.sqrt()))


class SAM(Optimizer):
    """Foret et al. (2021), in its best known form: it wraps the class of its base optimizer, and shares the groups."""

    def __init__(self, params, base=SGD, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old_p"] = p.clone()
                    p.add_(p.grad * (group["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()

    def step(self, closure=None):
        assert closure is not None, "SAM requires closure"
        self.first_step()
        with torch.enable_grad():
            loss = closure()
        self.second_step()
        return loss


class Lazy(Optimizer):
    """Plain gradient descent with a mean of gradients per parameter under a key of its own."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean: Tensor = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 0.3)
                    p.sub_(mean, alpha=group["lr"])


class Lasso(Optimizer):
    """Gradient descent whose decay pulls all entries to zero by the same amount."""

    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad + group["weight_decay"] * p.sign(), alpha=group["lr"])
        return loss


class Whitened(Lazy):
    """Removes the mean of each gradient: every entry's step depends on the others."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.ndim > 1:
                    p.grad -= p.grad.mean(1, keepdim=True)
        super().step()
