"""Defines every setting of a base policy and of its training, and the recipes.

Kept apart from the policies and free of JAX, so that --help and error messages appear at once. A
policy's section of settings is stored beside its parameters.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pdjax.config import options
from pdjax.config.options import (
    ConfigError,
    Count,
    Horizon,
    Layers,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    Share,
    Width,
)
from pdjax_envs.names import suggest
from pdjax_envs.reading import short

NOISE_STEPS = 100  # policy_decorator online/pi_dec_diffusion_maniskill2.py, num_diffusion_iters
MOST_PARTS = 4_096  # clusters or Gaussians; each is compared with every window

Dropout = Annotated[float, Range(0, 0.9)]
Rollout = Literal["greedy", "sampled"]


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """Shape of a diffusion policy (arXiv:2303.04137)."""

    obs_horizon: Horizon = 2
    """Observations that the policy reads."""
    act_horizon: Horizon = 4
    """Control steps executed of each prediction."""
    pred_horizon: Horizon = 8
    """Actions that the policy predicts; at least obs_horizon - 1 + act_horizon."""
    hidden: Width = 256
    """Width of the MLP denoiser."""
    blocks: Layers = 3
    """Residual blocks of the MLP denoiser."""
    ddim_steps: Annotated[int, Range(1, NOISE_STEPS)] = 4
    """Denoising steps in a rollout; training uses 100."""
    prediction: Literal["sample", "epsilon"] = "sample"
    """What the network predicts: the clean chunk (sample), which needs far fewer gradient steps to
    become precise (arXiv:2403.03954), or the noise (epsilon), as in the reference
    implementation."""
    denoiser: Literal["mlp", "unet"] = "mlp"
    """The network: a residual MLP, which is many times cheaper on a CPU, or the conditional 1-D
    U-Net of Diffusion Policy."""
    unet_dims: Annotated[tuple[int, ...], Range(1, 65_536)] = (64, 128, 256)
    """Channels of the U-Net's levels; every level except the last halves the chunk's length."""
    unet_kernel: Width = 5
    """Control steps that a convolution of the U-Net spans; must be odd."""
    unet_groups: Width = 8
    """Groups of the U-Net's group normalisation; must divide every width."""
    unet_final_groups: Annotated[int, Range(0, 65_536)] = 0
    """Groups of the U-Net's last normalisation; 0 = unet_groups. policy_decorator and LeRobot
    always use 8."""
    unet_step_dim: Annotated[int, Range(4, 65_536)] = 64
    """Numbers in the U-Net's embedding of the noise level; must be even."""
    unet_scale: bool = True
    """Whether the condition scales the U-Net's channels in addition to shifting them, as in
    policy_decorator; real-stanford/diffusion_policy only shifts them by default."""

    def validate(self) -> None:
        """Raises ConfigError if a value is out of range or a prediction is shorter than what is
        executed of it."""
        options.check(self)
        needed = self.obs_horizon - 1 + self.act_horizon
        if self.pred_horizon < needed:
            raise ConfigError(
                f"pred_horizon={self.pred_horizon} must be >= obs_horizon - 1 + act_horizon ="
                f" {needed}; raise pred_horizon or lower act_horizon"
            )
        if self.denoiser == "unet":
            self._validate_unet()

    def _validate_unet(self) -> None:
        halved = 2 ** (len(self.unet_dims) - 1)
        _multiple("pred_horizon", self.pred_horizon, halved, "2^(levels of unet_dims - 1)")
        for width in self.unet_dims:
            _multiple("unet_dims", width, self.unet_groups, "unet_groups")
        if self.unet_final_groups:
            _multiple("unet_dims", self.unet_dims[0], self.unet_final_groups, "unet_final_groups")
        _multiple("unet_step_dim", self.unet_step_dim, 2, "even")
        _multiple("unet_kernel + 1", self.unet_kernel + 1, 2, "kernels are odd")


@dataclasses.dataclass(frozen=True)
class BehaviorTransformerConfig:
    """Shape of a Behavior Transformer (arXiv:2206.11251)."""

    obs_horizon: Horizon = 10
    """Observations that the policy reads: the transformer's context."""
    act_horizon: Horizon = 1
    """Control steps that a bin spans, predicted and executed at once; 1 in the source. More steps
    keep the policy from copying its own history, which can cost precise tasks most of their
    success."""
    bins: Annotated[int, Range(1, MOST_PARTS)] = 8
    """Clusters of actions (policy_decorator offline/bet_maniskill2.py, n_clusters)."""
    layers: Layers = 4
    """Transformer blocks (same source)."""
    heads: Width = 4
    """Attention heads (same source); must divide width."""
    width: Width = 128
    """Numbers in each token (same source)."""
    readout: Width = 256
    """Numbers that the transformer outputs for bins and offsets (same source, output_dim)."""
    dropout: Dropout = 0.1
    """Share of activations dropped in training (same source)."""
    focal_gamma: NonNegative = 2.0
    """Exponent of the focal loss, which gives less weight to bins that are predicted well."""
    offset_weight: NonNegative = 1000.0
    """Weight of the squared error of the offsets."""
    rollout: Rollout = "greedy"
    """How to choose a bin: greedy = take the likeliest, sampled = draw one."""

    def validate(self) -> None:
        """Raises ConfigError if a value cannot work."""
        options.check(self)
        _multiple("width", self.width, self.heads, "heads")


@dataclasses.dataclass(frozen=True)
class ActConfig:
    """Shape of ACT, action chunking with transformers (arXiv:2304.13705)."""

    obs_horizon: Horizon = 1
    """Observations that the policy reads."""
    obs_tokens: Width = 1
    """Tokens for each observation (LeRobot: one for the robot's state, one for the rest)."""
    act_horizon: Horizon = 4
    """Control steps executed of each prediction; 1 with temporal_ensemble."""
    pred_horizon: Horizon = 8
    """Actions that the policy predicts: the chunk (ACT: 100, at 50 Hz)."""
    encoder_layers: Layers = 1
    """Transformer layers of the style encoder and of the observation encoder (ACT: 4)."""
    decoder_layers: Layers = 1
    """Transformer layers that turn queries into actions (ACT: 7, but it only uses the first)."""
    heads: Width = 4
    """Attention heads (ACT: 8); must divide width."""
    width: Annotated[int, Range(2, 65_536)] = 128
    """Numbers in each token (ACT: 512); must be even."""
    feedforward: Width = 256
    """Hidden width of a layer's feed-forward part (ACT: 3200)."""
    latent_dim: Width = 32
    """Numbers in the style variable z, which is 0 in a rollout."""
    style: bool = True
    """Whether training uses a style encoder to find z; if not, z is 0 in training as well, and the
    parameters of the encoder are not saved."""
    decoder_norm: bool = False
    """Whether the decoder's output is normalised once more, as in ACT and LeRobot."""
    kl_weight: NonNegative = 10.0
    """Weight of the KL divergence between z and a standard normal; beta in ACT."""
    dropout: Dropout = 0.0
    """Share of activations dropped in training (ACT: 0.1)."""
    temporal_ensemble: bool = False
    """Whether to predict at every control step, and execute the weighted mean of all predictions
    for that step."""
    ensemble_decay: NonNegative = 0.01
    """m in the weights exp(-m i) of the temporal ensemble; i = 0 is the oldest prediction."""

    def validate(self) -> None:
        """Raises ConfigError if a value cannot work."""
        options.check(self)
        _multiple("width", self.width, self.heads, "heads")
        _multiple("width", self.width, 2, "even")
        if self.temporal_ensemble and self.act_horizon != 1:
            raise ConfigError(
                f"act_horizon={self.act_horizon} must be 1 with temporal_ensemble, which predicts"
                " at every control step"
            )
        if self.pred_horizon < self.act_horizon:
            raise ConfigError(
                f"pred_horizon={self.pred_horizon} must be >= act_horizon={self.act_horizon}; raise"
                " pred_horizon or lower act_horizon"
            )


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Shape of a Gaussian or Gaussian-mixture MLP."""

    obs_horizon: Horizon = 1
    """Observations that the policy reads."""
    act_horizon: Horizon = 4
    """Control steps predicted and executed at once."""
    hidden: Annotated[tuple[int, ...], Range(1, 65_536)] = (256, 256, 256)
    """Widths of the hidden layers."""
    components: Annotated[int, Range(1, MOST_PARTS)] = 1
    """Gaussians in the mixture over whole chunks; 1 = a single Gaussian."""
    std_floor: Positive = 0.05
    """Smallest standard deviation of an action number; more precision does not lower the loss."""
    rollout: Rollout = "greedy"
    """How to act: greedy = the mean of the likeliest component, sampled = a draw of the mixture."""

    def validate(self) -> None:
        """Raises ConfigError if a value is out of range."""
        options.check(self)


PolicyConfig = DiffusionConfig | BehaviorTransformerConfig | ActConfig | MLPConfig


@dataclasses.dataclass(frozen=True)
class ImitationConfig:
    """How a base policy is trained, and the shape of each kind; only the chosen kind is used."""

    kind: Literal["diffusion", "bet", "act", "mlp"] = "diffusion"
    """Kind of policy."""
    diffusion: DiffusionConfig = DiffusionConfig()
    bet: BehaviorTransformerConfig = BehaviorTransformerConfig()
    act: ActConfig = ActConfig()
    mlp: MLPConfig = MLPConfig()
    steps: Count = 6_000
    """Gradient steps."""
    batch_size: Count = 256
    """Windows per gradient step."""
    learning_rate: Positive = 1e-3
    """Peak Adam step size, after a linear warm-up over 5 % of the steps; then a cosine to 0."""
    weight_decay: NonNegative = 1e-6
    """Weight decay of AdamW."""
    ema: Share = 0.995
    """Decay per step of the averaged parameters, which the finished policy uses."""
    validation: Annotated[float, Range(0, 0.9)] = 0.05
    """Share of the episodes that is held out for the validation loss."""
    eval_every: Natural = 0
    """Gradient steps between two evaluations in the simulator; the best evaluated policy is kept.
    0 = no evaluations, and the last policy is kept."""
    interim_episodes: Count = 64
    """Episodes in each of these evaluations; always the same episodes."""
    stop_at: Share = 0.0
    """Success rate in such an evaluation at which training stops; 0 = never. For a policy that is
    good enough, or still weak enough to be refined."""
    seed: Seed = 0
    """Seed of the initialisation, shuffling and noise."""

    @property
    def policy(self) -> PolicyConfig:
        """The section of the chosen kind of policy."""
        return getattr(self, self.kind)

    def validate(self) -> None:
        """Raises ConfigError if a value is out of range or the shape cannot work."""
        options.check(self)
        self.policy.validate()
        if self.stop_at and not self.eval_every:
            raise ConfigError(
                f"stop_at={self.stop_at} needs evaluations in the simulator; set eval_every too"
            )


KINDS: dict[str, type[PolicyConfig]] = {
    "diffusion": DiffusionConfig,
    "bet": BehaviorTransformerConfig,
    "act": ActConfig,
    "mlp": MLPConfig,
}

# Each recipe lists only the values that differ from the defaults above.
RECIPES: dict[str, dict[str, Any]] = {
    "diffusion": {},
    "diffusion_unet": {
        "diffusion": {"denoiser": "unet", "pred_horizon": 16},
        "batch_size": 64,
        "learning_rate": 5e-4,
    },
    # weight decay: policy_decorator offline/bet_maniskill2.py
    "bet": {"kind": "bet", "steps": 3_000, "batch_size": 64, "weight_decay": 2e-4},
    "act": {"kind": "act", "batch_size": 128},
    # five components: robomimic's BC-GMM (arXiv:2108.03298)
    "mlp": {"kind": "mlp", "mlp": {"components": 5}, "steps": 4_000},
}


def recipe(name: str, changes: Mapping[str, Any]) -> ImitationConfig:
    """Builds the config of a recipe, with some values changed.

    Args:
      name: a name in `RECIPES`.
      changes: the changed values, nested by section.

    Raises:
      ConfigError: the recipe or a key is unknown, a value has the wrong type or is out of range,
        or the shape cannot work.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown policy {short(repr(name))}; {suggest(name, RECIPES)}")
    start = options.merge(dataclasses.asdict(ImitationConfig()), RECIPES[name])
    config = options.build(ImitationConfig, options.merge(start, changes))
    config.validate()
    return config


def _multiple(name: str, value: int, unit: int, why: str) -> None:
    if value % unit:
        raise ConfigError(f"{name} got {value}, expected a multiple of {unit} ({why})")
