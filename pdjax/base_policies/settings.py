"""Every knob of a base policy and of its training: frozen dataclasses, recipes as data.

Kept apart from the policies, and free of JAX, so that help and mistakes answer at once. A policy's
own section is stored beside its parameters.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pdjax.config import schema
from pdjax.config.schema import (
    ConfigError,
    Count,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    Share,
)

NOISE_STEPS = 100  # policy_decorator online/pi_dec_diffusion_maniskill2.py, num_diffusion_iters

Dropout = Annotated[float, Range(0, 0.9)]
Rollout = Literal["greedy", "sampled"]


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """Shape of a diffusion policy (arXiv:2303.04137)."""

    obs_horizon: Count = 2
    """Observations that it reads."""
    act_horizon: Count = 4
    """Control steps executed of each prediction."""
    pred_horizon: Count = 8
    """Actions that it predicts; at least obs_horizon - 1 + act_horizon."""
    hidden: Count = 256
    """Width of the MLP denoiser."""
    blocks: Count = 3
    """Residual blocks of the MLP denoiser."""
    ddim_steps: Annotated[int, Range(1, NOISE_STEPS)] = 4
    """Denoising steps in a rollout, of 100 in training."""
    prediction: Literal["sample", "epsilon"] = "sample"
    """What the network predicts: the clean chunk, which takes far fewer gradient steps to become
    precise (arXiv:2403.03954), or the noise, as the reference implementation."""
    denoiser: Literal["mlp", "unet"] = "mlp"
    """The network: a residual MLP, many times cheaper on a CPU, or the conditional 1-D U-Net of
    Diffusion Policy."""
    unet_dims: Annotated[tuple[int, ...], Range(1)] = (64, 128, 256)
    """Channels of the U-Net's levels; each level but the last halves the chunk's length."""
    unet_kernel: Count = 5
    """Control steps that a convolution of the U-Net spans; odd."""
    unet_groups: Count = 8
    """Groups of the U-Net's group normalisation; must divide every width."""
    unet_final_groups: Natural = 0
    """Groups of the last normalisation, as policy_decorator and LeRobot have 8 whatever the others
    have; 0 = unet_groups."""
    unet_step_dim: Annotated[int, Range(4)] = 64
    """Numbers in the U-Net's embedding of the noise level; even."""
    unet_scale: bool = True
    """Whether the condition scales the U-Net's channels besides shifting them; as in
    policy_decorator, while real-stanford/diffusion_policy only shifts by default."""

    def validate(self) -> None:
        """Raises ConfigError at a value out of range, or where a prediction cannot hold what is
        executed."""
        schema.check(self)
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

    obs_horizon: Count = 10
    """Observations that it reads: its context."""
    act_horizon: Count = 1
    """Control steps that a bin spans, predicted and executed at once; 1 as in the source. More keep
    it from copying its own history, which costs precise tasks most of their success."""
    bins: Count = 8
    """Clusters of actions (policy_decorator offline/bet_maniskill2.py, n_clusters)."""
    layers: Count = 4
    """Transformer blocks (same source)."""
    heads: Count = 4
    """Attention heads (same source); must divide width."""
    width: Count = 128
    """Numbers in each token (same source)."""
    readout: Count = 256
    """Numbers that the transformer hands to bins and offsets (same source, output_dim)."""
    dropout: Dropout = 0.1
    """Share of activations dropped in training (same source)."""
    focal_gamma: NonNegative = 2.0
    """Exponent of the focal loss, which plays down bins that are predicted well already."""
    offset_weight: NonNegative = 1000.0
    """Weight of the offsets' squared error."""
    rollout: Rollout = "greedy"
    """Take the likeliest bin, or draw one."""

    def validate(self) -> None:
        """Raises ConfigError at a value that cannot work."""
        schema.check(self)
        _multiple("width", self.width, self.heads, "heads")


@dataclasses.dataclass(frozen=True)
class ActConfig:
    """Shape of ACT, action chunking with transformers (arXiv:2304.13705)."""

    obs_horizon: Count = 1
    """Observations that it reads, a token each."""
    obs_tokens: Count = 1
    """Tokens that each observation becomes (LeRobot: one of the robot's, one of the rest)."""
    act_horizon: Count = 4
    """Control steps executed of each prediction; 1 with temporal_ensemble."""
    pred_horizon: Count = 8
    """Actions that it predicts: the chunk (ACT: 100, at 50 Hz)."""
    encoder_layers: Count = 1
    """Transformer layers of the style encoder and of the observations' encoder (ACT: 4)."""
    decoder_layers: Count = 1
    """Transformer layers that turn queries into actions (ACT: 7, of which only the first
    is used)."""
    heads: Count = 4
    """Attention heads (ACT: 8); must divide width."""
    width: Annotated[int, Range(2)] = 128
    """Numbers in each token (ACT: 512); even."""
    feedforward: Count = 256
    """Hidden width within a layer (ACT: 3200)."""
    latent_dim: Count = 32
    """Numbers in the style variable z; 0s in a rollout."""
    style: bool = True
    """Whether a style encoder finds z in training; else it is 0 there too, and not in the file."""
    decoder_norm: bool = False
    """Whether the decoder's tokens are normalised once more at its end, as in ACT and LeRobot."""
    kl_weight: NonNegative = 10.0
    """Weight of z's divergence from a standard normal; ACT's beta."""
    dropout: Dropout = 0.0
    """Share of activations dropped in training (ACT: 0.1)."""
    temporal_ensemble: bool = False
    """Predict at every control step and execute the weighted mean of all that was predicted for
    it."""
    ensemble_decay: NonNegative = 0.01
    """m in the weights exp(-m i) of that mean; i = 0 is the oldest prediction."""

    def validate(self) -> None:
        """Raises ConfigError at a value that cannot work."""
        schema.check(self)
        _multiple("width", self.width, self.heads, "heads")
        _multiple("width", self.width, 2, "even")
        if self.temporal_ensemble and self.act_horizon != 1:
            raise ConfigError(
                f"act_horizon={self.act_horizon} must be 1 with temporal_ensemble, which predicts"
                " anew at every control step"
            )
        if self.pred_horizon < self.act_horizon:
            raise ConfigError(
                f"pred_horizon={self.pred_horizon} must be >= act_horizon={self.act_horizon}; raise"
                " pred_horizon or lower act_horizon"
            )


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Shape of a Gaussian or Gaussian-mixture MLP."""

    obs_horizon: Count = 1
    """Observations that it reads."""
    act_horizon: Count = 4
    """Control steps predicted and executed at once."""
    hidden: Annotated[tuple[int, ...], Range(1)] = (256, 256, 256)
    """Widths of the hidden layers."""
    components: Count = 1
    """Gaussians in the mixture over whole chunks; 1 = a plain Gaussian."""
    std_floor: Positive = 0.05
    """Smallest standard deviation, as a share of [-1, 1]: below it, precision earns nothing."""
    rollout: Rollout = "greedy"
    """Take the mean of the likeliest component, or draw from the mixture."""

    def validate(self) -> None:
        """Raises ConfigError at a value out of range."""
        schema.check(self)


PolicyConfig = DiffusionConfig | BehaviorTransformerConfig | ActConfig | MLPConfig


@dataclasses.dataclass(frozen=True)
class ImitationConfig:
    """How a base policy is trained, and the shape of each kind; only the chosen one is read."""

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
    """Peak Adam step size; linear warm-up over 5 % of the steps, then a cosine to 0."""
    weight_decay: NonNegative = 1e-6
    """AdamW weight decay."""
    ema: Share = 0.995
    """Decay per step of the averaged parameters, which are the ones kept."""
    validation: Annotated[float, Range(0, 0.9)] = 0.05
    """Share of the episodes held out for the validation loss."""
    eval_every: Natural = 0
    """Gradient steps between two evaluations in the simulator, of which the best policy is kept;
    0 = none, and the last policy is kept."""
    interim_episodes: Count = 64
    """Episodes of each of them; always the same."""
    stop_at: Share = 0.0
    """Success in one of them at which training stops, for a policy that is good enough, or bad
    enough to be refined; 0 = never."""
    seed: Seed = 0
    """Seed of initialisation, shuffling and noise."""

    @property
    def policy(self) -> PolicyConfig:
        """The section of the chosen kind."""
        return getattr(self, self.kind)

    def validate(self) -> None:
        """Raises ConfigError at a value out of range or a shape that cannot work."""
        schema.check(self)
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

# What differs from the defaults above.
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
    """A recipe with some of its values changed.

    Args:
      name: one of `RECIPES`.
      changes: nested plain values.

    Raises:
      ConfigError: an unknown key, a value of wrong type or out of range, or a shape that cannot
        work.
    """
    start = schema.merge(dataclasses.asdict(ImitationConfig()), RECIPES[name])
    config = schema.build(ImitationConfig, schema.merge(start, changes))
    config.validate()
    return config


def _multiple(name: str, value: int, unit: int, why: str) -> None:
    if value % unit:
        raise ConfigError(f"{name} got {value}, expected a multiple of {unit} ({why})")
