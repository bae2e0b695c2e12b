"""The update of `pdjax.learner.gradient_step` in plain PyTorch, for `update.py`.

Has the mathematics of preset `pd`, written as one would write it by hand: an `nn.Module` for each
network, plain Adam, gradients clipped by norm. Before timing anything, `update.py` checks that both
give the same losses.
"""

import math
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]


def dense(params: dict[str, Any]) -> nn.Linear:
    """Makes a layer with our parameters."""
    kernel = np.asarray(params["kernel"])
    layer = nn.Linear(*kernel.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(kernel.T))
        layer.bias.copy_(torch.tensor(np.asarray(params["bias"])))
    return layer


def hidden(params: dict[Any, Any]) -> nn.Sequential:
    """Makes ReLU layers with our parameters."""
    layers = [dense(params[index]) for index in sorted(params)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


class Actor(nn.Module):
    """A squashed Gaussian with bounds on its log standard deviation."""

    def __init__(self, params: dict[str, Any], bounds: tuple[float, float]):
        super().__init__()
        self.hidden, self.bounds = hidden(params["hidden"]), bounds
        self.mean, self.log_std = dense(params["mean"]), dense(params["log_std"])

    def forward(self, obs: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns an action and its log probability."""
        x = self.hidden(obs)
        low, high = self.bounds
        log_std = low + 0.5 * (high - low) * (torch.tanh(self.log_std(x)) + 1)
        x = self.mean(x) + log_std.exp() * noise
        log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2.0) - x - nn.functional.softplus(-2 * x))
        return torch.tanh(x), (log_normal - log_slope).sum(-1)


class Critic(nn.Module):
    """The value of an observation and an action."""

    def __init__(self, params: dict[str, Any]):
        super().__init__()
        self.hidden, self.value = hidden(params["hidden"]), dense(params["value"])

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Returns values (batch,)."""
        return self.value(self.hidden(torch.cat([obs, action], -1)))[..., 0]


class TorchSAC:
    """The learner; `update` is one gradient step.

    Args:
      state: our learner's state, whose parameters it starts from; twin critics.
      config: our `SACConfig`.
      residual_scale: see `Hyperparams`.
      target_entropy: nats.
      compile: whether torch.compile compiles each loss with its gradients.
    """

    def __init__(
        self,
        state: Any,
        config: Any,
        residual_scale: float,
        target_entropy: float,
        compile: bool = False,
    ):
        def of(params: Any, index: int) -> Any:
            if isinstance(params, dict):
                return {name: of(value, index) for name, value in params.items()}
            return np.asarray(params)[index]

        self.actor = Actor(state.actor, (config.log_std_min, config.log_std_max))
        self.critics = nn.ModuleList(Critic(of(state.critic, i)) for i in range(2))
        self.targets = nn.ModuleList(Critic(of(state.target_critic, i)) for i in range(2))
        self.log_temperature = torch.tensor(float(state.log_temperature), requires_grad=True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), config.actor_lr)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), config.critic_lr)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], config.temperature_lr)
        self.config, self.scale, self.target_entropy = config, residual_scale, target_entropy
        self.critic_loss: Any = self._critic_loss
        self.actor_loss: Any = self._actor_loss
        if compile:
            self.critic_loss = torch.compile(self._critic_loss)
            self.actor_loss = torch.compile(self._actor_loss)

    def _target(self, batch: dict[str, torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
        residual, log_prob = self.actor(batch["next_obs"], noise)
        action = batch["next_base_action"] + self.scale * residual
        values = torch.minimum(*(target(batch["next_obs"], action) for target in self.targets))
        soft = values - self.log_temperature.exp() * log_prob
        return batch["reward"] + batch["discount"] * soft

    def _critic_loss(self, batch: dict[str, torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self._target(batch, noise)
        action = batch["base_action"] + self.scale * batch["residual_action"]
        squares = [(critic(batch["obs"], action) - target) ** 2 for critic in self.critics]
        return sum(_mean(square, batch["weight"]) for square in squares)

    def _actor_loss(self, batch: dict[str, torch.Tensor], noise: torch.Tensor):
        residual, log_prob = self.actor(batch["obs"], noise)
        action = batch["base_action"] + self.scale * residual
        values = torch.minimum(*(critic(batch["obs"], action) for critic in self.critics))
        loss = _mean(self.log_temperature.exp().detach() * log_prob - values, batch["weight"])
        return loss, log_prob.detach()

    def update(self, batch: dict[str, torch.Tensor], noises: Any = None) -> tuple[float, float]:
        """Takes one gradient step; returns both losses.

        Args:
          batch: tensors, named as in `types.Batch`.
          noises: normal draws for next and present actions; None = draw them here.
        """
        shape = batch["residual_action"].shape
        noises = noises or (torch.randn(shape), torch.randn(shape))
        critic_loss = self.critic_loss(batch, noises[0])
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        for critic in self.critics:
            nn.utils.clip_grad_norm_(critic.parameters(), self.config.max_grad_norm)
        self.critic_optimizer.step()

        self.critics.requires_grad_(False)
        actor_loss, log_prob = self.actor_loss(batch, noises[1])
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.critics.requires_grad_(True)
        nn.utils.clip_grad_norm_(self.actor.parameters(), self.config.max_grad_norm)
        self.actor_optimizer.step()

        above = _mean(log_prob + self.target_entropy, batch["weight"])
        self.temperature_optimizer.zero_grad()
        (-self.log_temperature * above).backward()
        self.temperature_optimizer.step()
        with torch.no_grad():
            pairs = zip(self.targets.parameters(), self.critics.parameters(), strict=True)
            for target, value in pairs:
                target.lerp_(value, self.config.tau)
        return critic_loss.detach(), actor_loss.detach()


def _mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (weight * values).sum() / weight.sum()
