"""Which of AdapterHub's methods and settings upt can express, and why not the others."""

from pydantic import JsonValue

from upt_zoo.interop.settings import Settings
from upt_zoo.spec import LoraTarget

TRAINING_SETTINGS = ("dropout", "init_weights", "init_weights_seed", "dtype")


def methods_of(config: Settings) -> dict[str, Settings]:
    """Return the methods by architecture; a bottleneck has none."""
    parts = [config]
    if config.values.get("architecture") == "union":
        listed = config.take("configs", list[JsonValue]())
        parts = [
            Settings(each if isinstance(each, dict) else {}, f"{config.source}, configs[{index}]")
            for index, each in enumerate(listed)
        ]
    methods: dict[str, Settings] = {}
    for part in parts:
        architecture = part.take("architecture", "")
        if architecture not in ("lora", "prefix_tuning", "prompt_tuning", ""):
            raise part.refusal("architecture", "upt has no such component")
        if architecture in methods:
            raise part.refusal("architecture", "upt has one component of a kind in an adapter")
        methods[architecture] = part
    return methods


def lora_targets(config: Settings) -> tuple[LoraTarget, ...]:
    """Check the settings of LoRA and return its targets."""
    config.require(
        "composition_mode", "add", "upt has no (IA)3: it scales and adds nothing", default="add"
    )
    config.refuse_others(
        (
            *("architecture", "composition_mode", "selfattn_lora", "intermediate_lora"),
            *(
                "output_lora",
                "leave_out",
                "r",
                "alpha",
                "attn_matrices",
                "use_gating",
                *TRAINING_SETTINGS,
            ),
        ),
        {
            "use_dora": "DoRA scales the backbone's weights by norms that depend on the adapter",
            "vera_d": "VeRA shares its matrices among the layers",
            "vera_b": "VeRA shares its matrices among the layers",
        },
    )
    matrices = config.take("attn_matrices", list[JsonValue](["q", "v"]))
    if not set(map(str, matrices)) <= {"q", "k", "v"}:
        raise config.refusal("attn_matrices", "expected some of q, k, v")
    targets: list[LoraTarget] = []
    if config.take("selfattn_lora", default=True):
        attention: tuple[LoraTarget, ...] = ("q", "k", "v")
        targets += [target for target in attention if target in matrices]
    if config.take("intermediate_lora", default=False):
        targets.append("ffn_up")
    if config.take("output_lora", default=False):
        targets.append("ffn_down")
    return tuple(targets)


def check_prefix(config: Settings) -> None:
    """Check the settings of a prefix."""
    config.require("encoder_prefix", expected=True, reason="upt serves encoders", default=True)
    config.refuse_others(
        (
            *("architecture", "encoder_prefix", "cross_prefix", "flat", "prefix_length"),
            *(
                "bottleneck_size",
                "non_linearity",
                "use_gating",
                "shared_gating",
                *TRAINING_SETTINGS,
            ),
        ),
        {"leave_out": "upt's prefix stands in every layer, and even zeros would be attended to"},
    )


def check_bottleneck(config: Settings) -> None:
    """Check the settings of a bottleneck: its place must be ours."""
    place = "upt's bottleneck stands after the FFN alone, reads LN(f + x) and is added to f"
    config.require("mh_adapter", expected=False, reason=place, default=False)
    config.require("output_adapter", expected=True, reason=place, default=False)
    config.require("original_ln_before", expected=True, reason=place, default=False)
    config.require("original_ln_after", expected=True, reason=place, default=True)
    config.require("residual_before_ln", expected=True, reason=place, default=True)
    config.refuse_others(
        (
            *("architecture", "mh_adapter", "output_adapter", "reduction_factor", "non_linearity"),
            *("original_ln_before", "original_ln_after", "residual_before_ln", "scaling"),
            *("adapter_residual_before_ln",),  # only with a LayerNorm of the adapter's own
            *("inv_adapter_reduction_factor", "cross_adapter", "leave_out", "use_gating"),
            *("phm_dim", "factorized_phm_W", "shared_W_phm", "shared_phm_rule", "phm_c_init"),
            *("factorized_phm_rule", "phm_init_range", "learn_phm", "hypercomplex_nonlinearity"),
            *("phm_rank", "phm_bias", "stochastic_depth", *TRAINING_SETTINGS),
        ),
        {
            "is_parallel": "upt's bottleneck reads the FFN's output and not its input",
            "ln_before": "upt's bottleneck has no LayerNorm of its own",
            "ln_after": "upt's bottleneck has no LayerNorm of its own",
            "inv_adapter": "upt has no adapter behind the embeddings",
            "phm_layer": "upt has no hypercomplex layers (Compacter)",
        },
    )


def check_prompt(config: Settings) -> None:
    """Check the settings of a prompt."""
    if config.take("combine", "prefix") not in ("prefix", "prefix_after_bos"):
        raise config.refusal("combine", "upt has the prompt before or after [CLS]")
    config.refuse_others(
        (
            *("architecture", "prompt_length", "prompt_init", "prompt_init_text", "combine"),
            *("random_uniform_scale", *TRAINING_SETTINGS),
        ),
        {},
    )
