"""The networks whose checkpoints `pdjax import` reads, in plain torch with random weights.

Parameters have the names of their projects; forward passes follow the published descriptions:
Diffusion Policy's U-Net arXiv:2303.04137 with FiLM (arXiv:1709.07871), BeT arXiv:2206.11251, ACT
arXiv:2304.13705, DDIM arXiv:2010.02502, equation 12. Only import this file if torch is installed.
"""

import math

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]


def scramble(module, seed=0):
    """Changes every weight from its initial value, also those of normalisations."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


class Unet(nn.Module):
    """(n, horizon, act_dim), level, (n, cond_dim) -> (n, horizon, act_dim)."""

    def __init__(self, act_dim, cond_dim, dims, step_dim, groups, lerobot, scales=True):
        super().__init__()
        self.step_dim, self.scales, self.lerobot = step_dim, scales, lerobot
        cond_dim += step_dim

        def block(inward, outward, groups):
            layers = nn.Sequential(
                nn.Conv1d(inward, outward, 5, padding=2), nn.GroupNorm(groups, outward), nn.Mish()
            )
            return nn.ModuleDict({"block": layers})

        def residual(inward, outward):
            both = [block(inward, outward, groups), block(outward, outward, groups)]
            film = nn.Linear(cond_dim, outward * (2 if scales else 1))
            parts = nn.ModuleDict({"cond_encoder": nn.Sequential(nn.Mish(), film)})
            if lerobot:
                parts["conv1"], parts["conv2"] = both
            else:
                parts["blocks"] = nn.ModuleList(both)
            if inward != outward:
                parts["residual_conv"] = nn.Conv1d(inward, outward, 1)
            return parts

        def resample(layer):
            return layer if lerobot else nn.ModuleDict({"conv": layer})

        self.diffusion_step_encoder = nn.Sequential(
            nn.Identity(),
            nn.Linear(step_dim, 4 * step_dim),
            nn.Mish(),
            nn.Linear(4 * step_dim, step_dim),
        )
        ends = [act_dim, *dims]
        self.down_modules = nn.ModuleList()
        for level, (inward, outward) in enumerate(zip(ends, dims)):
            parts = [residual(inward, outward), residual(outward, outward)]
            if level < len(dims) - 1:
                parts.append(resample(nn.Conv1d(outward, outward, 3, stride=2, padding=1)))
            self.down_modules.append(nn.ModuleList(parts))
        self.mid_modules = nn.ModuleList([residual(dims[-1], dims[-1]) for _ in range(2)])
        self.up_modules = nn.ModuleList()
        for level in range(len(dims) - 1, 0, -1):
            self.up_modules.append(
                nn.ModuleList(
                    [
                        residual(2 * dims[level], dims[level - 1]),
                        residual(dims[level - 1], dims[level - 1]),
                        resample(nn.ConvTranspose1d(dims[level - 1], dims[level - 1], 4, 2, 1)),
                    ]
                )
            )
        self.final_conv = nn.Sequential(block(dims[0], dims[0], 8), nn.Conv1d(dims[0], act_dim, 1))

    def residual(self, parts, x, cond):
        first, second = (parts["conv1"], parts["conv2"]) if self.lerobot else parts["blocks"]
        y, film = first["block"](x), parts["cond_encoder"](cond)[..., None]
        if self.scales:
            scale, shift = film.chunk(2, dim=1)
            y = scale * y + shift
        else:
            y = y + film
        around = parts["residual_conv"](x) if "residual_conv" in parts else x
        return second["block"](y) + around

    def resample(self, layer, x):
        return layer(x) if self.lerobot else layer["conv"](x)

    def forward(self, noisy, level, cond):
        frequency = torch.exp(
            torch.arange(self.step_dim // 2) * -(math.log(10_000) / (self.step_dim // 2 - 1))
        )
        phase = float(level) * frequency
        step = torch.cat([phase.sin(), phase.cos()]).expand(len(noisy), -1)
        cond = torch.cat([self.diffusion_step_encoder(step), cond], dim=-1)
        x, kept = noisy.transpose(1, 2), []
        for level in self.down_modules:
            x = self.residual(level[1], self.residual(level[0], x, cond), cond)
            kept.append(x)
            x = self.resample(level[2], x) if len(level) == 3 else x
        for parts in self.mid_modules:
            x = self.residual(parts, x, cond)
        for level in self.up_modules:
            x = torch.cat([x, kept.pop()], dim=1)
            x = self.residual(level[1], self.residual(level[0], x, cond), cond)
            x = self.resample(level[2], x)
        return self.final_conv[1](self.final_conv[0]["block"](x)).transpose(1, 2)


def ddim(unet, noise, cond, steps):
    """Deterministic DDIM of a network that predicts noise, clean samples clipped to [-1, 1]."""
    at = lambda t: math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    betas = torch.tensor([min(1 - at(t + 1) / at(t), 0.999) for t in range(100)])
    signal = torch.cumprod(1 - betas, 0)
    x = noise
    for level in range((steps - 1) * (100 // steps), -1, -(100 // steps)):
        before = signal[level - 100 // steps] if level >= 100 // steps else torch.tensor(1.0)
        predicted = unet(x, level, cond)
        clean = (x - (1 - signal[level]).sqrt() * predicted) / signal[level].sqrt()
        x = before.sqrt() * clean.clip(-1, 1) + (1 - before).sqrt() * predicted
    return x


class Bet(nn.Module):
    """(n, context, obs_dim) -> logits (n, context, bins), offsets (n, context, bins, act_dim)."""

    def __init__(self, obs_dim, act_dim, context=4, bins=3, layers=2, heads=2, width=8):
        super().__init__()
        self.heads, self.bins = heads, bins

        def block():
            mask = torch.ones(context, context).tril()[None, None]
            attention = nn.ModuleDict(
                {"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)}
            )
            attention.register_buffer("bias", mask)
            inner = {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
            norms = {"ln_1": nn.LayerNorm(width), "ln_2": nn.LayerNorm(width)}
            return nn.ModuleDict({"attn": attention, "mlp": nn.ModuleDict(inner), **norms})

        transformer = nn.ModuleDict(
            {
                "wte": nn.Linear(obs_dim, width),
                "wpe": nn.Embedding(context, width),
                "h": nn.ModuleList([block() for _ in range(layers)]),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self._gpt_model = nn.ModuleDict(
            {"transformer": transformer, "lm_head": nn.Linear(width, 256, bias=False)}
        )
        self._map_to_cbet_preds = nn.Sequential(nn.Linear(256, bins * (act_dim + 1)))
        self.register_buffer("_cluster_centers", torch.rand(bins, act_dim) - 0.5)

    def forward(self, obs):
        gpt = self._gpt_model["transformer"]
        x = gpt["wte"](obs) + gpt["wpe"].weight
        for block in gpt["h"]:
            parts = block["attn"]["c_attn"](block["ln_1"](x)).chunk(3, dim=-1)
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["attn"]["c_proj"](mixed.transpose(1, 2).flatten(2))
            inner = functional.gelu(block["mlp"]["c_fc"](block["ln_2"](x)), approximate="tanh")
            x = x + block["mlp"]["c_proj"](inner)
        out = self._map_to_cbet_preds(self._gpt_model["lm_head"](gpt["ln_f"](x)))
        return out[..., : self.bins], out[..., self.bins :].unflatten(-1, (self.bins, -1))


class Act(nn.Module):
    """List of the observation's parts (n, part_dim) -> (n, chunk, act_dim), at z = 0."""

    def __init__(self, parts, act_dim, chunk=6, width=8, heads=2, inner=16, layers=(2, 1)):
        super().__init__()

        def layer(looks):
            def attention():
                return nn.MultiheadAttention(width, heads, batch_first=True)

            made = nn.ModuleDict(
                {
                    "self_attn": attention(),
                    "linear1": nn.Linear(width, inner),
                    "linear2": nn.Linear(inner, width),
                }
            )
            if looks:
                made["multihead_attn"] = attention()
            for number in range(1, 4 if looks else 3):
                made[f"norm{number}"] = nn.LayerNorm(width)
            return made

        def stack(count, looks=False):
            return nn.ModuleDict({"layers": nn.ModuleList([layer(looks) for _ in range(count)])})

        self.latent_dim, self.names = 4, [f"encoder_{name}_input_proj" for name in parts]
        for name, size in zip(self.names, parts.values()):
            setattr(self, name, nn.Linear(size, width))
        self.encoder_latent_input_proj = nn.Linear(self.latent_dim, width)
        self.encoder_1d_feature_pos_embed = nn.Embedding(1 + len(parts), width)
        self.encoder, self.decoder = stack(layers[0]), stack(layers[1], looks=True)
        self.decoder["norm"] = nn.LayerNorm(width)
        self.decoder_pos_embed = nn.Embedding(chunk, width)
        self.action_head = nn.Linear(width, act_dim)
        # used in training only
        self.vae_encoder, self.vae_encoder_cls_embed = stack(2), nn.Embedding(1, width)
        self.register_buffer("vae_encoder_pos_enc", torch.zeros(1, chunk + 2, width))

    @staticmethod
    def feed_forward(layer, x, norm):
        return layer[norm](x + layer["linear2"](torch.relu(layer["linear1"](x))))

    def forward(self, parts):
        tokens = [self.encoder_latent_input_proj(torch.zeros(len(parts[0]), self.latent_dim))]
        tokens += [getattr(self, name)(part) for name, part in zip(self.names, parts)]
        x, place = torch.stack(tokens, dim=1), self.encoder_1d_feature_pos_embed.weight
        for layer in self.encoder["layers"]:
            mixed, _ = layer["self_attn"](x + place, x + place, x)
            x = self.feed_forward(layer, layer["norm1"](x + mixed), "norm2")
        query = self.decoder_pos_embed.weight
        y = torch.zeros(len(x), *query.shape)
        for layer in self.decoder["layers"]:
            mixed, _ = layer["self_attn"](y + query, y + query, y)
            y = layer["norm1"](y + mixed)
            looked, _ = layer["multihead_attn"](y + query, x + place, x)
            y = self.feed_forward(layer, layer["norm2"](y + looked), "norm3")
        return self.action_head(self.decoder["norm"](y))
