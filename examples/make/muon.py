"""Muon: momentum made orthogonal for matrices and kernels, AdamW for everything else."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def orthogonalise(update_NRC: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on a stack of matrices."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = update_NRC.size(1) > update_NRC.size(2)
    x_NRC = update_NRC.mT if tall else update_NRC
    x_NRC = x_NRC.bfloat16()
    x_NRC = x_NRC / (x_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        x_NRC = a * x_NRC + (b * gram_NRR + c * gram_NRR @ gram_NRR) @ x_NRC
    return (x_NRC.mT if tall else x_NRC).float()


class Muon(torch.optim.Optimizer):
    """Steps all matrices of one shape together."""

    def __init__(self, params: list[nn.Parameter], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "buffer" not in state:
                    state["buffer"] = torch.zeros_like(param)
                state["buffer"].mul_(group["momentum"]).add_(param.grad)
                update = param.grad + group["momentum"] * state["buffer"]
                update_RC = update.reshape(update.shape[0], -1)
                shapes.setdefault((update_RC.shape[0], update_RC.shape[1]), []).append((param, update_RC))
            for (rows, cols), pairs in shapes.items():
                stack_NRC = orthogonalise(torch.stack([update for _, update in pairs]))
                scale = group["lr"] * max(1.0, rows / cols) ** 0.5
                for (param, _), step_RC in zip(pairs, stack_NRC, strict=True):
                    param.add_(step_RC.reshape(param.shape), alpha=-scale)


def optimisers(model: nn.Module, lr: float = 0.02, rest_lr: float = 1e-3) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and kernels of a model, AdamW for its embeddings, biases and norms."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    params = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in params if p.ndim >= 2 and id(p) not in embeddings]
    rest = [p for p in params if p.ndim < 2 or id(p) in embeddings]
    return [Muon(matrices, lr=lr), torch.optim.AdamW(rest, lr=rest_lr, weight_decay=0.0, betas=(0.9, 0.99))]


def average_gradients(params: list[nn.Parameter], ranks: int) -> None:
    """Gives all ranks the mean of their gradients."""
    flat_P = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
    dist.all_reduce(flat_P)
    flat_P /= ranks
    at = 0
    for p in params:
        if p.grad is not None:
            p.grad.copy_(flat_P[at : at + p.numel()].view_as(p))
            at += p.numel()
