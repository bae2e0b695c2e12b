"""One SAC update of the residual policy in plain NumPy float64, with gradients written by hand.

It is written from the formulas and independent of pdjax.learner, so that the two can be compared.
It draws no random numbers: the caller passes the normal noise of both draws, which pdjax takes from
    key_next, key_actor, key_subset = jax.random.split(key, 3)
    noise_next, noise_actor = (jax.random.normal(k, (batch, chunk_dim)) for k in the first two)
The parameters of one network are a flat dict such as {"hidden/0/kernel": (in, out), ...}.
"""

from typing import NamedTuple

import numpy as np


class Settings(NamedTuple):
    """The numbers and choices that the update depends on."""

    critic_input: str
    actor_input: str
    log_std_min: float
    log_std_max: float
    max_grad_norm: float
    tau: float
    learning_rates: dict[str, float]  # actor, critic, temperature
    target_entropy: float
    residual_scale: float
    limits: float | np.ndarray = 1.0  # largest size of each number in a residual
    residual_penalties: tuple[float, ...] = (0.0, 0.0, 0.0)  # of each update
    smoothness_penalty: float = 0.0
    follows_mean: bool = False  # the actor follows the mean of all critics, not the least


class Learner:
    """Holds actor, critics, target critics, temperature and Adam moments; `update` changes them."""

    def __init__(self, actor, critics, targets, log_temperature, settings):
        self.actor = actor
        self.critics = critics
        self.targets = targets
        self.log_temperature = float(log_temperature)
        self.settings = settings
        self.updates = 0
        self.moments = {}

    def update(self, batch, noise_next, noise_actor, subset=None):
        """Takes one step on a batch of NumPy arrays and returns the metrics.

        `subset` holds the indices of the target critics whose least value counts; None means all.
        """
        s = self.settings
        temperature = np.exp(self.log_temperature)
        weight = batch.weight / batch.weight.sum()

        # y = r + discount * (min_i Q'_i(s', a') - T log pi(a'|s'))
        residual, log_prob, _ = self._draw(batch.next_obs, batch.next_base_action, noise_next)
        next_in = self._critic_input(batch.next_obs, batch.next_base_action, residual)
        targets = self.targets if subset is None else [self.targets[i] for i in subset]
        next_values = np.min([forward(p, next_in, "value")[0][0][:, 0] for p in targets], 0)
        target = batch.reward + batch.discount * (next_values - temperature * log_prob)

        # critics: sum_i mean (Q_i - y)^2, every critic clipped and moved by itself
        critic_in = self._critic_input(batch.obs, batch.base_action, batch.residual_action)
        loss, norms, means = 0.0, [], []
        for index, params in enumerate(self.critics):
            (values,), cache = forward(params, critic_in, "value")
            error = values[:, 0] - target
            loss += np.sum(weight * error**2)
            means.append(np.sum(weight * values[:, 0]))
            grads, _ = backward(params, cache, {"value": (2 * weight * error)[:, None]})
            norms.append(global_norm(grads))
            grads = clip(grads, s.max_grad_norm)
            self.critics[index] = self._adam(f"critic{index}", params, grads, "critic")
        metrics = {
            "critic_loss": loss,
            "q_mean": np.mean(means),
            "target_mean": np.sum(weight * target),
            "critic_grad_norm": max(norms),
            "temperature": temperature,
        }

        log_prob = self._actor_step(batch, noise_actor, weight, temperature, metrics)

        # temperature: d/dlogT of -log T mean(log pi + target entropy)
        grad = {"": np.asarray(-np.sum(weight * (log_prob + s.target_entropy)))}
        moved = self._adam("temperature", {"": np.asarray(self.log_temperature)}, grad)
        self.log_temperature = float(moved[""])

        for target_params, params in zip(self.targets, self.critics):
            for name, value in params.items():
                target_params[name] = s.tau * value + (1 - s.tau) * target_params[name]
        self.updates += 1
        return metrics

    def _actor_step(self, batch, noise, weight, temperature, metrics):
        """Minimises mean (T log pi - min_i Q_i) against the critics as they are now."""
        s = self.settings
        residual, log_prob, (cache, std, raw) = self._draw(batch.obs, batch.base_action, noise)
        critic_in = self._critic_input(batch.obs, batch.base_action, residual)
        outputs = [forward(params, critic_in, "value") for params in self.critics]
        values = np.stack([value[:, 0] for (value,), _ in outputs])
        chosen = np.argmin(values, axis=0)

        d_input = np.zeros_like(critic_in)  # of the loss, through the least critic of each row
        for index, (_, critic_cache) in enumerate(outputs):
            share = 1 / len(outputs) if s.follows_mean else chosen == index
            upstream = (-weight * share)[:, None]
            d_input += backward(self.critics[index], critic_cache, {"value": upstream})[1]
        chunk_dim = residual.shape[1]
        obs_dim = batch.obs.shape[1]
        d_residual = d_input[:, obs_dim : obs_dim + chunk_dim]  # concat holds the residual first
        if s.critic_input == "sum":
            d_residual = s.residual_scale * d_residual

        # penalty: mean over numbers of residual^2
        penalty = s.residual_penalties[self.updates]
        d_residual = d_residual + penalty * (2 * weight[:, None] * residual / chunk_dim)
        # x = mean + std * noise, residual = limits * tanh x
        # log pi: d / dx = 2 tanh x, d / dlog_std = -1
        d_log_prob = (temperature * weight)[:, None]
        tanh = residual / s.limits
        d_x = d_residual * s.limits * (1 - tanh**2) + d_log_prob * 2 * tanh
        d_log_std = d_x * std * noise - d_log_prob
        d_raw = d_log_std * 0.5 * (s.log_std_max - s.log_std_min) * (1 - np.tanh(raw) ** 2)
        grads, _ = backward(self.actor, cache, {"mean": d_x, "log_std": d_raw})
        change = self._add_smoothness(batch, weight, grads)
        value = values.mean(axis=0) if s.follows_mean else values.min(axis=0)
        penalties = penalty * np.mean(residual**2, axis=1) + s.smoothness_penalty * change
        metrics["actor_loss"] = np.sum(weight * (temperature * log_prob - value + penalties))
        metrics["entropy"] = -np.sum(weight * log_prob)
        metrics["residual_magnitude"] = np.sum(weight * np.abs(residual).mean(axis=1))
        metrics["actor_grad_norm"] = global_norm(grads)
        self.actor = self._adam("actor", self.actor, clip(grads, s.max_grad_norm))
        return log_prob

    def _add_smoothness(self, batch, weight, grads):
        """Adds the gradient of mean (m(s') - m(s))^2, m = limits tanh mean; returns the squares."""
        s, none = self.settings, 0 * batch.base_action
        now, _, (cache, *_) = self._draw(batch.obs, batch.base_action, none, still=True)
        later, _, (later_cache, *_) = self._draw(
            batch.next_obs, batch.next_base_action, none, still=True
        )
        for sign, mean, one in ((-1, now, cache), (1, later, later_cache)):
            d_mean = sign * 2 * weight[:, None] * (later - now) / now.shape[1]
            d_mean = d_mean * s.limits * (1 - (mean / s.limits) ** 2)
            more, _ = backward(self.actor, one, {"mean": d_mean})
            for name, grad in more.items():
                grads[name] = grads[name] + s.smoothness_penalty * grad
        return np.mean((later - now) ** 2, axis=1)

    def _draw(self, obs, base_action, noise, still=False):
        s = self.settings
        x = np.concatenate([obs, base_action], 1) if s.actor_input == "obs_base_action" else obs
        (mean, raw), cache = forward(self.actor, x, "mean", "log_std")
        std = np.exp(s.log_std_min + (s.log_std_max - s.log_std_min) * (np.tanh(raw) + 1) / 2)
        pre = mean if still else mean + std * noise
        # normal density at pre, divided by the slope of tanh; 1 - tanh^2 = 1 / cosh^2
        density = -(noise**2) / 2 - np.log(std) - np.log(2 * np.pi) / 2
        log_prob = np.sum(density + 2 * np.log(np.cosh(pre)), axis=1)
        return s.limits * np.tanh(pre), log_prob, (cache, std, raw)

    def _critic_input(self, obs, base_action, residual):
        kinds = {
            "sum": [base_action + self.settings.residual_scale * residual],
            "res": [residual],
            "concat": [residual, base_action],
        }
        return np.concatenate([obs, *kinds[self.settings.critic_input]], axis=1)

    def _adam(self, name, params, grads, rate=None):
        """Kingma & Ba with beta .9, .999 and epsilon 1e-8; returns the moved parameters."""
        lr = self.settings.learning_rates[rate or name]
        first, second, count = self.moments.get(name, ({}, {}, 0))
        count += 1
        moved = {}
        for leaf, grad in grads.items():
            first[leaf] = 0.9 * first.get(leaf, 0.0) + 0.1 * grad
            second[leaf] = 0.999 * second.get(leaf, 0.0) + 0.001 * grad**2
            first_hat = first[leaf] / (1 - 0.9**count)
            second_hat = second[leaf] / (1 - 0.999**count)
            moved[leaf] = params[leaf] - lr * first_hat / (np.sqrt(second_hat) + 1e-8)
        self.moments[name] = (first, second, count)
        return moved


def forward(params, x, *heads):
    """Applies hidden layers (Dense, optional LayerNorm, ReLU) and heads; returns outputs, cache."""
    layers, index = [], 0
    while f"hidden/{index}/kernel" in params:
        below = x
        x = x @ params[f"hidden/{index}/kernel"] + params[f"hidden/{index}/bias"]
        norm = None
        if f"norms/{index}/scale" in params:
            deviation = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
            norm = ((x - x.mean(axis=1, keepdims=True)) / deviation, deviation)
            x = norm[0] * params[f"norms/{index}/scale"] + params[f"norms/{index}/bias"]
        x = np.maximum(x, 0)
        layers.append((below, norm, x > 0))
        index += 1
    outputs = [x @ params[f"{head}/kernel"] + params[f"{head}/bias"] for head in heads]
    return outputs, (layers, x)


def backward(params, cache, d_heads):
    """Returns the gradients of all parameters and of the input, from those of the outputs."""
    layers, features = cache
    grads, d_x = {}, 0.0
    for head, d_out in d_heads.items():
        grads[f"{head}/kernel"] = features.T @ d_out
        grads[f"{head}/bias"] = d_out.sum(axis=0)
        d_x = d_x + d_out @ params[f"{head}/kernel"].T
    for index in reversed(range(len(layers))):
        below, norm, active = layers[index]
        d_x = d_x * active
        if norm is not None:
            whitened, deviation = norm
            grads[f"norms/{index}/scale"] = (d_x * whitened).sum(axis=0)
            grads[f"norms/{index}/bias"] = d_x.sum(axis=0)
            d_white = d_x * params[f"norms/{index}/scale"]
            along = whitened * (d_white * whitened).mean(axis=1, keepdims=True)
            d_x = (d_white - d_white.mean(axis=1, keepdims=True) - along) / deviation
        grads[f"hidden/{index}/kernel"] = below.T @ d_x
        grads[f"hidden/{index}/bias"] = d_x.sum(axis=0)
        d_x = d_x @ params[f"hidden/{index}/kernel"].T
    return grads, d_x


def global_norm(grads):
    return np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))


def clip(grads, max_norm):
    norm = global_norm(grads)
    return {k: g * max_norm / norm for k, g in grads.items()} if norm > max_norm else grads
